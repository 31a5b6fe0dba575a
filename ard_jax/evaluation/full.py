"""The evaluation that ends a run, and `--mode=evaluate`: evaluation.json, flags and the report."""

import dataclasses
import datetime
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import __version__, models
from ard_jax.config import build
from ard_jax.config.parse import to_dict
from ard_jax.config.schema import Experiment
from ard_jax.data import ArrayDataset
from ard_jax.evaluation import autoattack
from ard_jax.evaluation.accuracies import summarize
from ard_jax.evaluation.evaluator import Evaluator, Flags, evaluate_sweep
from ard_jax.io.files import write_text_atomic
from ard_jax.io.metric_writer import read_metrics
from ard_jax.io.progress import Progress
from ard_jax.models import ModelBundle
from ard_jax.reporting import report
from ard_jax.runtime import sharding
from ard_jax.runtime.distributed import is_lead

# Attacks whose images are transferred from the teachers, as the authors' black-box evaluation does.
TRANSFER = ("pgd_trades", "cw_inf")


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A network to be evaluated.

    Attributes:
      title: row of the tables, "student (best)".
      role: "student", "teacher", or "source" of transferred attacks alone.
      bundle: the network.
      variables: its variables, replicated.
      evaluator: its compiled programs, shared by all variables of one architecture and role.
      step: update at which it was saved; None for an original teacher.
      epoch: likewise.
      sweep: whether to measure accuracy over a range of eps; among students that of the best checkpoint.
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
    state_dir: Path | None = None,
) -> tuple[dict[str, Any], dict[str, Flags]]:
    """Every subject under every attack; students also on the images that fooled each source.

    Args:
      experiment: eps, seed and what else to measure.
      dataset: test images.
      subjects: networks, in the order of the tables.
      sources: role -> one of the subjects, whose adversarial images are transferred to the students.
      attack_names: names of `attacks.make` or `attacks.SUITES`.
      state_dir: folder that keeps AutoAttack's finished batches, for a second start.

    Returns:
      (evaluation record without teachers and timing, {title: flags}).
    """
    e, (plain, chosen) = experiment, autoattack.split_names(attack_names)
    specs = {name: build.evaluation_attack(name, e) for name in plain}
    records = {name: _spec_record(spec) for name, spec in specs.items()}
    lead = None if is_lead() else False
    first = _first_equal(subjects, sources)
    different = [s for s in subjects if first[s.title] is s]
    progress = Progress(len(different), description="final evaluation", enabled=lead)
    flags, sweeps, found = {}, {}, {}
    # Sources first: their attacks' images are given to the students as they are made.
    for subject in sorted(different, key=lambda s: s not in sources.values()):
        progress.message(f"evaluating {subject.title} on {len(dataset)} images")
        flags[subject.title] = _evaluate_one(
            e, dataset, subject, different, sources, specs, progress
        )
        if subject.sweep and e.eval.eps_sweep:
            sweeps[subject.title] = _sweep(e, dataset, subject)
        progress.update(1)
    progress.close()
    suite_records = _run_suites(e, dataset, different, chosen, flags, records, state_dir)
    if e.eval.transfer:
        _give_transfer(e, flags, different, sources, records)
    for subject in different:
        net = summarize(flags[subject.title], dataset.num_classes, [*specs, *chosen])
        net["noise"] = autoattack.noise_accuracy(
            subject.evaluator, subject.variables, dataset, e.eps, e.norm
        )
        found[subject.title] = net
    nets, warnings = {}, []
    for subject in subjects:
        title, same = subject.title, first[subject.title].title
        flags[title], net = flags[same], _net_record(subject) | found[same]
        if same in suite_records:
            net["autoattack"] = suite_records[same]
        if same in sweeps:
            net["eps_sweep"] = sweeps[same]
        nets[title] = net
        if title == same:
            warnings += _warnings(title, net, specs)
            warnings += autoattack.warnings(title, flags[title], net, specs)
    ordered = {s.title: dataclasses.replace(flags[s.title], others={}) for s in subjects}
    notes = _notes(e, subjects, first, chosen, suite_records)
    return _record(e, dataset, records, nets, warnings, notes), ordered


