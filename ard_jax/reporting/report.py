"""Tables and the HTML report of a run, out of evaluation.json and metrics.jsonl.

Everything here takes the evaluation record that `evaluate` writes: a dict with "nets" (name ->
"clean", "attacks", "worst_case", ...), "attacks" (name -> parameters), "teachers", "dataset",
"select_on", "warnings", "notes". Accuracies are fractions in [0, 1] there and percentages in the tables.
Parts that are missing are left out of the output, never an error: a report of half a run is worth
having.
"""

import csv
import io
import math
import numbers
import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from ard_jax.io.files import write_text_atomic
from ard_jax.reporting import report_autoattack

Points = tuple[np.ndarray, np.ndarray]

REPORT_FILE = "report.html"
CSV_COLUMNS = (
    "net role model step attack label accuracy ci95_low ci95_high weighted nrr worst_class".split()
)
_MISSING = "-"
_NOT_CURVES = ("step", "epoch", "time", "num_examples")
_MOST_POINTS = 300  # of one curve
_HEADER_WIDTH = 12  # longer column titles are wrapped


def number(value: Any) -> float | None:
    """Returns a float, also from our JSON's strings "nan" and "inf"; None for anything else."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return float(value)


def percent(value: Any, digits: int = 2, missing: str = _MISSING) -> str:
    """Formats a fraction as a percentage without the sign: 0.6125 -> "61.25"."""
    value = number(value)
    return missing if value is None else f"{100 * value:.{digits}f}"


def eps_text(value: Any) -> str:
    """Formats a distance in [0, 1] pixel units the way papers do: "8/255", but "0.2" and "0"."""
    value = number(value)
    if value is None:
        return _MISSING
    if not math.isfinite(value) or math.isclose(value, round(value, 3), abs_tol=1e-7):
        return f"{value:.4g}"
    levels = 255 * value
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-3 else f"{value:.4g}"


def attack_names(evaluation: dict) -> list[str]:
    """Returns all attacks, in the order of the record; those that only a net names come last."""
    names = dict.fromkeys(evaluation.get("attacks") or {})
    for net in (evaluation.get("nets") or {}).values():
        names.update(dict.fromkeys(net.get("attacks") or {}))
    return list(names)


def attack_label(evaluation: dict, name: str) -> str:
    """Returns the printed name of an attack, for example "PGD_sat" for "pgd_sat"."""
    return str(((evaluation.get("attacks") or {}).get(name) or {}).get("label") or name)


def main_attack(evaluation: dict) -> str | None:
    """Returns the attack whose weighted robust accuracy heads the report; None without attacks.

    It is the record's "main_attack" if it has one, else AutoAttack, pgd_sat, pgd_trades, the first.
    """
    names = attack_names(evaluation)
    wanted = [evaluation.get("main_attack"), "autoattack", "pgd_sat", "pgd_trades", *names]
    return next((name for name in wanted if name in names), None)


def weighted(net: dict, attack: str | None) -> float | None:
    """Weighted robust accuracy (clean + robust) / 2 of one net under one attack, a fraction."""
    result = (net.get("attacks") or {}).get(attack) or {}
    if number(result.get("weighted")) is not None:
        return number(result["weighted"])
    clean, robust = number(net.get("clean")), number(result.get("accuracy"))
    return None if clean is None or robust is None else (clean + robust) / 2


def selection_note(evaluation: dict) -> str:
    """Says on which split the best checkpoint was chosen; "" when the record does not say."""
    split = evaluation.get("select_on")
    if not split:
        return ""
    if split == "test":
        return (
            "The best checkpoint was selected on the TEST set, as the papers do: "
            "its numbers here are optimistic."
        )
    return f"The best checkpoint was selected on the {split} split; the test set played no part."


def _result_table(evaluation: dict) -> tuple[list[str], list[list[str]]]:
    """The main table: its titles, and one row of formatted cells for each net."""
    attacks, main = attack_names(evaluation), main_attack(evaluation)
    titles = ["net", "clean", *(attack_label(evaluation, name) for name in attacks)]
    if attacks:
        titles += ["worst case", f"weighted {attack_label(evaluation, main)}"]
    rows = []
    for name, net in (evaluation.get("nets") or {}).items():
        results = net.get("attacks") or {}
        row = [str(name), percent(net.get("clean"))]
        row += [percent((results.get(attack) or {}).get("accuracy")) for attack in attacks]
        if attacks:
            row.append(percent((net.get("worst_case") or {}).get("accuracy")))
            row.append(percent(weighted(net, main)))
        rows.append(row)
    return titles, rows


def align(titles: list[str], rows: list[list[str]], width: int) -> list[str]:
    """Lays a table out: first column to the left, numbers to the right, folded at `width`."""
    heads = [[titles[0]]]
    for title in titles[1:]:
        if max(map(len, title.split()), default=0) > 1.5 * _HEADER_WIDTH:
            title = title.replace("_", " ")
        heads.append(textwrap.wrap(title, _HEADER_WIDTH, break_long_words=False) or [""])
    widths = [
        max(len(text) for text in [*head, *(row[column] for row in rows)])
        for column, head in enumerate(heads)
    ]
    blocks, used = [[]], widths[0]
    for column in range(1, len(titles)):
        if blocks[-1] and used + 2 + widths[column] > width:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(column)
        used += 2 + widths[column]
    lines = []
    for block in blocks:
        tall = max(len(heads[column]) for column in [0, *block])
        top = [[""] * (tall - len(head)) + head for head in heads]
        table = [[cells[line] for cells in top] for line in range(tall)]
        rule = "-" * (widths[0] + sum(2 + widths[column] for column in block))
        body = [
            row[0].ljust(widths[0]) + "".join("  " + row[c].rjust(widths[c]) for c in block)
            for row in [*table, *rows]
        ]
        lines += [*([""] if lines else []), *body[:tall], rule, *body[tall:]]
    return [line.rstrip() for line in lines]


def teacher_lines(evaluation: dict) -> list[str]:
    """One line per teacher: its source, its model, and its accuracies in percent."""
    lines = []
    for name, teacher in (evaluation.get("teachers") or {}).items():
        accuracy = ", ".join(
            f"{key if key == 'clean' else attack_label(evaluation, key)} {percent(value)} %"
            for key, value in (teacher.get("accuracy") or {}).items()
        )
        model = f" ({teacher['model']})" if teacher.get("model") else ""
        source = teacher.get("source") or "source unknown"
        lines.append(f"{name}{model}: {source}; {accuracy or 'not measured in this run'}")
    return lines


def summary_table(evaluation: dict, width: int = 120) -> str:
    """Returns the plain-text table that ends a run: nets as rows, accuracies in percent.

    Args:
      evaluation: the record of evaluation.json.
      width: characters after which the columns are folded into a second block.
    """
    dataset = evaluation.get("dataset") or {}
    about = str(dataset.get("name", "")) + (f", {dataset['split']}" if "split" in dataset else "")
    if number(dataset.get("num_examples")) is not None:
        about += f", {int(dataset['num_examples'])} images"
    if number(evaluation.get("eps")) is not None:
        about += f", {evaluation.get('norm', 'linf')} eps {eps_text(evaluation['eps'])}"
    name = str(evaluation.get("name") or "evaluation")
    lines = [f"{name}: accuracy in % ({about})" if about else f"{name}: accuracy in %", ""]
    titles, rows = _result_table(evaluation)
    lines += align(titles, rows, width) + report_autoattack.text_lines(evaluation)
    lines += ["", selection_note(evaluation)] if selection_note(evaluation) else []
    teachers = teacher_lines(evaluation)
    lines += ["", "Teachers", *("  " + line for line in teachers)] if teachers else []
    notes = [str(text) for text in evaluation.get("notes") or []]
    lines += ["", *notes] if notes else []
    warnings = [str(text) for text in evaluation.get("warnings") or []]
    lines += ["", "Warnings", *("  ! " + text for text in warnings)] if warnings else []
    return "\n".join(lines)


def markdown_table(evaluation: dict) -> str:
    """Returns the main table as GitHub Markdown, accuracies in percent; ends with a newline."""

    def line(cells: list[str]) -> str:
        safe = (" ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split()) for cell in cells)
        return "| " + " | ".join(text.replace("<", "&lt;") for text in safe) + " |"

    titles, rows = _result_table(evaluation)
    rule = "|" + "|".join([" --- "] + [" ---: "] * (len(titles) - 1)) + "|"
    return "\n".join([line(titles), rule, *map(line, rows)]) + "\n"


def _csv_rows(evaluation: dict) -> list[dict]:
    """One row for each net and attack; "clean" and "worst_case" count as attacks here."""
    rows = []
    for name, net in (evaluation.get("nets") or {}).items():
        clean = {
            "accuracy": net.get("clean"),
            "ci95": net.get("clean_ci95"),
            "worst_class": net.get("worst_class_clean"),
        }
        results = {"clean": clean, **(net.get("attacks") or {})}
        if net.get("worst_case"):
            results["worst_case"] = net["worst_case"]
        results |= report_autoattack.csv_results(net)
        for attack, result in results.items():
            low, high = result.get("ci95") or (None, None)
            row = {"net": name, "attack": attack, "label": attack_label(evaluation, attack)}
            row.update({key: net.get(key) for key in ("role", "model", "step")})
            row.update({key: result.get(key) for key in ("accuracy", "weighted", "nrr")})
            row.update(worst_class=result.get("worst_class"), ci95_low=low, ci95_high=high)
            rows.append(row)
    return rows


def write_csv(evaluation: dict, path: str | os.PathLike) -> Path:
    """Writes one row for each net and attack, with the columns of `CSV_COLUMNS`, atomically.

    Numbers are fractions in [0, 1]; what is missing is empty.

    Raises:
      OSError: the folder does not exist or cannot be written.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(_csv_rows(evaluation))
    return write_text_atomic(path, text.getvalue())


