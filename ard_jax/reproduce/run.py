"""The phases in order: schedule, teachers, students, tables. What is finished is not repeated."""

import dataclasses
import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ard_jax import (
    checkpoint,
    compare,
    compare_config,
    networks,
    phases,
    preemption,
    teachers,
    train,
)
from ard_jax.compare_config import Comparison
from ard_jax.distributed import tell
from ard_jax.loop import TrainingDivergedError
from ard_jax.methods import TEACHERS
from ard_jax.reproduce import report, schedule
from ard_jax.reproduce.schedule import Options, ReproduceError
from ard_jax.reproduce.session import Session

TEACHERS_FOLDER = Path("teachers")
DATA = Path("data")  # a link, so that the same path holds on every machine
# What ends one student's run and not the others'.
_FAILURES = (TrainingDivergedError, jax.errors.JaxRuntimeError)


def link_data(folder: str) -> None:
    """Makes ./data lead to the TFDS folder: $TFDS_DATA_DIR or ~/tensorflow_datasets where none is given.

    Raises:
      ReproduceError: there is no CIFAR-10, or ./data is something else than a link.
    """
    target = folder or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    path = Path(target).expanduser().resolve()
    if not (path / "cifar10").is_dir():
        raise ReproduceError(
            f"--data-dir={path} has no cifar10/; give the folder in which TFDS prepared CIFAR-10"
        )
    if DATA.is_symlink():
        DATA.unlink()
    if DATA.exists():
        raise ReproduceError(f"{DATA.absolute()} is in the way: it should be a link to the data")
    DATA.symlink_to(path, target_is_directory=True)


def work(options: Options, clock: Session) -> int:
    """Does what is left to do, in the current folder, whose ./data is linked.

    Returns:
      Exit code: 0 when the table is complete, 1 when a method failed.

    Raises:
      PreemptedError: the session is over; everything is saved.
      ValueError: the budget is too small, or data or a teacher are not what they must be.
    """
    plan = schedule.obtain(options)
    if plan["clean_teacher"] and not (TEACHERS_FOLDER / "clean").is_dir():
        _take_clean(options.clean_teacher)
    comparison = compare_config.build(schedule.configs().get_config(str(schedule.FILE)))
    train.use_compilation_cache(next(iter(comparison.experiments.values())))
    for role in comparison.roles:
        _teacher(role, comparison, plan, clock)
    failed, code = _students(comparison, plan, clock), 0
    if done := [m for m in comparison.methods if m not in failed]:
        name = "evaluation of the teachers"
        clock.start(name, plan["estimate"][name], tell)
        code = compare.run(_only(comparison, done))
    for method, why in failed.items():
        tell(f"FAILED: {method}: {why}", file=sys.stderr)
    return 1 if failed else code


def tables() -> None:
    """Writes and shows the tables of what is finished, if there is a schedule."""
    if not schedule.FILE.is_file():
        return
    plan = schedule.load()
    comparison = compare_config.build(schedule.configs().get_config(str(schedule.FILE)))
    found = report.write(comparison, plan, Path())
    if found["finished"]:
        tell(f"\n{report.markdown(found)}")
    tell(f"Written: {Path('reproduce.md').absolute()}, .json and .png")


def _only(comparison: Comparison, methods: list[str]) -> Comparison:
    experiments = {k: e for k, e in comparison.experiments.items() if k[0] in methods}
    return dataclasses.replace(comparison, methods=tuple(methods), experiments=experiments)


def _take_clean(path: str) -> None:
    """Copies the imported network to teachers/clean, so that it travels with the work."""
    if not path:
        raise ReproduceError(
            "the imported clean teacher is not in teachers/clean: give --clean-teacher again"
        )
    _, variables, meta, folder = networks.load(path)
    _freeze("clean", variables, meta, str(folder))


def _teacher(role: str, comparison: Comparison, plan: dict[str, Any], clock: Session) -> None:
    """Trains the teacher unless its network is there, and keeps the network alone in teachers/<role>."""
    if (TEACHERS_FOLDER / role / "best").is_dir():
        return
    clock.start(f"{role} teacher", plan["estimate"][f"{role} teacher"], tell)
    user = next(e for e in comparison.experiments.values() if role in TEACHERS[e.method.name])
    experiment, splits = schedule.with_recipe_teachers(user), train.load_data(user)
    teachers.obtain(role, experiment, splits, phases.make_mesh(experiment, splits))
    (folder,) = (TEACHERS_FOLDER / "training").glob(f"{role}-*")
    _, variables, meta, _ = networks.load(str(folder))
    _freeze(role, variables, meta, folder.name)


def _freeze(role: str, variables: Any, meta: dict[str, Any], source: str) -> None:
    """A small checkpoint of the network alone, which is what travels; there whole or not at all."""
    origin = meta.get("origin") or {"file": source, "arrays_sha256": _digest(variables)}
    about = {"step": meta["step"], "epoch": meta["epoch"], "origin": origin}
    building, folder = TEACHERS_FOLDER / f".{role}.tmp", TEACHERS_FOLDER / role
    about["config"] = {"net": meta["config"]["net"]}
    shutil.rmtree(building, ignore_errors=True)  # of a killed session
    checkpoint.save_network(building / "best", variables, about)
    building.replace(folder)


def _digest(variables: Any) -> str:
    """Checksum of all arrays with their names, by which a run knows its teacher again."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(f"{jax.tree_util.keystr(path)} {np.shape(leaf)}".encode())
        digest.update(np.ascontiguousarray(leaf, np.float32).tobytes())
    return digest.hexdigest()


def _students(comparison: Comparison, plan: dict[str, Any], clock: Session) -> dict[str, str]:
    """Trains and evaluates every run that is left. Returns method -> why it failed."""
    failed: dict[str, str] = {}
    for (method, seed), experiment in comparison.experiments.items():
        if method in failed or train.finished(experiment) is not None:
            continue
        name = f"{method}, seed {seed}"
        clock.start(name, plan["estimate"][method] / len(plan["seeds"]), tell)
        preemption.check(name)
        try:
            train.run(experiment)
        except _FAILURES as error:
            tell(f"FAILED: {name}: {error}", file=sys.stderr)
            failed[method] = str(error)
        report.write(comparison, plan, Path())
    return failed
