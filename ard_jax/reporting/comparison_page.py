"""What a comparison ends with: means over its seeds, tables, a plot and a page, out of its record."""

import dataclasses
import json
import re
import statistics
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ard_jax.io.files import write_text_atomic
from ard_jax.reporting import plots, tables
from ard_jax.reporting.record import (
    COMPLETE,
    ComparedTeacher,
    ComparisonRecord,
    Evaluation,
    NetworkResult,
    Result,
    Spread,
    label,
    selection_note,
)
from ard_jax.reporting.tables import Cell, Table

CSV_COLUMNS = "row role checkpoint metric label mean sd n seeds values".split()
_TITLE = re.compile(r"student\s*(.*?)\s*\((best|last)\)")
_PARTS = ("weighted", "nrr", "worst_class")


def _spread(values: list[float]) -> Spread:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), sd=sd, n=len(values), values=tuple(values))


def net_metrics(net: NetworkResult) -> dict[str, float]:
    """Flat metrics of one network: "clean", "pgd_sat", "pgd_sat/nrr", "worst_case", ..."""
    found = {"clean": net.clean, "clean/worst_class": net.worst_class_clean}
    for name, result in net.attacks.items():
        found[name] = result.accuracy
        found |= {f"{name}/{part}": getattr(result, part) for part in _PARTS}
    found["worst_case"] = net.worst_case and net.worst_case.accuracy
    return {name: value for name, value in found.items() if value is not None}


def aggregate(
    methods: tuple[str, ...], seeds: tuple[int, ...], done: dict[tuple[str, int], Evaluation]
) -> tuple[Result, ...]:
    """Results over the finished seeds: one for each method, network ("" or "EMA") and checkpoint.

    Args:
      methods: in the order of the results.
      seeds: in the order of the values.
      done: (method, seed) -> evaluation, of finished runs only.
    """
    results = []
    for method in methods:
        rows: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
        for seed in (seed for seed in seeds if (method, seed) in done):
            evaluation = done[method, seed]
            seconds = evaluation.timing and evaluation.timing.seconds_per_epoch
            speed = {} if seconds is None else {"seconds_per_epoch": seconds}
            for title, net in evaluation.nets.items():
                if match := _TITLE.fullmatch(title):
                    rows.setdefault((match[1], match[2]), {})[seed] = net_metrics(net) | speed
        for (net, checkpoint), by_seed in rows.items():
            names = dict.fromkeys(name for metrics in by_seed.values() for name in metrics)
            results.append(Result(
                row=f"{method} ({net})" if net else method, method=method, net=net,
                checkpoint=checkpoint, seeds=tuple(by_seed),
                metrics={n: _spread([m[n] for m in by_seed.values() if n in m]) for n in names},
            ))  # fmt: skip
    return tuple(results)


def teacher_results(teachers: dict[str, ComparedTeacher]) -> tuple[Result, ...]:
    """Results of the teachers, which no seed of a student changes."""
    return tuple(
        Result(row=f"{role} teacher", role="teacher",
               metrics={n: _spread([v]) for n, v in net_metrics(teacher.net).items()})
        for role, teacher in teachers.items()
        if teacher.net
    )  # fmt: skip


def summarize(
    record: ComparisonRecord, done: dict[tuple[str, int], Evaluation]
) -> ComparisonRecord:
    """Adds the results, notes and warnings to a record of runs, teachers and settings.

    Args:
      record: without them.
      done: (method, seed) -> evaluation, of finished runs only.
    """
    results = aggregate(record.methods, record.seeds, done) + teacher_results(record.teachers)
    record = dataclasses.replace(record, results=results)
    if done:
        first, *_ = done.values()
        attacks = {
            n: a for one in done.values() for n, a in one.attacks.items()
        }  # transfer ones differ
        record = dataclasses.replace(
            record, dataset=first.dataset, eps=first.eps, norm=first.norm, select_on=first.select_on,
            attacks=attacks,
        )  # fmt: skip
    return dataclasses.replace(record, notes=notes(record), warnings=warnings(record, done))


