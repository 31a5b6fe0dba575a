"""AutoAttack, its members and noise in the evaluation of a run: running them and recording them."""

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import rng
from ard_jax.attacks import registry, threat_model
from ard_jax.attacks.auto_attack import diagnostics
from ard_jax.attacks.auto_attack.attack import AutoAttackResult, run
from ard_jax.attacks.auto_attack.versions import SUITES, Member
from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation.accuracies import confidence_interval
from ard_jax.evaluation.evaluator import Evaluator, Flags
from ard_jax.runtime.distributed import is_lead

NOISES = ("uniform", "gaussian")


def split_names(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(names of `attacks.make`, names of `SUITES`), each in the order given.

    Raises:
      ValueError: a name that is neither.
    """
    names = list(names)
    for name in names:
        threat_model.check_choice("attack", name, [*registry.names(), *SUITES])
    return [n for n in names if n not in SUITES], [n for n in names if n in SUITES]


def defined_members(name: str, num_classes: int) -> tuple[tuple[Member, ...], list[str]]:
    """(the suite's attacks whose losses exist for so few classes, warnings)."""
    wanted = SUITES[name].members
    kept = tuple(member for member in wanted if member.min_classes <= num_classes)
    left = [member.name for member in wanted if member not in kept]
    if not left:
        return kept, []
    return kept, [
        f"{SUITES[name].label} without {', '.join(left)}, which need more than {num_classes} classes: "
        "an upper bound, not AutoAttack"
    ]


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
    progress: bool | None = None,
) -> tuple[AutoAttackResult, dict[str, Any]] | None:
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
      progress: see `attacks.autoattack`.

    Returns:
      (result, record for evaluation.json); None where none of its attacks is defined.
    """
    suite, started = SUITES[name], time.monotonic()
    chosen, warnings = defined_members(name, dataset.num_classes)
    if not chosen:
        return None
    found = run(
        evaluator.engine, variables, np.asarray(dataset.images, np.float32) / np.float32(255),
        dataset.labels, chosen, version="custom" if warnings else suite.version, eps=eps, norm=norm,
        seed=evaluator.seed, state_dir=state_dir, progress=progress,
        title=f"{title} {suite.label}".strip(),
    )  # fmt: skip
    found.warnings.extend(warnings)
    return found, _record(name, found) | {"seconds": round(time.monotonic() - started, 1)}


def _record(name: str, found: AutoAttackResult) -> dict[str, Any]:
    count = len(found.robust)
    stages = [
        {"attack": stage, "accuracy": float(flags.mean())}
        | {"ci95": confidence_interval(float(flags.mean()), count)}
        for stage, flags in found.stages.items()
    ]
    record = {
        "label": SUITES[name].label,
        "version": found.version,
        "upper_bound": found.upper_bound,
        "num_examples": count,
        "clean": float(found.clean.mean()),
        "stages": stages,
        "broken_by": found.broken_counts(),
        "warnings": list(found.warnings),
    }
    if found.attacks == ("square",):
        record["curve"] = found.square_curve()
    return record


def attack_record(name: str, eps: float, norm: str, seed: int, examples: int) -> dict[str, Any]:
    """The suite's parameters, in the form of an `Attack`'s; examples: 0 for the whole test set."""
    suite = SUITES[name]
    return {
        "name": name,
        "label": suite.label + (f", first {examples}" if examples else ""),
        "eps": eps,
        "norm": norm,
        "version": suite.version,
        "attacks": [member.name for member in suite.members],
        "steps": max(member.steps for member in suite.members),
        "restarts": max(member.restarts for member in suite.members),
        "queries": suite.queries,
        "seed": seed,
    }


def add_result(flags: Flags, name: str, found: AutoAttackResult) -> None:
    """Puts the suite's result into the network's flags; it may be of the first images only."""
    flags.correct[name], flags.predicted[name] = found.robust, found.predicted
    flags.suites[name] = found


def forget_state(state_dir: Path, flags: Iterable[Flags]) -> None:
    """Removes the stored batches of finished results; of several processes the lead does."""
    if not is_lead():
        return
    for found in (result for one in flags for result in one.suites.values()):
        shutil.rmtree(Path(state_dir) / found.identity, ignore_errors=True)
    if Path(state_dir).is_dir() and not any(Path(state_dir).iterdir()):
        Path(state_dir).rmdir()


def noise_accuracy(
    evaluator: Evaluator, variables: Any, dataset: ArrayDataset, eps: float, norm: str
) -> dict[str, Any]:
    """Accuracy under noise of the attacks' size, one draw for each image: {"uniform": ..., ...}.

    Linf: uniform in [-eps, eps], or normal with standard deviation eps cut to that. L2: a uniform or a
    normal direction of length eps. Both then cut to [0,1]: noise is a weak attack of the same budget,
    so a robust accuracy above it is a fault of the attack.
    """

    def program(kind):
        def noisy(_, images, key, eps):
            draw = jax.random.uniform if kind == "uniform" else jax.random.normal
            limits = {"minval": -1.0, "maxval": 1.0} if kind == "uniform" else {}
            noise = draw(key, images.shape, images.dtype, **limits)
            noise = noise if norm == "linf" else threat_model.ascent_direction(noise, "l2")
            return jnp.clip(threat_model.project(images + eps * noise, images, eps, norm), 0.0, 1.0)

        return noisy

    found = {}
    for kind in NOISES:
        right, key = [], rng.stream(jax.random.key(evaluator.seed), f"{kind} noise")
        for index, batch, host in evaluator.batches(dataset):
            noisy = evaluator.transform(
                f"{kind} noise {norm}", program(kind), variables, batch["image"],
                jax.random.fold_in(key, index), eps,
            )  # fmt: skip
            predicted = evaluator.predict(variables, noisy)
            right.append((predicted == host["label"])[host["mask"]])
        found[kind] = float(np.concatenate(right).mean())
    return found


def warnings(title: str, flags: Flags, record: dict[str, Any], specs: dict[str, Any]) -> list[str]:
    """What a reader must know of one network's numbers.

    Args:
      title: of the network.
      flags: its flags.
      record: its entry of evaluation.json, with "attacks", "noise" and perhaps "autoattack".
      specs: the other attacks made on it, name -> Attack.
    """
    found = [
        f"{title}: {one['label']}: {text}"
        for one in record.get("autoattack", {}).values()
        for text in one["warnings"]
    ]
    # A targeted attack may well push wrong examples onto the right class.
    untargeted = [n for n, spec in specs.items() if spec.loss != "least_likely"]
    if "autoattack" in flags.suites and untargeted:
        robust = flags.correct["autoattack"]
        shares = {n: float(flags.correct[n][: len(robust)].mean()) for n in untargeted}
        strongest = min(shares, key=shares.__getitem__)
        gap = shares[strongest] - float(robust.mean())
        if gap > diagnostics.MASKING_GAP:
            label = registry.label_of(strongest)
            after_ce = flags.suites["autoattack"].stages.get("apgd-ce", flags.correct["clean"])
            weak = float(after_ce.mean() - robust.mean()) <= diagnostics.MASKING_GAP
            found.append(f"{title}: {diagnostics.masking_text(label, gap, weak)}")
    for kind, accuracy in record.get("noise", {}).items():
        above = [n for n in (*untargeted, *flags.suites) if _above(flags, n, accuracy)]
        if above:
            found.append(
                f"{title}: accuracy under {', '.join(above)} is above that under {kind} noise of the same "
                f"size ({100 * accuracy:.2f} %): these attacks do not work on it"
            )
    return found


def _above(flags: Flags, name: str, accuracy: float) -> bool:
    # Of a part of the images no comparison with noise on all of them is fair.
    return len(flags.correct[name]) == len(flags.labels) and flags.accuracy(name) > accuracy + 1e-9
