"""AutoAttack and its members in the evaluation of a run: running and recording them."""

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ard_jax.attacks.auto_attack.attack import AutoAttackResult, run
from ard_jax.attacks.auto_attack.cascade import Session
from ard_jax.attacks.auto_attack.versions import SUITES, Member
from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation.accuracies import ExampleResults, confidence_interval
from ard_jax.evaluation.evaluator import Evaluator
from ard_jax.reporting.record import Attack, AutoAttackRecord, QueryCurve, Stage
from ard_jax.runtime.distributed import is_lead


def defined_members(name: str, num_classes: int) -> tuple[tuple[Member, ...], list[str]]:
    """(the suite's attacks whose losses exist for so few classes, warnings)."""
    wanted = SUITES[name].members
    kept = tuple(member for member in wanted if member.min_classes <= num_classes)
    left = [member.name for member in wanted if member not in kept]
    if not left:
        return kept, []
    return kept, [
        f"{SUITES[name].label} without {' and '.join(left)}, whose loss needs at least "
        f"{max(member.min_classes for member in wanted)} classes: an upper bound, not AutoAttack"
    ]


def check_defined(names: Iterable[str], num_classes: int) -> None:
    """Raises ValueError for a suite none of whose attacks is defined for so few classes."""
    for name in names:
        if not defined_members(name, num_classes)[0]:
            least = min(member.min_classes for member in SUITES[name].members)
            raise ValueError(
                f"attack {name!r} needs at least {least} classes, but the data has {num_classes}; leave it "
                "out, or name 'autoattack', which runs what is defined"
            )


def run_suite(
    evaluator: Evaluator,
    variables: Any,
    dataset: ArrayDataset,
    name: str,
    *,
    eps: float,
    norm: str,
    state_dir: str | os.PathLike | None = None,
    title: str = "",
) -> tuple[AutoAttackResult, AutoAttackRecord] | None:
    """One suite on one network.

    Args:
      evaluator: the network's.
      variables: its variables.
      dataset: all of it is attacked.
      name: one of `SUITES`.
      eps: radius in pixel units.
      norm: "linf" or "l2".
      state_dir: see `attacks.autoattack`.
      title: of the network, for the progress bar.

    Returns:
      (result, record); None where none of its attacks is defined.
    """
    suite, started = SUITES[name], time.monotonic()
    chosen, warnings = defined_members(name, dataset.num_classes)
    if not chosen:
        return None
    found = run(
        evaluator.engine, variables, np.asarray(dataset.images, np.float32) / np.float32(255),
        dataset.labels, chosen, version="custom" if warnings else suite.version, eps=eps, norm=norm,
        seed=evaluator.seed, session=Session(state_dir, title=f"{title} {suite.label}".strip()),
    )  # fmt: skip
    found.warnings.extend(warnings)
    return found, _record(name, found, round(time.monotonic() - started, 1))


def _record(name: str, found: AutoAttackResult, seconds: float) -> AutoAttackRecord:
    count = len(found.robust)
    shares = {stage: float(kept.mean()) for stage, kept in found.stages.items()}
    return AutoAttackRecord(
        label=SUITES[name].label,
        version=found.version,
        upper_bound=found.upper_bound,
        num_examples=count,
        clean=float(found.clean.mean()),
        stages=tuple(
            Stage(attack=stage, accuracy=share, ci95=confidence_interval(share, count))
            for stage, share in shares.items()
        ),
        broken_by=found.broken_counts(),
        warnings=tuple(found.warnings),
        curve=QueryCurve(**found.square_curve()) if found.attacks == ("square",) else None,
        seconds=seconds,
        programs=found.programs,
        padding=round(found.padding, 4),
    )


def attack_record(name: str, eps: float, norm: str, seed: int, examples: int) -> Attack:
    """The suite's parameters, in the form of an attack's; examples: 0 for the whole test set."""
    suite = SUITES[name]
    return Attack(
        label=suite.label + (f", first {examples}" if examples else ""),
        parameters={
            "name": name,
            "eps": eps,
            "norm": norm,
            "version": suite.version,
            "attacks": [member.name for member in suite.members],
            "steps": max(member.steps for member in suite.members),
            "restarts": max(member.restarts for member in suite.members),
            "queries": suite.queries,
            "seed": seed,
        },
    )


def add_result(results: ExampleResults, name: str, found: AutoAttackResult) -> None:
    """Puts the suite's result into the network's results; it may be of the first images only."""
    results.correct[name], results.predicted[name] = found.robust, found.predicted
    results.suites[name] = found


def forget_state(state_dir: Path, results: Iterable[ExampleResults]) -> None:
    """Removes the stored batches of finished results; of several processes the lead does."""
    if not is_lead():
        return
    for found in (suite for one in results for suite in one.suites.values()):
        shutil.rmtree(Path(state_dir) / found.identity, ignore_errors=True)
    if Path(state_dir).is_dir() and not any(Path(state_dir).iterdir()):
        Path(state_dir).rmdir()