def notes(record: ComparisonRecord) -> tuple[str, ...]:
    """What a reader must know beside the numbers."""
    n, dataset = len(record.seeds), record.dataset
    found = [f"{n} seed{'s' if n > 1 else ''} of the students: "
             f"{', '.join(map(str, record.seeds))}; the teachers are the same in all runs."]  # fmt: skip
    if n == 1:
        found.append("One seed says nothing about the spread: no difference here is established.")
    if dataset:
        first = ", the first ones" if record.protocol.get("eval.max_examples") else ""
        found.append(f"Test set: {dataset.num_examples} images{first}.")
    found.append(selection_note(record))
    found.append("Best: the evaluated epoch with the highest (clean + robust)/2 on that split; last: the end "
                 "of training.")  # fmt: skip
    few = record.protocol.get("eval.autoattack_examples", 0)
    if not set(COMPLETE) & set(record.attacks):
        found.append(
            "AutoAttack is not among the attacks: PGD accuracies are upper bounds of robustness."
        )
    elif dataset and 0 < few < dataset.num_examples:
        found += [
            f"AutoAttack: the first {few} images.",
            f"Worst case: of the first {few} images too.",
        ]
    found.append("Seconds per epoch: images of an epoch over the median training speed after the first "
                 "epoch, on the machine that made the run; without evaluation and compilation.")  # fmt: skip
    return tuple(text for text in found if text)


def warnings(record: ComparisonRecord, done: dict[tuple[str, int], Evaluation]) -> tuple[str, ...]:
    """Runs that are not there, teachers that are not the same, and the warnings of the runs."""
    failed = [run for run in record.runs if run.status == "failed"]
    found = [f"{run.method}, seed {run.seed} failed: {run.error}" for run in failed]
    if left := sum(run.status == "pending" for run in record.runs):
        found.append(f"{left} of {len(record.runs)} runs are not finished: the tables are partial.")
    for (method, seed), evaluation in done.items():
        where = f"{method}, seed {seed}"
        teachers = record.teachers.items()
        shared = {t.role or n: t for n, t in teachers if not t.methods or method in t.methods}
        for role, teacher in evaluation.teachers.items():
            now = shared.get(role, ComparedTeacher()).identity
            if now and teacher.identity not in ("", now):
                found.append(f"{where} learned from another {role} teacher ({teacher.identity}) than "
                             f"the one in this table ({now})")  # fmt: skip
        found += [f"{where}: {text}" for text in evaluation.warnings]
    return tuple(found)


def columns(record: ComparisonRecord) -> list[tuple[str, str]]:
    """(metric, title) of the tables' columns."""
    main = record.main_attack
    name = label(record, main)
    found = [("clean", "clean"), *((attack, label(record, attack)) for attack in record.attacks)]
    return [*found, ("worst_case", "worst case"), (f"{main}/weighted", f"weighted {name}"),
            (f"{main}/nrr", f"NRR {name}"), (f"{main}/worst_class", f"worst class {name}"),
            ("seconds_per_epoch", "seconds per epoch")]  # fmt: skip


def _cell(metric: str, value: Spread | None, top: Spread | None) -> Cell:
    """`top`: the result of the highest mean in this column; None where there is no contest."""
    if value is None:
        return Cell("-")
    scale = 1 if metric == "seconds_per_epoch" else 100
    text = f"{scale * value.mean:.2f}" + ("" if value.sd is None else f" ± {scale * value.sd:.2f}")
    if top is None:
        return Cell(text)
    if value.mean == top.mean:
        return Cell(text, "best")
    widest = max((v.sd for v in (value, top) if v.sd is not None), default=-1.0)
    return Cell(text, "close" if top.mean - value.mean <= widest else "")


