"""Seconds of a training step, an attack and a checkpoint on this machine, by the product's own loop.

The networks are random: time does not depend on the weights. Every measured program is compiled once more
for the real run, whose rate schedule is another, so for short budgets only some are measured, and the
others follow by their counted FLOPs.
"""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ard_jax import loop, networks, phases, preemption, rng, sharding, teachers
from ard_jax.data import Splits
from ard_jax.distributed import tell
from ard_jax.experiment import Experiment
from ard_jax.methods import TEACHERS
from ard_jax.plan import hardware, program
from ard_jax.writers import METRICS_FILE, read_metrics

_STEPS = 6  # in each of two epochs, of which the second counts
_WITHOUT_TEACHERS = ("sat", "trades")


def machine(
    experiments: dict[str, dict[str, Experiment]],
    methods: tuple[str, ...],
    splits: Splits,
    folder: Path,
    few: bool,
) -> dict[str, Any]:
    """What `budget.solve` needs to know.

    Args:
      experiments: robust teacher -> method -> experiment, of all methods; the teachers must have recipes,
        not checkpoints. Students are measured with the last robust teacher, the smallest.
      methods: those to be run.
      splits: the data; a few batches are used.
      folder: for temporary runs; deleted afterwards.
      few: measure one method without teachers and one with them, and the last robust teacher alone.

    Returns:
      See `budget`; beside it "how": "measured" or from what it was counted, by method.
    """
    began = time.monotonic()
    mesh = phases.make_mesh(list(experiments.values())[-1]["ciard"], splits)
    if few:
        experiments = dict([list(experiments.items())[-1]])
    *larger, last = experiments
    try:
        students, how = _students(experiments[last], methods, splits, mesh, folder, few)
        by_teacher = {}
        for name in larger:
            of, near = experiments[name], experiments[last]
            by_teacher[name] = {m: _scaled(c, of[m], near[m], splits) for m, c in students.items()}
        by_teacher[last] = students
        robust = {}
        for name, found in experiments.items():
            robust[name] = _teacher("robust", found["ciard"], splits, mesh, folder)
            _tell(f"robust teacher {name}", robust[name])
        clean = _teacher("clean", experiments[last]["ciard"], splits, mesh, folder)
        _tell("clean teacher", clean)
        seen = evaluation(experiments[last]["sat"], splits, mesh)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.monotonic() - began, 1)
    return {"seconds": seconds, "students": by_teacher, "clean": clean, "robust": robust,
            "evaluation": seen, "how": how}  # fmt: skip


def _students(experiments, methods, splits, mesh, folder, few) -> tuple[dict, dict]:
    """(method -> cost, method -> how it was found)."""
    wanted = dict.fromkeys(
        (*methods, "trades")
    )  # that also compares the robust teacher with the student
    measured = {_near(method) for method in wanted} if few else {*methods, "sat"}
    costs, how = {}, {}
    for method in (m for m in experiments if m in measured):
        costs[method], how[method] = step(experiments[method], splits, mesh, folder), "measured"
        _tell(method, costs[method])
    for method in (m for m in wanted if m not in measured):
        near = _near(method)
        costs[method] = _scaled(costs[near], experiments[method], experiments[near], splits)
        how[method] = f"counted from {near}"
    return {method: costs[method] for method in wanted}, how


def _near(method: str) -> str:
    """The method that is measured in its place."""
    return "sat" if method in _WITHOUT_TEACHERS else "ciard"


def _tell(what: str, cost: dict[str, float]) -> None:
    tell(f"  {what}: {1000 * cost['step']:.1f} ms a step, {cost['compile']:.0f} s to compile")


def _scaled(cost: dict[str, float], of: Experiment, near: Experiment, splits: Splits) -> dict:
    """A method's cost from that of one like it, by the FLOPs of their steps."""
    flops = [
        program.trace(e, "step", splits, hardware.parse("1")).count.matrix_flops for e in (of, near)
    ]
    return cost | {"step": cost["step"] * flops[0] / flops[1]}


def _teacher(role: str, e: Experiment, splits: Splits, mesh: Any, folder: Path) -> dict[str, float]:
    return step(phases.teacher_experiment(e, role, getattr(e.teachers, role)), splits, mesh, folder)


def step(e: Experiment, splits: Splits, mesh: Any, folder: Path) -> dict[str, float]:
    """{"step", "compile", "save"} in seconds, of a training phase with random teachers.

    Two short epochs run through `loop.fit`; between them it saves, as every evaluated epoch does.
    """
    preemption.check("measuring this machine")
    train = splits.train.subset(np.arange(min(len(splits.train), _STEPS * e.batch_size)))
    small = Splits(train, splits.validation, splits.test)
    given = {role: _random_teacher(role, e, small, mesh) for role in TEACHERS[e.method.name]}
    net = networks.describe(e.student, e.precision, train)
    bundle = networks.create(net, e.bn_groups)
    student = (bundle, net, networks.evaluator("measured", bundle, e, mesh))
    marks = []

    def evaluate(state: Any) -> loop.Scores:
        jax.block_until_ready(state)
        marks.append(time.monotonic())
        return {"student": {"clean": 0.0, e.eval.select_attack: 0.0}}

    shutil.rmtree(folder, ignore_errors=True)
    phase = phases.student_phase(e, folder, small, mesh, student, given)
    phase = dataclasses.replace(
        phase, title="measuring", epochs=2, eval_epochs=frozenset({1, 2}), evaluate=evaluate,
        tensorboard=False, log_every=_STEPS,
    )  # fmt: skip
    began = time.monotonic()
    loop.fit(phase)
    speeds = [
        r["images_per_second"] for r in read_metrics(folder / METRICS_FILE) if r["kind"] == "train"
    ]
    seconds, epoch = e.batch_size / speeds[-1], phase.steps_per_epoch
    return {
        "step": seconds,
        "compile": max(0.0, marks[0] - began - epoch * seconds),
        "save": max(0.0, marks[1] - marks[0] - epoch * seconds),
    }


def _random_teacher(role: str, e: Experiment, splits: Splits, mesh: Any) -> teachers.Teacher:
    net = networks.describe(getattr(e.teachers, role).net, e.precision, splits.train)
    bundle = networks.create(net, e.bn_groups)
    variables = bundle.init(rng.stream(jax.random.key(0), role))
    evaluator = networks.evaluator(f"random {role} teacher", bundle, e, mesh)
    variables = sharding.put_replicated(mesh, variables)
    return teachers.Teacher(role, bundle, variables, evaluator, "random", "random", net["model"])


def evaluation(e: Experiment, splits: Splits, mesh: Any) -> dict[str, float]:
    """Seconds of the student's gradient and forward pass per image, and of compiling an attack."""
    net = networks.describe(e.student, "float32", splits.test)  # as evaluations are
    bundle = networks.create(net)
    evaluator = networks.evaluator("measured", bundle, e, mesh)
    variables = sharding.put_replicated(mesh, bundle.init(jax.random.key(0)))
    count = min(len(splits.test), 2 * evaluator.batch_size)
    images = splits.test.subset(np.arange(count))
    attack = networks.evaluation_attack("pgd_sat", e)

    def seconds(specs: dict[str, Any]) -> float:
        began = time.monotonic()
        evaluator.run(variables, images, specs)
        return time.monotonic() - began

    seconds({})
    forward = min(seconds({}) for _ in range(3))
    first = seconds({"attack": attack})
    attacked = seconds({"attack": attack})
    return {
        "gradient": max(attacked - 2 * forward, 1e-9) / count / attack.steps,
        "forward": forward / count,
        "compile": max(0.0, first - attacked),
    }
