"""reproduce.md, .json and .png: the table beside the papers' numbers, the curves, and the manifest."""

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ard_jax import train
from ard_jax.compare_config import Comparison
from ard_jax.compare_results import net_metrics, spread
from ard_jax.reproduce import session
from ard_jax.reproduce.papers import COLUMNS, MARKS, RESNET18
from ard_jax.writers import METRICS_FILE, read_metrics, write_text_atomic

TITLES = ("clean", "FGSM", "PGD_sat", "PGD_trades", "CW", "AutoAttack")
_ROWS = {"best": "student (best)", "last": "student (last)"}


def record(comparison: Comparison, schedule: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Everything that reproduce.json holds, out of what is finished now."""
    sessions = session.read(folder)
    done = {key: train.finished(e) for key, e in comparison.experiments.items()}
    return {
        "schema": 1,
        "finished": all(evaluation is not None for evaluation in done.values()),
        "schedule": schedule,
        "methods": {m: _method(m, comparison, done) for m in comparison.methods},
        "teachers": _teachers(folder),
        "curves": {
            f"{method}, seed {seed}": _curve(Path(e.workdir), e.eval.select_attack)
            for (method, seed), e in comparison.experiments.items()
        },
        "main_attack": next(iter(comparison.experiments.values())).eval.select_attack,
        "sessions": sessions,
        "seconds": round(sum(s["seconds"] for s in sessions), 1),
        "timing": {f"{m}, seed {s}": e["timing"] for (m, s), e in done.items() if e is not None},
    }


def _method(method: str, comparison: Comparison, done: dict) -> dict[str, Any]:
    """Rows "best" and "last": column -> spread over the seeds; and the warnings of its runs."""
    runs = [done[method, seed] for seed in comparison.seeds if done[method, seed] is not None]
    rows = {}
    for row, title in _ROWS.items():
        metrics = [net_metrics(e["nets"][title]) for e in runs if title in e["nets"]]
        rows[row] = {
            column: spread([m[column] for m in metrics])
            for column in COLUMNS
            if metrics and all(column in m for m in metrics)
        }
    warnings = [text for e in runs for text in e.get("warnings", ())]
    return {"seeds": len(runs), "rows": rows, "warnings": warnings}


def _teachers(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "teachers.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    kept = ("source", "identity", "model")
    return {
        role: {name: teacher[name] for name in kept} | {"metrics": net_metrics(teacher["net"])}
        for role, teacher in found.items()
    }


def _curve(folder: Path, attack: str) -> dict[str, list]:
    """The student's accuracy on the validation images, by epoch."""
    seen = {
        r["epoch"]: r
        for r in read_metrics(folder / METRICS_FILE)
        if r["kind"] == "eval" and r["net"] == "student"
    }
    records = [seen[epoch] for epoch in sorted(seen)]
    return {name: [r[name] for r in records] for name in ("epoch", "clean", attack)}


def markdown(record: dict[str, Any]) -> str:
    """The record for people."""
    schedule = record["schedule"]
    networks = schedule["describe"]
    left = [m for m, found in record["methods"].items() if not found["seeds"]]
    lines = ["# CIFAR-10: this run beside the papers", ""]
    if left:
        lines += [f"**Not finished.** Still to come: {', '.join(left)}.", ""]
    if schedule["networks"] == "cpu":
        lines += [
            "**Small networks on a CPU**: this shows that it runs, not what the methods reach.",
            "",
        ]
    lines += [
        f"Student {networks['student']}, robust teacher {networks['robust']}, clean teacher "
        f"{networks['clean']}; {schedule['images']:,} training images, {schedule['epochs']['student']} "
        f"epochs of every method, planned for {schedule['hours']:g} hours. Accuracy in %, L-inf 8/255. "
        "Upright: this run, on the best checkpoint by held-out training images unless the row says last. "
        f"*Italic*: the paper's number, {_mark_text()}; a dash where none is known. Papers train "
        "ResNet-18 for 76 to 300 epochs and pick on the test images: with another student, other teachers "
        "or fewer epochs the difference says nothing about the method.",
        "",
        *_table(record),
        "",
        "## What was done",
        "",
        *_facts(record),
        "",
        "![validation accuracy by epoch](reproduce.png)",
        "",
        "## Sessions",
        "",
        *_sessions(record),
    ]  # fmt: skip
    warnings = [text for found in record["methods"].values() for text in found["warnings"]]
    if warnings:
        lines += ["", "## Warnings", "", *(f"- {text}" for text in dict.fromkeys(warnings))]
    return "\n".join(lines) + "\n"


def _mark_text() -> str:
    return ", ".join(f"marked {mark} where it is {grade}" for grade, mark in MARKS.items())


def _table(record: dict[str, Any]) -> list[str]:
    evaluation, titles = record["schedule"]["evaluation"], list(TITLES)
    if evaluation["autoattack"] < evaluation["examples"]:
        # On fewer images than its neighbours, so it may lie above them.
        titles[-1] += f", first {evaluation['autoattack']:,}"
    lines = [
        "| method | " + " | ".join(titles) + " | source |",
        "| --- |" + " ---: |" * len(TITLES) + " --- |",
    ]

    def line(name: str, cells: list[str], source: str) -> None:
        lines.append(f"| {name} | {' | '.join(cells)} | {source} |")

    for method, found in record["methods"].items():
        for row, values in found["rows"].items():
            name = method if row == "best" else f"{method}, last"
            line(name, [_cell(values.get(c)) for c in COLUMNS], "this run" if values else "to come")
        paper = RESNET18.get(method)
        cells = [paper.cell(c) if paper else "-" for c in COLUMNS]
        cells = [c if c == "-" else f"*{c.rstrip('*')}*" + "\\*" * c.endswith("*") for c in cells]
        line(f"*{method}, paper*", cells, paper.source if paper else "in no paper")
    for role, teacher in record["teachers"].items():
        cells = [_percent(teacher["metrics"].get(c)) for c in COLUMNS]
        line(f"{role} teacher", cells, f"{teacher['model']}: this run's")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    sd = f" ± {100 * value['sd']:.2f}" if value["sd"] is not None else ""
    return _percent(value["mean"]) + sd


def _facts(record: dict[str, Any]) -> list[str]:
    schedule, evaluation = record["schedule"], record["schedule"]["evaluation"]
    epochs, nets = schedule["epochs"], evaluation["nets"]
    attacked = "all networks" if nets == "all" else "the students' best checkpoints"
    clean = f"imported, {schedule['clean_teacher']}" if schedule["clean_teacher"] else (
        f"{epochs['clean']} epochs of natural training"
    )  # fmt: skip
    seeds = schedule["seeds"]
    return [
        f"- Robust teacher: {epochs['robust']} epochs of TRADES, beta 6. Clean teacher: {clean}.",
        f"- Every method: {epochs['student']} epochs, batch {schedule['batch_size']}, SGD with rate 0.1 "
        "falling on a cosine, momentum 0.9, weight decay 5e-4, the same for all; no paper trains all "
        "methods like this. What a method does at certain epochs is moved to the same share of the run.",
        f"- {schedule['images']:,} training images; {50_000 - schedule['images']:,} are held out, the first "
        f"{evaluation['selection']:,} of which pick the best checkpoint.",
        f"- Attacks on the first {evaluation['examples']:,} test images, AutoAttack (standard) on the first "
        f"{evaluation['autoattack']:,} and on {attacked}. Training in {schedule['precision']}.",
        f"- {'Seeds' if len(seeds) > 1 else 'One seed'}: {', '.join(map(str, seeds))}"
        + ("." if len(seeds) > 1 else ", so the table says nothing about the spread."),
    ]


def _sessions(record: dict[str, Any]) -> list[str]:
    lines = ["| started | minutes | ended | device | commit |", "| --- | ---: | --- | --- | --- |"]
    for one in record["sessions"]:
        lines.append(
            f"| {one['started']} | {one['seconds'] / 60:.1f} | {one['ended']} | {one['device']} | "
            f"{one['commit'][:10]}{'+' * one['commit'].endswith('+')} |"
        )
    planned = (
        sum(record["schedule"]["estimate"].values()) + record["schedule"]["measured"]["seconds"]
    )
    versions = record["sessions"][-1]["versions"] if record["sessions"] else {}
    return [
        *lines,
        "",
        f"{record['seconds'] / 3600:.2f} hours in all; planned were {planned / 3600:.2f} on "
        f"{record['schedule']['device']}. "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
    ]


def plot(record: dict[str, Any]) -> Figure:
    """Validation accuracy by epoch, clean on the left, robust on the right; a line for each run."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    attack, colours = record["main_attack"], matplotlib.colormaps["tab10"].colors
    all_axes = figure.subplots(1, 2)
    methods = list(record["methods"])
    for axes, name in zip(all_axes, ("clean", attack), strict=True):
        for run, curve in record["curves"].items():
            method, seed = run.split(", ")
            first = seed == f"seed {record['schedule']['seeds'][0]}"
            axes.plot(
                curve["epoch"], [100 * v for v in curve[name]], marker=".", linewidth=1,
                color=colours[methods.index(method) % 10], label=method if first else None,
            )  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{name} accuracy in %, validation")
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    all_axes[1].legend(fontsize=7)
    return figure


def write(comparison: Comparison, schedule: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Writes reproduce.md, .json and .png. Returns the record."""
    found = record(comparison, schedule, folder)
    with matplotlib.rc_context({"font.size": 8.0, "text.parse_math": False}):
        plot(found).savefig(folder / "reproduce.png", dpi=150)
    write_text_atomic(folder / "reproduce.json", json.dumps(found, indent=1) + "\n")
    write_text_atomic(folder / "reproduce.md", markdown(found))
    return found