def _label(record: ComparisonRecord, result: Result) -> str:
    asked, n = len(record.seeds), len(result.seeds)
    unfinished = result.role == "student" and n < asked
    return result.row + (f" (n = {n} of {asked})" if unfinished else "")


def result_tables(record: ComparisonRecord) -> list[Table]:
    """Tables of the best and the last checkpoints, and of the best beside papers' numbers, if any.

    Methods without a result have a row too; teachers stand below the students.
    """
    names, found = columns(record), []
    for checkpoint in ("best", "last"):
        students = _students(record, checkpoint)
        tops: dict[str, Spread | None] = {}
        for metric, _ in names[:-1]:  # seconds: lower is better, and no claim
            values = [r.metrics[metric] for r in students if metric in r.metrics]
            contest = len({value.mean for value in values}) > 1
            tops[metric] = max(values, key=lambda v: v.mean) if contest else None
        rows = []
        for result in students + [r for r in record.results if r.role == "teacher"]:
            against = tops if result.role == "student" else {}
            cells = [_cell(m, result.metrics.get(m), against.get(m)) for m, _ in names]
            rows.append([_label(record, result), *cells])
        titles = ["method", *(title for _, title in names)]
        found.append(Table(titles, rows, f"{checkpoint.capitalize()} checkpoint"))
    return [*found, *_published(record)]


def _students(record: ComparisonRecord, checkpoint: str) -> list[Result]:
    """The students' results, in the order of the methods."""
    found = [r for r in record.results if r.checkpoint == checkpoint]
    missing = set(record.methods) - {r.method for r in found}
    found += [Result(row=m, method=m) for m in record.methods if m in missing]
    return sorted(found, key=lambda r: record.methods.index(r.method))


def _both(record: ComparisonRecord) -> Table | None:
    """The best checkpoint and the last side by side; None where there is none of them."""
    wanted = dict.fromkeys(
        ("clean", record.main_attack, *(a for a in COMPLETE if a in record.attacks))
    )
    titles = {metric: title for metric, title in columns(record) if metric in wanted}
    found: dict[str, dict[str, Result]] = {}
    for result in (r for r in record.results if r.checkpoint):
        found.setdefault(_label(record, result), {})[result.checkpoint] = result
    rows = []
    for name, by in found.items():
        metrics = [
            (by.get(which, Result()).metrics, m) for m in titles for which in ("best", "last")
        ]
        rows.append([name, *(_cell(m, values.get(m), None) for values, m in metrics)])
    heads = [f"{title}, {which}" for title in titles.values() for which in ("best", "last")]
    return (
        Table(["method", *heads], rows, "Best and last checkpoint side by side") if rows else None
    )


_ABOUT = ("source", "checkpoint", "net")  # what a row of published numbers says beside them


def _published(record: ComparisonRecord) -> list[Table]:
    """Both checkpoints, and ours beside the papers' numbers; [] where no paper has any of the methods."""
    papers = {m: row for m, row in record.published.get("rows", {}).items() if m in record.methods}
    if not papers:
        return []
    shown = dict.fromkeys(name for row in papers.values() for name in row if name not in _ABOUT)
    titles = {metric: title for metric, title in columns(record) if metric in shown}
    titles |= {name: name for name in shown if name not in titles}  # not evaluated here
    rows, sources = [], {}
    for result in (r for r in _students(record, "best") if not r.net):
        paper = papers.get(result.method, {})
        which, net = paper.get("checkpoint", "best"), paper.get("net", "")
        same = (r for r in _students(record, which) if (r.method, r.net) == (result.method, net))
        ours = next(same, result if which == "best" and not net else Result(row=result.row))
        told = [text for text in (net, which if which != "best" else "") if text]
        note = f" ({', '.join(told)})" if told else ""
        cells = [_cell(metric, ours.metrics.get(metric), None) for metric in titles]
        rows.append([_label(record, dataclasses.replace(result, row=result.method)) + note, *cells])
        if paper:
            texts = [f"{paper[metric]:.2f}" if metric in paper else "" for metric in titles]
            rows.append([f"{result.method}, paper{note}", *texts])
            sources.setdefault(paper["source"], []).append(result.method)
    named = "; ".join(f"{', '.join(methods)}: {source}" for source, methods in sources.items())
    note = (
        "Rows with \"paper\" are the paper's own numbers under the paper's protocol, not measured here; "
        f"blank: not known. {record.published['protocol']} Sources: {named}."
    )
    last = any(row.get("checkpoint") == "last" for row in papers.values())
    heading = ("Checkpoints" if last else "Best checkpoint") + " beside the papers' numbers"
    both = _both(record)
    beside = Table(["method", *titles.values()], rows, heading, note)
    return [*([both] if both else []), beside]