def _first_equal(subjects: list[Subject], sources: dict[str, Subject]) -> dict[str, Subject]:
    """Returns, by title, the first subject that has the same arrays; mostly the subject itself."""
    found: dict[str, Subject] = {}
    for subject in [*sources.values(), *subjects]:
        equal = (o for o in found.values() if _is_equal(o, subject))
        found.setdefault(subject.title, next(equal, subject))
    return found


def _is_equal(a: Subject, b: Subject) -> bool:
    # The comparison runs on the devices: a process reads its answer, not the arrays.
    if a.evaluator is not b.evaluator or a.role != b.role:
        return False
    leaves = zip(*map(jax.tree.leaves, (a.variables, b.variables)), strict=True)
    return all(bool(jnp.array_equal(x, y)) for x, y in leaves)


def _notes(e, subjects, first, chosen, suite_records) -> list[str]:
    """Returns the notes on rows that are copies, and on networks that AutoAttack did not attack."""
    notes = [
        f"{s.title} is the same network as {first[s.title].title}: evaluated once."
        for s in subjects
        if first[s.title] is not s
    ]
    left = [s.title for s in subjects if s.role != "source"]
    left = [title for title in left if first[title].title not in suite_records]
    if chosen and suite_records and left:
        labels = ", ".join(autoattack.SUITES[name].label for name in chosen)
        notes.append(
            f"{labels} not run on {', '.join(left)} (config.eval.autoattack_nets="
            f"{e.eval.autoattack_nets!r}), whose worst case is over the other attacks; "
            "--config.eval.autoattack_nets=students attacks the last checkpoint too, =all every network."
        )
    return notes


def _evaluate_one(e, dataset, subject, subjects, sources, specs, progress) -> Flags:
    watch = {}
    if e.eval.transfer and subject in sources.values():
        watch = {s.title: (s.evaluator, s.variables) for s in subjects if s.role == "student"}
        specs = specs | {name: build.evaluation_attack(name, e) for name in TRANSFER}
    flags = subject.evaluator.run(
        subject.variables,
        dataset,
        specs,
        watch=watch,
        progress=lambda text: progress.update(0, {subject.title: text}),
    )
    return flags


def _run_suites(e, dataset, subjects, names, flags, records, state_dir) -> dict[str, dict]:
    """AutoAttack and its like into `flags` and `records`; returns network -> suite -> record."""
    count = min(e.eval.autoattack_examples or len(dataset), len(dataset))
    part = dataset.subset(np.arange(count))
    found: dict[str, dict] = {}
    wanted = {
        "all": [s for s in subjects if s.role != "source"],
        "students": [s for s in subjects if s.role == "student"],
        "best": [s for s in subjects if s.role == "student" and s.sweep],
    }[e.eval.autoattack_nets]
    for subject in wanted:
        for name in names:
            ran = autoattack.run_suite(
                subject.evaluator, subject.variables, part, name, eps=e.eps, norm=e.norm,
                state_dir=state_dir, title=subject.title,
            )  # fmt: skip
            if ran is None:
                continue
            autoattack.add_result(flags[subject.title], name, ran[0])
            found.setdefault(subject.title, {})[name] = ran[1]
            records[name] = autoattack.attack_record(
                name, e.eps, e.norm, e.eval.seed, count if count < len(dataset) else 0
            )
    return found


def _sweep(e: Experiment, dataset: ArrayDataset, subject: Subject) -> dict[str, Any]:
    radii = [factor * e.eps for factor in e.eval.eps_sweep]
    return evaluate_sweep(
        subject.evaluator, subject.variables, dataset, "pgd_sat", radii,
        lambda eps: build.evaluation_attack("pgd_sat", e, eps),
    )  # fmt: skip


