"""From measured seconds and a time budget to a schedule: what is trained on what, for how long.

Everything here is arithmetic on plain records, all times in seconds. `measured` is the dict that
`measure.machine` returns:

    {"seconds": spent on measuring, "students": {robust teacher: {method: Cost}}, "clean": Cost,
     "robust": {robust teacher: Cost},
     "evaluation": {"gradient": of one image, "forward": of one image, "compile": of one attack}}

where a Cost is {"step": of one training step, "compile": of the step's program, "save": of one checkpoint}.
"trades" is always among the methods, to compare the robust teacher with the student.
"""

import dataclasses
import math
from typing import Any

from ard_jax.attacks import SUITES

RESERVE = 0.05  # of the budget: start-up, reading data, checkpoints, tables
EVALUATION_SHARE = 0.25  # of the budget, for the final evaluations
ROBUST_SHARE, CLEAN_SHARE = 0.30, 0.05  # of what is left, for training the teachers
MOST_EPOCHS = {"robust": 76, "clean": 200, "student": 300}  # those of the papers
# Share of the images that are right, and that stay so under attack: no trained network here is above.
_CLEAN, _ROBUST = 0.9, 0.55
# FGSM, PGD_sat, PGD_trades, CW and the two kinds of noise, in gradients; on the best and the last network.
_PASSES, _NETS = 1 + 20 + 20 + 30 + 1, 2
_SELECTION_PASSES = 20 + 1
_CLASSES = 10
_PROGRAMS = 10  # that a final evaluation compiles; later ones find most of them in the cache
_CACHED = 0.05
_EVALUATIONS = 20  # while training, at most


@dataclasses.dataclass(frozen=True)
class Rung:
    """A size of the whole, and the least that is worth training with it.

    Attributes:
      robust: name of the robust teacher's network.
      images: training images.
      student, teacher: least epochs of the students and of each teacher.
    """

    robust: str
    images: int
    student: int
    teacher: int


@dataclasses.dataclass(frozen=True)
class Thoroughness:
    """A final evaluation: test images, those for AutoAttack, on which networks, selection images."""

    examples: int
    autoattack: int
    nets: str
    selection: int


# Largest first: the first one that the time suffices for is taken.
RUNGS = {
    "accelerator": (
        Rung("wrn_34_10", 49_000, 30, 30),
        Rung("wrn_28_4", 49_000, 4, 4),
        Rung("wrn_28_4", 20_000, 3, 3),
        Rung("wrn_28_4", 5_000, 2, 2),
    ),
    "cpu": (
        Rung("small_24_48_96", 49_000, 10, 5),
        Rung("small_24_48_96", 20_000, 8, 5),
        Rung("small_24_48_96", 10_000, 5, 4),
        Rung("small_24_48_96", 5_000, 4, 3),
        Rung("small_24_48_96", 2_000, 2, 2),
    ),
}
EVALUATIONS = {
    "accelerator": (
        Thoroughness(10_000, 10_000, "all", 1000),
        Thoroughness(10_000, 10_000, "best", 1000),
        Thoroughness(10_000, 5000, "best", 1000),
        Thoroughness(10_000, 2000, "best", 1000),
        Thoroughness(10_000, 1000, "best", 1000),
        Thoroughness(10_000, 500, "best", 1000),
        Thoroughness(5000, 200, "best", 500),
        Thoroughness(1000, 100, "best", 200),
    ),
    "cpu": (
        Thoroughness(10_000, 1000, "best", 1000),
        Thoroughness(2000, 500, "best", 500),
        Thoroughness(1000, 200, "best", 500),
        Thoroughness(500, 100, "best", 200),
        Thoroughness(200, 32, "best", 100),
    ),
}


class BudgetError(ValueError):
    """So little time that nothing sensible can be trained."""