def caption(record: ComparisonRecord, best: str = "in bold") -> str:
    """What the numbers are, and what the marks mean; `best` says how the highest mean is marked."""
    dataset, n = record.dataset, len(record.seeds)
    found = "Accuracy in %"
    if dataset:
        found += f" on the {dataset.num_examples} {dataset.split} images of {dataset.name}"
        found += f", {record.norm} eps {tables.eps_text(record.eps)}"
    found += f", mean ± standard deviation (n - 1) over {n} seeds" if n > 1 else ", one seed"
    found += f". Highest mean of a column {best}"
    if n > 1:
        found += (
            "; †: the mean lies within one standard deviation (the larger of the two) of the highest, "
            "so that the two are not distinguishable"
        )
    return found + (
        ". Worst case: right under every attack at once; weighted: (clean + robust)/2; NRR: harmonic mean "
        "of clean and robust; worst class: the least robust class; these three under "
        f"{label(record, record.main_attack)}."
    )


def text(record: ComparisonRecord, width: int = 150) -> str:
    """The tables as plain text, folded at `width`."""
    lines = [record.name]
    for table in result_tables(record):
        lines += ["", table.heading, "", *tables.text(table, width)]
        lines += ["", table.note] if table.note else []
    lines += ["", caption(record, "marked *"), *(f"- {note}" for note in record.notes)]
    if record.warnings:
        lines += ["", "Warnings", *(f"  ! {warning}" for warning in record.warnings)]
    return "\n".join(lines)


def markdown(record: ComparisonRecord) -> str:
    """The tables, settings and notes as GitHub Markdown."""
    lines = [f"# {record.name}", "", caption(record)]
    for table in result_tables(record):
        lines += ["", f"## {table.heading}", "", tables.markdown(table).rstrip()]
        lines += ["", table.note] if table.note else []
    lines += ["", "## Notes", "", *(f"- {note}" for note in record.notes)]
    lines += [f"- Warning: {' '.join(warning.split())}" for warning in record.warnings]
    lines += ["", "## Settings", ""]
    for method, settings in record.settings.items():
        pairs = ", ".join(f"`{key}={value}`" for key, value in settings.items())
        lines.append(f"- **{method}**: {pairs}")
    return "\n".join(lines) + "\n"


def latex(record: ComparisonRecord) -> str:
    r"""The tables as LaTeX for `\usepackage{booktabs}`; wide: for a landscape page or after cutting."""
    blocks = ["% Needs \\usepackage{booktabs}. Written by ard_jax; accuracies in %."]
    for table in result_tables(record):
        about = f"{record.name}, {table.heading.lower()}. {table.note or caption(record)}"
        blocks.append(tables.latex(table, about))
    return "\n".join(blocks) + "\n"


def csv_text(record: ComparisonRecord) -> str:
    """One row for each result and metric, with `CSV_COLUMNS`; fractions and seconds, lists spaced."""
    return tables.csv_text(CSV_COLUMNS, (
        {"row": result.row, "role": result.role, "checkpoint": result.checkpoint, "metric": metric,
         "label": label(record, metric.split("/")[0]), "mean": value.mean, "sd": value.sd, "n": value.n,
         "seeds": " ".join(map(str, result.seeds)), "values": " ".join(f"{v:.6g}" for v in value.values)}
        for result in record.results
        for metric, value in result.metrics.items()
    ))  # fmt: skip


