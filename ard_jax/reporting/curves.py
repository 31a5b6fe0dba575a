"""Training curves of a page, out of the records of metrics.jsonl."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from ard_jax.reporting import plots
from ard_jax.reporting.plots import Line
from ard_jax.reporting.record import Evaluation, label, number

_NOT_CURVES = ("step", "epoch", "time", "num_examples")
_MOST_POINTS = 300  # of one curve
_MOST_OTHER_CURVES = 12
_SPLIT_LINES = {"train": ":", "validation": "-", "test": "--"}
_GROUPS = {
    "Loss terms": r"loss.*",
    "Learning rates": r"lr(_.*)?",
    "Temperatures": r"temp_.*|.*temperature",
    "Push scale": r"push_scale",
    "Entropies": r"entropy_.*",
}


def series(records: list[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the numeric fields of records over "step": name -> (steps [n], values [n]), float64.

    Sorted by step; infinities become NaN. Of two records of the same step the later counts: a
    resumed run evaluates a step again. Long curves are averaged to 300 points.
    """
    found: dict[str, dict[float, float]] = {}
    for record in records:
        step = number(record.get("step"))
        for name, value in record.items():
            value = number(value)
            if step is not None and value is not None and name not in _NOT_CURVES:
                found.setdefault(name, {})[step] = value
    curves = {}
    for name, points in found.items():
        steps = np.array(sorted(points))
        values = np.array([points[step] for step in steps])
        values[~np.isfinite(values)] = np.nan
        curves[name] = _thin(steps, values)
    return curves


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages neighbours until at most `_MOST_POINTS` are left; NaN only where all are NaN."""
    if len(steps) <= _MOST_POINTS:
        return steps, values
    chunks = np.array_split(np.arange(len(steps)), _MOST_POINTS)
    kept = [chunk[np.isfinite(values[chunk])] for chunk in chunks]
    means = [values[good].mean() if len(good) else np.nan for good in kept]
    return np.array([steps[chunk].mean() for chunk in chunks]), np.array(means)


def _marks(evaluation: Evaluation, metrics: list[dict]) -> list[tuple[float, str]]:
    """Steps worth seeing in every curve: the best checkpoint, and what started at a step."""
    marks = []
    for record in metrics:
        event, step = str(record.get("event", "")), number(record.get("step"))
        if record.get("kind") == "event" and event.endswith("_started") and step is not None:
            marks.append((step, event.removesuffix("_started")))
    nets = evaluation.nets.items()
    best = [
        net.step for title, net in nets if "best" in title and net.role == "student" and net.step
    ]
    return marks + [(step, "best") for step in best[:1]]


def _of_training(metrics: list[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return series([record for record in metrics if record.get("kind") == "train"])


def _accuracies(evaluation: Evaluation, metrics: list[dict]) -> dict[str, list[Line]]:
    """Network -> accuracies over steps, those of its training batches first."""
    evals: dict[tuple[str, str], list[dict]] = {}
    for record in metrics:
        if record.get("kind") == "eval":
            key = (str(record.get("net", "student")), str(record.get("split", "")))
            evals.setdefault(key, []).append(record)
    found: dict[str, list[Line]] = {}
    for name, points in _of_training(metrics).items():
        if "accuracy" in name:
            # Only a robust teacher learns while a student does.
            net = "robust" if name.startswith("teacher_") else "student"
            short = name.removeprefix("teacher_")
            short = {"accuracy": "clean", "robust_accuracy": "robust"}.get(short, name)
            style = {"linestyle": ":", "color": plots.COLOURS["robust" in name]}
            found.setdefault(net, []).append(Line(f"train: {short}", *points, style))
    for (net, split), records in evals.items():
        for index, (name, points) in enumerate(series(records).items()):
            seen = points[1][np.isfinite(points[1])]
            if seen.size and not 0 <= seen.min() <= seen.max() <= 1:
                continue  # not a fraction
            style = {"color": plots.COLOURS[index % 8], "linestyle": _SPLIT_LINES.get(split, "-")}
            attack = name.removesuffix("_on_student")
            on = "" if attack == name else " on the student"
            text = f"{split}: {label(evaluation, attack)}{on}".lstrip(": ")
            found.setdefault(net, []).append(Line(text, *points, style))
    return found


def chance(evaluation: Evaluation) -> float | None:
    """Accuracy of guessing; None where the number of classes is not known."""
    classes = evaluation.dataset.num_classes
    return 1 / classes if classes else None


def _titled(evaluation: Evaluation, net: str) -> str:
    return f"{net} teacher" if net in evaluation.teachers else net


def figures(
    evaluation: Evaluation,
    metrics: list[dict],
    teachers: Mapping[str, list[dict]] | None = None,
) -> list[tuple[str, Markup]]:
    """All training curves as (title, SVG): of the run, and of the teachers' own trainings.

    Args:
      evaluation: of the run.
      metrics: the records of its metrics.jsonl.
      teachers: role -> records of the training that made this teacher.
    """
    groups: dict[str, list[Line]] = {title: [] for title in _GROUPS}
    for name, points in _of_training(metrics).items():
        if "accuracy" not in name:
            named = (title for title, form in _GROUPS.items() if re.fullmatch(form, name))
            title = next(named, name.replace("_", " ").capitalize())
            groups.setdefault(title, []).append(Line(name, *points))
    fractions: dict[str, Any] = {"chance": chance(evaluation), "percent": True}
    marks = _marks(evaluation, metrics)
    kept = [*groups.items()][: len(_GROUPS) + _MOST_OTHER_CURVES]
    shown: list[tuple[str, list[Line], dict[str, Any]]]
    shown = [(title, lines, {"marks": marks}) for title, lines in kept]
    shown[1:1] = [
        (f"Accuracy: {_titled(evaluation, net)}", lines, fractions | {"marks": marks})
        for net, lines in _accuracies(evaluation, metrics).items()
    ]
    for role, records in (teachers or {}).items():
        title = f"{role.capitalize()} teacher's own training"
        lines = _accuracies(evaluation, records).get("student", [])
        shown.append((f"{title}: accuracy", lines, fractions))
        losses = [Line(n, *p) for n, p in _of_training(records).items() if n.startswith("loss")]
        shown.append((f"{title}: loss terms", losses, {}))
    return [
        (title, plots.lines(f"c{index}", title, lines, **options))
        for index, (title, lines, options) in enumerate(shown)
        if lines
    ]
