"""The tables of a comparison as plain text, Markdown, LaTeX and CSV.

Everything here takes the comparison's record, the dict that comparison.json holds. Accuracies are fractions
in [0, 1] there and percentages in the tables.
"""

import csv
import dataclasses
import io
from typing import Any

from ard_jax.reporting import report

CSV_COLUMNS = "row role checkpoint metric label mean sd n seeds values".split()
_TEX = {c: "\\" + c for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
                                           "^": r"\textasciicircum{}", "±": r"$\pm$",
                                           "†": r"$^{\dagger}$"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of a table; best: the highest mean of its column; close: not distinguishable from it."""

    text: str
    best: bool = False
    close: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of (label, cells under all titles but the first); note: what `caption` does not say of it."""

    heading: str
    titles: list[str]
    rows: list[tuple[str, list[Cell]]]
    note: str = ""


def columns(record: dict[str, Any]) -> list[tuple[str, str]]:
    """(metric, title) of the tables' columns."""
    main = record["main_attack"]
    label = report.attack_label(record, main)
    found = [("clean", "clean")]
    found += [(name, report.attack_label(record, name)) for name in record["attacks"]]
    return [*found, ("worst_case", "worst case"), (f"{main}/weighted", f"weighted {label}"),
            (f"{main}/nrr", f"NRR {label}"), (f"{main}/worst_class", f"worst class {label}"),
            ("seconds_per_epoch", "seconds per epoch")]  # fmt: skip


def _text(metric: str, value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    scale = 1 if metric == "seconds_per_epoch" else 100
    text = f"{scale * value['mean']:.2f}"
    return text if value["sd"] is None else f"{text} ± {scale * value['sd']:.2f}"


def _cell(metric: str, value: dict[str, Any] | None, top: dict[str, Any] | None) -> Cell:
    """`top`: the result of the highest mean in this column; None where there is no contest."""
    text = _text(metric, value)
    if value is None or top is None:
        return Cell(text)
    if value["mean"] == top["mean"]:
        return Cell(text, best=True)
    widest = max((v["sd"] for v in (value, top) if v["sd"] is not None), default=None)
    close = widest is not None and top["mean"] - value["mean"] <= widest
    return Cell(text + "†" if close else text, close=close)


def _label(record: dict[str, Any], result: dict[str, Any]) -> str:
    asked, n = len(record["seeds"]), len(result["seeds"])
    unfinished = result["role"] == "student" and n < asked
    return result["row"] + (f" (n = {n} of {asked})" if unfinished else "")


def tables(record: dict[str, Any]) -> list[Table]:
    """Tables of the best and the last checkpoints, and of the best beside papers' numbers, if any.

    Methods without a result have a row too; teachers stand below the students.
    """
    names, found = columns(record), []
    for checkpoint in ("best", "last"):
        students = _students(record, checkpoint)
        tops = {}
        for metric, _ in names[:-1]:  # seconds: lower is better, and no claim
            values = [r["metrics"][metric] for r in students if metric in r["metrics"]]
            contest = len({value["mean"] for value in values}) > 1
            tops[metric] = max(values, key=lambda v: v["mean"]) if contest else None
        rows = []
        for result in students + [r for r in record["results"] if r["role"] == "teacher"]:
            against = tops if result["role"] == "student" else {}
            cells = [_cell(m, result["metrics"].get(m), against.get(m)) for m, _ in names]
            rows.append((_label(record, result), cells))
        titles = ["method", *(title for _, title in names)]
        found.append(Table(f"{checkpoint.capitalize()} checkpoint", titles, rows))
    return [*found, *_published(record)]


def _students(record: dict[str, Any], checkpoint: str) -> list[dict[str, Any]]:
    """The students' results, in the order of the methods."""
    found = [r for r in record["results"] if r["checkpoint"] == checkpoint]
    missing = [m for m in record["methods"] if m not in {r["method"] for r in found}]
    empty = {"role": "student", "net": "", "seeds": [], "metrics": {}}
    found += [{"row": m, "method": m} | empty for m in missing]
    return sorted(found, key=lambda r: record["methods"].index(r["method"]))


def _published(record: dict[str, Any]) -> list[Table]:
    """The best checkpoints beside the papers' numbers; [] where no paper has any of the methods."""
    published = record["published"] or {"rows": {}}
    papers = {m: row for m, row in published["rows"].items() if m in record["methods"]}
    if not papers:
        return []
    shown = dict.fromkeys(name for row in papers.values() for name in row if name != "source")
    titles = {metric: title for metric, title in columns(record) if metric in shown}
    titles |= {name: name for name in shown if name not in titles}  # not evaluated here
    rows, sources = [], {}
    for result in (r for r in _students(record, "best") if not r["net"]):
        ours = [Cell(_text(metric, result["metrics"].get(metric))) for metric in titles]
        rows.append((_label(record, result), ours))
        if paper := papers.get(result["method"]):
            texts = [f"{paper[metric]:.2f}" if metric in paper else "" for metric in titles]
            rows.append((f"{result['method']}, paper", [Cell(text) for text in texts]))
            sources.setdefault(paper["source"], []).append(result["method"])
    named = "; ".join(f"{', '.join(methods)}: {source}" for source, methods in sources.items())
    note = (
        "Rows with \"paper\" are the paper's own numbers under the paper's protocol, not measured here; "
        f"blank: not known. {published['protocol']} Sources: {named}."
    )
    heading = "Best checkpoint beside the papers' numbers"
    return [Table(heading, ["method", *titles.values()], rows, note)]


def caption(record: dict[str, Any], best: str = "in bold") -> str:
    """What the numbers are, and what the marks mean; `best` says how the highest mean is marked."""
    dataset, n = record.get("dataset") or {}, len(record["seeds"])
    text = "Accuracy in %"
    if dataset:
        text += f" on the {dataset['num_examples']} {dataset['split']} images of {dataset['name']}"
        text += f", {record['norm']} eps {report.eps_text(record['eps'])}"
    text += f", mean ± standard deviation (n - 1) over {n} seeds" if n > 1 else ", one seed"
    text += f". Highest mean of a column {best}"
    if n > 1:
        text += (
            "; †: the mean lies within one standard deviation (the larger of the two) of the highest, "
            "so that the two are not distinguishable"
        )
    label = report.attack_label(record, record["main_attack"])
    return text + (
        ". Worst case: right under every attack at once; weighted: (clean + robust)/2; NRR: harmonic mean "
        f"of clean and robust; worst class: the least robust class; these three under {label}."
    )


def text(record: dict[str, Any], width: int = 150) -> str:
    """The tables as plain text, folded at `width`."""
    lines = [record["name"]]
    for table in tables(record):
        # A mark, or its place, after every number keeps the digits below each other.
        rows = [[label, *(c.text + ("*" if c.best else "" if c.close else " ") for c in cells)]
                for label, cells in table.rows]  # fmt: skip
        lines += ["", table.heading, ""]
        lines += report.align(table.titles, rows, width)
        lines += ["", table.note] if table.note else []
    lines += ["", caption(record, "marked *"), *(f"- {note}" for note in record["notes"])]
    if record["warnings"]:
        lines += ["", "Warnings", *(f"  ! {warning}" for warning in record["warnings"])]
    return "\n".join(lines)


def markdown(record: dict[str, Any]) -> str:
    """The tables, settings and notes as GitHub Markdown."""

    def line(cells: list[str]) -> str:
        safe = [" ".join(c.replace("|", "\\|").replace("<", "&lt;").split()) for c in cells]
        return "| " + " | ".join(safe) + " |"

    lines = [f"# {record['name']}", "", caption(record)]
    for table in tables(record):
        lines += ["", f"## {table.heading}", "", line(table.titles)]
        lines.append("|" + "|".join([" --- "] + [" ---: "] * (len(table.titles) - 1)) + "|")
        for label, cells in table.rows:
            lines.append(line([label, *(f"**{c.text}**" if c.best else c.text for c in cells)]))
        lines += ["", table.note] if table.note else []
    lines += ["", "## Notes", "", *(f"- {note}" for note in record["notes"])]
    lines += [f"- Warning: {' '.join(warning.split())}" for warning in record["warnings"]]
    lines += ["", "## Settings", ""]
    for method, settings in record["settings"].items():
        pairs = ", ".join(f"`{key}={value}`" for key, value in settings.items())
        lines.append(f"- **{method}**: {pairs}")
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Text for LaTeX, its special characters escaped, "±" and the dagger as mathematics."""
    return "".join(_TEX.get(character, character) for character in text)


def latex(record: dict[str, Any]) -> str:
    r"""The tables as LaTeX for `\usepackage{booktabs}`; wide: for a landscape page or after cutting."""
    blocks = ["% Needs \\usepackage{booktabs}. Written by ard_jax; accuracies in %."]
    for table in tables(record):
        about = f"{record['name']}, {table.heading.lower()}. {table.note or caption(record)}"
        rows = []
        for label, cells in table.rows:
            texts = [escape_latex(c.text) for c in cells]
            texts = [rf"\textbf{{{t}}}" if c.best else t for t, c in zip(texts, cells, strict=True)]
            rows.append(" & ".join([escape_latex(label), *texts]) + r" \\")
        blocks += [
            r"\begin{table*}", r"\centering\small", rf"\caption{{{escape_latex(about)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.titles) - 1)}}}", r"\toprule",
            " & ".join(map(escape_latex, table.titles)) + r" \\", r"\midrule", *rows,
            r"\bottomrule", r"\end{tabular}", r"\end{table*}",
        ]  # fmt: skip
    return "\n".join(blocks) + "\n"


def csv_text(record: dict[str, Any]) -> str:
    """One row for each result and metric, with `CSV_COLUMNS`; fractions and seconds, lists spaced."""
    file = io.StringIO()
    table = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
    table.writeheader()
    for result in record["results"]:
        for metric, value in result["metrics"].items():
            row = {name: result[name] for name in ("row", "role", "checkpoint")}
            row |= {"metric": metric, "label": report.attack_label(record, metric.split("/")[0])}
            row |= {name: value[name] for name in ("mean", "sd", "n")}
            row["seeds"] = " ".join(map(str, result["seeds"]))
            row["values"] = " ".join(f"{v:.6g}" for v in value["values"])
            table.writerow(row)
    return file.getvalue()