def series(records: list[dict]) -> dict[str, Points]:
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


def _thin(steps: np.ndarray, values: np.ndarray) -> Points:
    """Averages neighbours until at most `_MOST_POINTS` are left; NaN only where all are NaN."""
    if len(steps) <= _MOST_POINTS:
        return steps, values
    chunks = np.array_split(np.arange(len(steps)), _MOST_POINTS)
    kept = [chunk[np.isfinite(values[chunk])] for chunk in chunks]
    means = [values[good].mean() if len(good) else np.nan for good in kept]
    return np.array([steps[chunk].mean() for chunk in chunks]), np.array(means)


def write_report(
    workdir: str | os.PathLike, evaluation: dict, metrics: list[dict], images: dict | None = None
) -> Path:
    """Writes `workdir/report.html`, one file that needs nothing else, and returns its path.

    Args:
      workdir: folder of the run; made when missing.
      evaluation: the record of evaluation.json.
      metrics: the records of metrics.jsonl (`metric_writer.read_metrics`); may be empty.
      images: None, or "clean" and "adversarial" (float [n, H, W, C] in [0, 1]), "labels",
        "predicted_clean" and "predicted_adversarial" (int [n]); optionally "caption" (text).

    Raises:
      ValueError: the arrays of `images` do not fit each other.
      OSError: the folder cannot be written.
    """
    from ard_jax.reporting import (
        run_page,  # late: it brings matplotlib and jinja2, and imports this file
    )

    html = run_page.render(evaluation, metrics, images)
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    return write_text_atomic(workdir / REPORT_FILE, html)