def solve(
    hours: float,
    networks: str,
    measured: dict[str, Any],
    *,
    methods: tuple[str, ...],
    trained: tuple[str, ...],
    seeds: int = 1,
    batch_size: int = 128,
) -> dict[str, Any]:
    """The schedule that fits the hours, measuring included.

    Args:
      hours: of everything, on the machine that was measured.
      networks: "accelerator" or "cpu".
      measured: see the module.
      methods: that students are trained by.
      trained: teachers that are trained here: "robust", "clean".
      seeds: of each student.
      batch_size: of students and teachers.

    Returns:
      "robust_teacher", "images", "epochs", "evaluation", "save_every", "batch_size" as
      configs/reproduce_cifar10.py reads them, and "estimate": phase -> seconds.

    Raises:
      BudgetError: not even the smallest fits; names the hours that would.
    """
    total = hours * 3600 * (1 - RESERVE) - measured["seconds"]
    for rung in (r for r in RUNGS[networks] if r.robust in measured["robust"]):
        plan = _Plan(rung, measured, methods, trained, seeds, batch_size)
        if (found := plan.fit(total, EVALUATIONS[networks])) is not None:
            return found
    least = plan.seconds(plan.least(), EVALUATIONS[networks][-1]) + measured["seconds"]
    raise BudgetError(
        f"--hours={hours:g} is too little: on this machine the smallest plan (robust teacher {rung.robust}, "
        f"{rung.images} images, {rung.teacher} epochs of the teachers, {rung.student} of each student) "
        f"takes --hours={math.ceil(100 * least / 3600 / (1 - RESERVE)) / 100:g}"
    )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Seconds of every phase at one size."""

    rung: Rung
    measured: dict[str, Any]
    methods: tuple[str, ...]
    trained: tuple[str, ...]
    seeds: int
    batch_size: int

    def cost(self, phase: str) -> dict[str, float]:
        students = self.measured["students"][self.rung.robust]
        if phase == "robust":
            return self.measured["robust"][self.rung.robust]
        return self.measured["clean"] if phase == "clean" else students[phase]

    def least(self) -> dict[str, int]:
        return {
            "robust": self.rung.teacher,
            "clean": self.rung.teacher,
            "student": self.rung.student,
        }

    def epoch(self, phase: str) -> float:
        return self.cost(phase)["step"] * max(1, self.rung.images // self.batch_size)

    def training(self, phase: str, epochs: int, how: Thoroughness) -> float:
        """A phase whole: compilation, steps, evaluations on the way with their checkpoints."""
        cost, evaluations = self.cost(phase), -(-epochs // every(epochs)) + 1
        relative = self.relative() if phase == "robust" else 1.0
        each = how.selection * self.gradient() * _SELECTION_PASSES * relative + cost["save"]
        return cost["compile"] + epochs * self.epoch(phase) + evaluations * each

    def gradient(self) -> float:
        return self.measured["evaluation"]["gradient"]

    def relative(self) -> float:
        """How many times as long as the student the robust teacher takes, both by TRADES."""
        return self.cost("robust")["step"] / self.cost("trades")["step"]

    def evaluation(self, how: Thoroughness) -> dict[str, float]:
        """Final evaluation of one student, of a further one, and of the teachers."""
        seen = self.measured["evaluation"]
        plain = how.examples * _PASSES * self.gradient()
        attacked = autoattack_seconds(seen) * how.autoattack
        nets = _NETS if how.nets == "all" else 1
        compiling = _PROGRAMS * seen["compile"]
        student = _NETS * plain + nets * attacked
        teachers = plain + (attacked if how.nets == "all" else 0.0)
        return {
            "first": student + compiling,
            "student": student + _CACHED * compiling,
            "teachers": teachers * (self.relative() + 1) + 2 * compiling,
        }

    def phases(self, epochs: dict[str, int], how: Thoroughness) -> dict[str, float]:
        """Phase -> seconds; with several seeds those of all of them."""
        after = self.evaluation(how)
        found = {f"{role} teacher": self.training(role, epochs[role], how) for role in self.trained}
        for method in self.methods:
            seconds = self.training(method, epochs["student"], how) + after["student"]
            found[method] = self.seeds * seconds
        found[self.methods[0]] += after["first"] - after["student"]
        return found | {"evaluation of the teachers": after["teachers"]}

    def seconds(self, epochs: dict[str, int], how: Thoroughness) -> float:
        return sum(self.phases(epochs, how).values())

    def fit(self, total: float, evaluations: tuple[Thoroughness, ...]) -> dict[str, Any] | None:
        """The schedule, None where the least epochs do not fit."""
        how = self.thoroughness(total, evaluations)
        least = self.least()
        if self.seconds(least, how) > total:
            return None
        epochs = dict(least)
        rest = total - self.seconds(least, how)
        if "clean" in self.trained:
            epochs["clean"] += int(CLEAN_SHARE * rest / self.epoch("clean"))
        if "robust" in self.trained:
            epochs["robust"] += int(ROBUST_SHARE * rest / self.epoch("robust"))
        epochs = {name: min(n, max(MOST_EPOCHS[name], least[name])) for name, n in epochs.items()}
        # What is left is the students'; whoever has reached the papers' epochs leaves the rest unused.
        while epochs["student"] < MOST_EPOCHS["student"]:
            more = epochs | {"student": epochs["student"] + 1}
            if self.seconds(more, how) > total:
                break
            epochs = more
        return self.schedule(epochs, how)

    def thoroughness(self, total: float, evaluations: tuple[Thoroughness, ...]) -> Thoroughness:
        students = self.seeds * len(self.methods)
        for how in evaluations:
            after = self.evaluation(how)
            if students * after["student"] + after["teachers"] <= EVALUATION_SHARE * total:
                return how
        return evaluations[-1]

    def schedule(self, epochs: dict[str, int], how: Thoroughness) -> dict[str, Any]:
        longest = max(self.epoch(method) for method in self.methods)
        return {
            "robust_teacher": self.rung.robust,
            "images": self.rung.images,
            "batch_size": self.batch_size,
            "epochs": epochs,
            "evaluation": dataclasses.asdict(how) | {"every": every(epochs["student"])},
            "save_every": max(1, int(120 / longest)),
            "estimate": {name: round(s, 1) for name, s in self.phases(epochs, how).items()},
        }


def every(epochs: int) -> int:
    """Epochs between two evaluations while training."""
    return max(1, -(-epochs // _EVALUATIONS))


def autoattack_seconds(evaluation: dict[str, float]) -> float:
    """Of standard AutoAttack on one image of the test set, on average."""
    seconds = 0.0
    for index, member in enumerate(SUITES["autoattack"].members):
        share = _ROBUST if index else _CLEAN
        passes = member.rounds(_CLASSES) * member.cost(_CLASSES)
        # A gradient counts as three passes.
        one = evaluation["forward"] if member.kind == "square" else evaluation["gradient"] / 3
        seconds += share * passes * one
    return seconds