def points(record: ComparisonRecord) -> list[plots.Point]:
    """Clean (x) and robust accuracy (y) of the best checkpoints and, as stars, of the teachers."""
    found = []
    for result in record.results:
        x, y = (result.metrics.get(name) for name in ("clean", record.main_attack))
        if result.checkpoint != "last" and x and y:
            numbers = (100 * v for v in (x.mean, y.mean, x.sd or 0, y.sd or 0))
            found.append(plots.Point(result.row, *numbers, star=result.role == "teacher"))
    return found


def _plot_caption(record: ComparisonRecord) -> str:
    n = len(record.seeds)
    about = f", mean and sd over {n} seeds" if n > 1 else ", one seed"
    return f"best checkpoints{about}; stars: teachers"


def plot(record: ComparisonRecord) -> tuple[str, bytes, Markup]:
    """Clean against robust accuracy, error bars of one sd over seeds: SVG, PNG, and for a page."""
    alt = "Clean against robust accuracy; the numbers are in the tables below"
    return plots.scatter_files(
        alt, points(record), f"{record.name}: {_plot_caption(record)}", "clean accuracy in %",
        f"accuracy under {label(record, record.main_attack)} in %",
    )  # fmt: skip


def render(record: ComparisonRecord, drawn: Markup | None = None) -> str:
    """The page, one file that needs nothing else; `drawn`: its plot, if it is made already."""
    settings = record.settings
    keys = list(dict.fromkeys(key for one in settings.values() for key in one))
    rest = [key for key in keys if key == "method.name" or not key.startswith("method.")]
    shared = [key for key in rest if all(key in one for one in settings.values())]
    same = [k for k in shared if len({repr(one[k]) for one in settings.values()}) == 1]
    same = same if len(settings) > 1 else []
    first = next(iter(settings.values()), {})
    return tables.page(
        "comparison.html",
        record=record,
        results=result_tables(record),
        caption=caption(record),
        plot=drawn or plot(record)[2],
        plot_caption=_plot_caption(record),
        settings=_settings_table(settings, [key for key in shared if key not in same], shared),
        protocol=record.protocol | {key: first[key] for key in same},
        runs=_runs_table(record),
    )


def _settings_table(settings: dict[str, Any], varying: list[str], shared: list[str]) -> Table:
    """What differs between the methods, and what some of them alone have."""
    rows = []
    for method, one in settings.items():
        own = [f"{k.removeprefix('method.')}={v}" for k, v in one.items() if k not in shared]
        rows.append([method, *(str(one[k]) for k in varying), Cell(", ".join(own), "code")])
    titles = ["method", *varying, "options"]
    return Table(titles, rows, "Settings of the methods", left=(len(varying) + 1,))


def _runs_table(record: ComparisonRecord) -> Table:
    rows = []
    for run in record.runs:
        seconds = "" if run.train_seconds is None else f"{run.train_seconds:.0f}"
        done = run.status == "finished"
        report = Cell("report", link=f"{run.folder}/report.html") if done else ""
        rows.append([run.method, str(run.seed), run.status, seconds, report])
    return Table(["method", "seed", "status", "training, s", "report"], rows, "Runs", left=(2,))


def write(record: ComparisonRecord, folder: Path) -> None:
    """Writes comparison.json, .csv, .md, .tex, .svg, .png and .html."""
    svg, png, drawn = plot(record)
    (folder / "comparison.png").write_bytes(png)
    for ending, content in (
        ("svg", svg),
        ("csv", csv_text(record)),
        ("md", markdown(record)),
        ("tex", latex(record)),
        ("html", render(record, drawn)),
        ("json", json.dumps(record.to_json(), indent=1) + "\n"),
    ):
        write_text_atomic(folder / f"comparison.{ending}", content)
