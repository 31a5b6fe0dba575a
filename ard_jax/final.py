"""The evaluation that ends a run, and `--mode=evaluate`: evaluation.json, flags and the report."""

import dataclasses
import datetime
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ard_jax import __version__, models, networks, report
from ard_jax.config import Experiment, to_dict
from ard_jax.data import ArrayDataset
from ard_jax.evaluate import Evaluator, Flags, evaluate_sweep, summarize
from ard_jax.models import ModelBundle
from ard_jax.writers import Progress, read_metrics, write_text_atomic


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network to be evaluated.

    Attributes:
      title: row of the tables, "student (best)".
      role: "student" or "teacher".
      bundle: the network.
      variables: its variables, replicated.
      evaluator: its compiled programs, shared by all variables of one architecture and role.
      step: update at which it was saved; None for an original teacher.
      epoch: likewise.
      sweep: whether to measure accuracy over a range of eps.
    """

    title: str
    role: str
    bundle: ModelBundle
    variables: Any
    evaluator: Evaluator
    step: int | None = None
    epoch: int | None = None
    sweep: bool = False


def evaluate_all(
    experiment: Experiment,
    dataset: ArrayDataset,
    subjects: list[Subject],
    sources: dict[str, Subject],
    attack_names: Iterable[str],
) -> tuple[dict[str, Any], dict[str, Flags]]:
    """Every subject under every attack, students also on images attacked through each source.

    Returns:
      (evaluation record without teachers and timing, {title: flags}).
    """
    e = experiment
    specs = {name: networks.evaluation_attack(name, e) for name in attack_names}
    nets, flags, warnings = {}, {}, []
    passes = sum(1 + len(specs) for _ in subjects)
    progress = Progress(passes, description="final evaluation", enabled=None)
    labels = {name: _spec_record(spec) for name, spec in specs.items()}
    for subject in subjects:
        transfer = _transfer(e, subject, sources)
        labels |= {
            n: _spec_record(s, f"{s.label} through {v}") for n, (_, _, s, v) in transfer.items()
        }
        progress.message(f"evaluating {subject.title} on {len(dataset)} images")
        flags[subject.title] = subject.evaluator.run(
            subject.variables,
            dataset,
            specs,
            transfer={n: t[:3] for n, t in transfer.items()},
            progress=lambda text, s=subject: progress.update(0, {s.title: text}),
        )
        progress.update(1 + len(specs), {})
        record = _net_record(subject) | summarize(flags[subject.title], dataset.num_classes, specs)
        if subject.sweep and e.eval.eps_sweep:
            record["eps_sweep"] = evaluate_sweep(
                subject.evaluator, subject.variables, dataset, "pgd_sat",
                [f * e.eps for f in e.eval.eps_sweep],
                lambda eps: networks.evaluation_attack("pgd_sat", e, eps),
            )  # fmt: skip
        nets[subject.title] = record
        warnings += _warnings(subject.title, record)
    progress.close()
    return _record(e, dataset, labels, nets, warnings), flags


def _transfer(e: Experiment, subject: Subject, sources: dict[str, Subject]) -> dict[str, tuple]:
    if subject.role != "student" or not e.eval.transfer:
        return {}
    return {
        f"transfer_{attack}_{role}": (
            source.evaluator,
            source.variables,
            networks.evaluation_attack(attack, e),
            source.title,
        )
        for role, source in sources.items()
        for attack in ("pgd_trades", "cw_inf")
    }


def _spec_record(spec: Any, label: str = "") -> dict[str, Any]:
    return dataclasses.asdict(spec) | {"label": label or spec.label}


def _net_record(subject: Subject) -> dict[str, Any]:
    return {
        "role": subject.role,
        "model": subject.bundle.name,
        "num_params": models.num_params(subject.bundle),
        "step": subject.step,
        "epoch": subject.epoch,
    }


def _warnings(title: str, record: dict[str, Any]) -> list[str]:
    stronger = [n for n, a in record["attacks"].items() if a["accuracy"] > record["clean"] + 0.01]
    return [
        f"{title}: accuracy under {name} is above clean accuracy; the attack does not work on it"
        for name in stronger
    ]


def _record(e: Experiment, dataset: ArrayDataset, labels, nets, warnings) -> dict[str, Any]:
    import flax
    import optax

    versions = {m.__name__: m.__version__ for m in (jax, flax, optax)} | {"ard_jax": __version__}
    return {
        "schema": 1,
        "name": e.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": e.seed,
        "dataset": {
            "name": dataset.name,
            "split": dataset.split,
            "num_examples": len(dataset),
            "num_classes": dataset.num_classes,
            "class_names": list(dataset.class_names),
            "image_shape": list(dataset.image_shape),
        },
        "eps": e.eps,
        "norm": e.norm,
        "select_on": e.select_on,
        "command": " ".join(["python", "-m", "ard_jax.main", *sys.argv[1:]]),
        "versions": versions | {"backend": jax.default_backend()},
        "config": to_dict(e),
        "attacks": labels,
        "teachers": {},
        "nets": nets,
        "warnings": warnings,
    }


def example_images(
    e: Experiment, dataset: ArrayDataset, subject: Subject, flags: Flags
) -> dict[str, np.ndarray]:
    """Clean and adversarial images of the first test examples, for the report's grid."""
    name = e.eval.select_attack
    spec = networks.evaluation_attack(name, e)
    evaluator, count = (
        subject.evaluator,
        min(e.eval.grid, len(dataset), subject.evaluator.batch_size),
    )
    index, batch, _ = next(iter(evaluator.batches(dataset)))
    adversarial = evaluator.attack(spec, subject.variables, batch["image"], batch["label"], index)
    predicted = evaluator.predict(subject.variables, adversarial)
    return {
        "clean": np.asarray(batch["image"])[:count],
        "adversarial": np.asarray(adversarial)[:count],
        "labels": np.asarray(dataset.labels)[:count],
        "predicted_clean": flags.predicted["clean"][:count],
        "predicted_adversarial": predicted[:count],
    }


def save(
    folder: Path,
    evaluation: dict[str, Any],
    flags: dict[str, Flags],
    images: dict[str, np.ndarray] | None,
) -> Path:
    """Writes evaluation.json, evaluation_flags.npz, evaluation.csv, .md and report.html.

    The .npz holds "labels", and for each network and attack "<network>/<attack>/correct" and
    "/predicted". evaluation.json comes last: where it is, the others are complete.

    Returns:
      The report's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for net, result in flags.items():
        arrays["labels"] = result.labels
        for attack in result.correct:
            arrays[f"{net}/{attack}/correct"] = result.correct[attack]
            arrays[f"{net}/{attack}/predicted"] = result.predicted[attack]
    partial = folder / "evaluation_flags.tmp.npz"
    np.savez_compressed(partial, **arrays)
    partial.replace(folder / "evaluation_flags.npz")
    report.write_csv(evaluation, folder / "evaluation.csv")
    write_text_atomic(folder / "evaluation.md", report.markdown_table(evaluation))
    path = report.write_report(folder, evaluation, read_metrics(folder / "metrics.jsonl"), images)
    write_text_atomic(folder / "evaluation.json", json.dumps(evaluation, indent=1))
    return path
