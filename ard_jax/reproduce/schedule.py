"""What is done within the budget, decided once: the file schedule.json, which later sessions follow."""

import dataclasses
import datetime
import importlib
import json
from pathlib import Path
from typing import Any

import jax

from ard_jax import compare_config, networks, train
from ard_jax.distributed import tell
from ard_jax.experiment import Experiment
from ard_jax.methods import TEACHERS
from ard_jax.reproduce import budget, measure, session
from ard_jax.writers import write_text_atomic

FILE = Path("schedule.json")
ROLES = ("robust", "clean")


class ReproduceError(ValueError):
    """What this work cannot be done with; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says of a work's first start; later ones use its schedule.

    Attributes:
      hours: budget of everything; 0 where a schedule is there already.
      clean_teacher: folder of an imported network, "" to train one.
      precision: compute type in training.
      methods: names out of configs/reproduce_cifar10.py; () for all.
      seeds: of every student: 0, 1, ...
      few: measure few programs only, see `measure`; None: when the budget is under an hour.
    """

    hours: float = 0.0
    clean_teacher: str = ""
    precision: str = "float32"
    methods: tuple[str, ...] = ()
    seeds: int = 1
    few: bool | None = None


def configs() -> Any:
    """The module configs/reproduce_cifar10.py."""
    try:
        return importlib.import_module("configs.reproduce_cifar10")
    except ModuleNotFoundError as error:
        raise ReproduceError(
            "the package configs is not found: start launch/reproduce_cifar10.sh, or put the repository's "
            "folder into PYTHONPATH"
        ) from error


def obtain(options: Options) -> dict[str, Any]:
    """The frozen schedule; made now if there is none.

    Raises:
      ReproduceError: no budget is given, or other options than at the first start.
      BudgetError: the budget is too small.
    """
    if FILE.is_file():
        schedule = load()
        _check_same(options, schedule)
        return schedule
    if not options.hours > 0:
        raise ReproduceError("--hours is missing: the time for everything, for example --hours=2")
    schedule = _plan(options)
    write_text_atomic(FILE, json.dumps(schedule, indent=1) + "\n")
    tell(describe(schedule))
    return schedule


def load() -> dict[str, Any]:
    """The schedule of the current folder."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def _check_same(options: Options, schedule: dict[str, Any]) -> None:
    """What is given again must be what was given first."""
    changed = []
    if options.hours and options.hours != schedule["hours"]:
        changed.append(f"--hours={schedule['hours']:g}, not {options.hours:g}")
    if options.methods and list(options.methods) != schedule["methods"]:
        changed.append(f"--methods={','.join(schedule['methods'])}")
    if options.clean_teacher and not schedule["clean_teacher"]:
        changed.append("a clean teacher that it trains itself")
    if changed:
        raise ReproduceError(
            f"this work was planned with {' and '.join(changed)}: leave the option out to continue it, or "
            "start another work with another --workdir"
        )


def _plan(options: Options) -> dict[str, Any]:
    module = configs()
    networks_name = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    size, longest = module.NETWORKS[networks_name], module.LONGEST
    methods = options.methods or module.METHODS
    if unknown := [m for m in methods if m not in module.METHODS]:
        raise ReproduceError(
            f"--methods={','.join(unknown)}: choose from {','.join(module.METHODS)}"
        )
    clean = ""
    if options.clean_teacher:
        net = networks.describe_checkpoint(options.clean_teacher)[0]
        clean = f"{net['model']} from {Path(options.clean_teacher).name}"
    tell(f"Measuring {session.device()} ...")
    # The rates of a short run: they are part of the programs, and change no time.
    trial = longest | {
        "networks": networks_name, "precision": options.precision,
        "epochs": {"robust": 10, "clean": 10, "student": 10},
    }  # fmt: skip
    experiments = {
        name: _with_recipes(module.comparison(trial | {"robust_teacher": name}))
        for name in size["robust"]
    }
    sample = next(iter(experiments.values()))["sat"]
    train.use_compilation_cache(sample)
    few = options.hours < 1 if options.few is None else options.few
    splits = train.load_data(sample)
    measured = measure.machine(experiments, methods, splits, Path("measuring"), few)
    used = {role for method in methods for role in TEACHERS[method]}
    trained = tuple(r for r in ROLES if r in used and not (r == "clean" and clean))
    found = budget.solve(
        options.hours,
        networks_name,
        measured,
        methods=methods,
        trained=trained,
        seeds=options.seeds,
    )
    return found | {
        "schema": 1,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hours": options.hours,
        "device": session.device(),
        "networks": networks_name,
        "precision": options.precision,
        "methods": list(methods),
        "seeds": list(range(options.seeds)),
        "clean_teacher": clean,
        "describe": {
            "student": size["student"][0],
            "robust": found["robust_teacher"],
            "clean": clean or size["clean"][0],
        },
        "measured": measured,
    }


def _with_recipes(config: Any) -> dict[str, Experiment]:
    """Method -> experiment whose teachers are trained by their recipes."""
    comparison = compare_config.build(config)
    return {method: with_recipe_teachers(e) for (method, _), e in comparison.experiments.items()}


def with_recipe_teachers(e: Experiment) -> Experiment:
    """The experiment with teachers that are trained by their recipes."""
    changed = {
        role: teacher and dataclasses.replace(teacher, checkpoint="")
        for role, teacher in ((role, getattr(e.teachers, role)) for role in ROLES)
    }
    return dataclasses.replace(e, teachers=dataclasses.replace(e.teachers, **changed))


def describe(schedule: dict[str, Any]) -> str:
    """The plan for people."""
    epochs, evaluation = schedule["epochs"], schedule["evaluation"]
    lines = [
        f"Plan for {schedule['hours']:g} hours on {schedule['device']}:",
        f"  student {schedule['describe']['student']}, {schedule['images']:,} training images, "
        f"{epochs['student']} epochs of each of {len(schedule['methods'])} methods, "
        f"{len(schedule['seeds'])} seed(s), {schedule['precision']}",
        f"  robust teacher {schedule['robust_teacher']}, {epochs['robust']} epochs; clean teacher "
        f"{schedule['describe']['clean']}"
        + ("" if schedule["clean_teacher"] else f", {epochs['clean']} epochs"),
        f"  evaluation on {evaluation['examples']:,} images, AutoAttack on {evaluation['autoattack']:,} "
        f"({evaluation['nets']} networks)",
        f"  measuring took {schedule['measured']['seconds'] / 60:.1f} min; to come:",
        *(f"    {name:<28}{s / 60:8.1f} min" for name, s in schedule["estimate"].items()),
        f"    {'all':<28}{sum(schedule['estimate'].values()) / 60:8.1f} min",
    ]
    return "\n".join(lines)