def _give_transfer(e, flags, subjects, sources, records) -> None:
    """Moves what the students said to each source's images into the students' own flags."""
    for role, source in sources.items():
        for attack in TRANSFER:
            name, spec = f"transfer_{attack}_{role}", build.evaluation_attack(attack, e)
            records[name] = _spec_record(spec, f"{spec.label} through {source.title}")
            for student in (s.title for s in subjects if s.role == "student"):
                seen = flags[source.title].others[student]
                flags[student].correct[name] = seen.correct[attack]
                flags[student].predicted[name] = seen.predicted[attack]
    for source in sources.values():
        own = flags[source.title]
        for attack in set(TRANSFER) - set(records):
            del own.correct[attack], own.predicted[attack]


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


def _warnings(title: str, record: dict[str, Any], specs: dict[str, Any]) -> list[str]:
    # A targeted attack may well push wrong examples onto the right class.
    untargeted = [n for n, spec in specs.items() if spec.loss != "least_likely"]
    return [
        f"{title}: accuracy under {name} is above clean accuracy; the attack does not work on it"
        for name in untargeted
        if record["attacks"][name]["accuracy"] > record["clean"] + 0.01
    ]


def _record(e: Experiment, dataset: ArrayDataset, labels, nets, warnings, notes) -> dict[str, Any]:
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
        "notes": notes,
    }


def example_images(
    e: Experiment, dataset: ArrayDataset, subject: Subject, flags: Flags
) -> dict[str, np.ndarray]:
    """Clean and adversarial images of the first test examples, for the report's grid."""
    name = e.eval.select_attack
    spec = build.evaluation_attack(name, e)
    evaluator, count = (
        subject.evaluator,
        min(e.eval.grid, len(dataset), subject.evaluator.batch_size),
    )
    index, batch, _ = next(iter(evaluator.batches(dataset)))
    adversarial = evaluator.attack(spec, subject.variables, batch["image"], batch["label"], index)
    predicted = evaluator.predict(subject.variables, adversarial)
    return {
        "clean": sharding.gather(batch["image"])[:count],
        "adversarial": sharding.gather(adversarial)[:count],
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
    "/predicted"; of AutoAttack also "/broken_by" (text), "/queries" (Square's) and, for each stage,
    "/after/<attack>". It may be of the first images only. With config.eval.save_images the images that
    AutoAttack found are "<network>/<attack>" of evaluation_images.npz. evaluation.json comes last:
    where it is, the others are complete.

    Of several processes the lead writes.

    Returns:
      The report's path.
    """
    if not is_lead():
        return folder / report.REPORT_FILE
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for net, result in flags.items():
        arrays["labels"] = result.labels
        for attack in result.correct:
            arrays[f"{net}/{attack}/correct"] = result.correct[attack]
            arrays[f"{net}/{attack}/predicted"] = result.predicted[attack]
        for attack, found in result.suites.items():
            arrays[f"{net}/{attack}/broken_by"] = found.broken_by
            arrays[f"{net}/{attack}/queries"] = found.queries
            for stage, robust in found.stages.items():
                arrays[f"{net}/{attack}/after/{stage}"] = robust
    _save_arrays(folder / "evaluation_flags.npz", arrays)
    if evaluation["config"]["eval"].get("save_images"):
        found = {f"{n}/{a}": s.images for n, r in flags.items() for a, s in r.suites.items()}
        _save_arrays(folder / "evaluation_images.npz", found)
    report.write_csv(evaluation, folder / "evaluation.csv")
    write_text_atomic(folder / "evaluation.md", report.markdown_table(evaluation))
    path = report.write_report(folder, evaluation, read_metrics(folder / "metrics.jsonl"), images)
    write_text_atomic(folder / "evaluation.json", json.dumps(evaluation, indent=1))
    return path


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_suffix(".tmp.npz")
    np.savez_compressed(partial, **arrays)
    partial.replace(path)
