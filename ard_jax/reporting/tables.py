"""Tables, and the one writer of each format: plain text, Markdown, LaTeX, CSV and HTML."""

import csv
import dataclasses
import io
import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ard_jax.reporting.record import number

MISSING = "-"
DAGGER = "†"
_HEADER_WIDTH = 12  # longer column titles are wrapped
_MARKDOWN = {"\\": "\\\\", "&": "&amp;", "<": "&lt;", "|": "\\|", "`": "'"}
_LATEX = {c: "\\" + c for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    DAGGER: r"$^{\dagger}$",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
      text: what every format shows.
      mark: "best" (the highest of its column), "close" (not distinguishable from it), "code", or "".
      share: of a page: a fraction in [0, 1] that is drawn behind the text; None for nothing.
      bar: of a page: draw it as a bar instead of a tint.
      small: of a page: a second line.
      hint: of a page: shown over the cell.
      link: of a page: where the text leads.
    """

    text: str
    mark: str = ""
    share: float | None = None
    bar: bool = False
    small: str = ""
    hint: str = ""
    link: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Titles and rows of cells or texts; `left`: columns of words, beside the first."""

    titles: list[str]
    rows: Sequence[Sequence[Cell | str]]
    heading: str = ""
    note: str = ""
    left: tuple[int, ...] = ()

    def cells(self) -> list[list[Cell]]:
        """The rows, every cell a `Cell`."""
        return [[c if isinstance(c, Cell) else Cell(str(c)) for c in row] for row in self.rows]


def percent(value: Any, digits: int = 2) -> str:
    """Formats a fraction as a percentage without the sign: 0.6125 -> "61.25"."""
    value = number(value)
    return MISSING if value is None else f"{100 * value:.{digits}f}"


def percent_cell(value: Any, interval: Any = None, bar: bool = False) -> Cell:
    """A fraction in percent, on a page over its share and with its interval."""
    value = number(value)
    share = value if value is not None and 0 <= value <= 1 else None
    if not interval:
        return Cell(percent(value), share=share, bar=bar)
    low, high = (percent(bound, 1) for bound in interval)
    return Cell(
        percent(value), share=share, small=f"{low}–{high}", hint=f"95 % interval: {low} to {high}"
    )


def eps_text(value: Any) -> str:
    """Formats a distance in [0, 1] pixel units the way papers do: "8/255", but "0.2" and "0"."""
    value = number(value)
    if value is None:
        return MISSING
    if not math.isfinite(value) or math.isclose(value, round(value, 3), abs_tol=1e-7):
        return f"{value:.4g}"
    levels = 255 * value
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-3 else f"{value:.4g}"


def duration_text(seconds: float | None) -> str:
    """Seconds as people say them: "0.42 s", "1 min 13 s", "3 h 5 min"."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def value_text(value: Any) -> str:
    """A parameter as text: numbers short, lists joined, everything else as it is."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return str(value)


def text(table: Table, width: int) -> list[str]:
    """Lines of plain text: first column to the left, numbers to the right, folded at `width`."""
    cells, marks = table.cells(), {"best": "*", "close": DAGGER}
    # A mark, or its place, after every number keeps the digits below each other.
    blank = " " if any(c.mark in marks for row in cells for c in row) else ""
    rows = [[row[0].text, *(c.text + marks.get(c.mark, blank) for c in row[1:])] for row in cells]
    heads = [[table.titles[0]], *map(_wrapped, table.titles[1:])]
    widths = [
        max(len(line) for line in [*head, *(row[column] for row in rows)])
        for column, head in enumerate(heads)
    ]
    blocks, used = [[]], widths[0]
    for column in range(1, len(heads)):
        if blocks[-1] and used + 2 + widths[column] > width:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(column)
        used += 2 + widths[column]
    lines: list[str] = []
    for block in blocks:
        tall = max(len(heads[column]) for column in [0, *block])
        top = [[""] * (tall - len(head)) + head for head in heads]
        above = [[words[line] for words in top] for line in range(tall)]
        body = [
            row[0].ljust(widths[0]) + "".join("  " + row[c].rjust(widths[c]) for c in block)
            for row in [*above, *rows]
        ]
        rule = "-" * (widths[0] + sum(2 + widths[column] for column in block))
        lines += [*([""] if lines else []), *body[:tall], rule, *body[tall:]]
    return [line.rstrip() for line in lines]


def _wrapped(title: str) -> list[str]:
    if max(map(len, title.split()), default=0) > 1.5 * _HEADER_WIDTH:
        title = title.replace("_", " ")
    return textwrap.wrap(title, _HEADER_WIDTH, break_long_words=False) or [""]


def escape_markdown(value: Any) -> str:
    """Text on one line that Markdown shows as it is: no HTML, no table or code delimiters."""
    line = re.sub(r"\s+", " ", str(value))
    return "".join(_MARKDOWN.get(character, character) for character in line)


def markdown(table: Table) -> str:
    """A table of GitHub Markdown; ends with a newline."""
    forms = {"best": "**{}**", "close": "{}" + DAGGER, "code": "`{}`"}
    rows = [
        [forms.get(c.mark, "{}").format(escape_markdown(c.text)) for c in row]
        for row in [[Cell(title) for title in table.titles], *table.cells()]
    ]
    words = (0, *table.left)
    rules = [" --- " if i in words else " ---: " for i in range(len(table.titles))]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join(rules) + "|", *lines[1:]]) + "\n"


def escape_latex(value: str) -> str:
    """Text on one line for LaTeX, special characters escaped, "±" and the dagger as mathematics."""
    line = re.sub(r"\s+", " ", value)
    return "".join(_LATEX.get(character, character) for character in line)


def latex(table: Table, caption: str) -> str:
    r"""A table* for `\usepackage{booktabs}`."""
    forms = {"best": r"\textbf{%s}", "close": "%s" + _LATEX[DAGGER]}
    rows = [
        " & ".join(forms.get(c.mark, "%s") % escape_latex(c.text) for c in row) + r" \\"
        for row in [[Cell(title) for title in table.titles], *table.cells()]
    ]
    return "\n".join([
        r"\begin{table*}", r"\centering\small", rf"\caption{{{escape_latex(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.titles) - 1)}}}", r"\toprule", rows[0], r"\midrule",
        *rows[1:], r"\bottomrule", r"\end{tabular}", r"\end{table*}",
    ])  # fmt: skip


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A header and one line for each row; what a row lacks is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def html(table: Table) -> Markup:
    """A table for a page, in a frame that scrolls without `page.js`, which needs its other forms to copy."""
    words = [
        "" if i not in table.left else Markup(' class="text"') for i in range(len(table.titles))
    ]
    heads = [
        Markup("<th{}><span>{}</span></th>").format(*pair)
        for pair in zip(words, table.titles, strict=True)
    ]
    rows = [
        Markup("<tr><th>{}</th>{}</tr>").format(
            _inside(row[0]), Markup("").join(map(_html_cell, row[1:], words[1:]))
        )
        for row in table.cells()
    ]
    return Markup(
        '<div class="scroll"><table class="sortable" aria-label="{}" data-markdown="{}" data-latex="{}">\n'
        "<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody></table></div>"
    ).format(
        table.heading or table.titles[0],
        markdown(table),
        latex(table, table.heading),
        Markup("").join(heads),
        Markup("\n").join(rows),
    )


def _html_cell(cell: Cell, kind: str) -> Markup:
    if cell.share is not None:
        style = Markup(' class="{}" style="--v:{:.4f}"')
        kind = style.format("bar" if cell.bar else "heat", cell.share)
    hint = Markup(' title="{}"').format(cell.hint) if cell.hint else ""
    return Markup("<td{}{}>{}</td>").format(kind, hint, _inside(cell))


def _inside(cell: Cell) -> Markup:
    text = cell.text.replace("± ", "±\u00a0")  # a narrow column breaks before it
    shown = escape(text + (DAGGER if cell.mark == "close" else ""))
    if tag := {"best": "b", "code": "code"}.get(cell.mark):
        shown = Markup("<{0}>{1}</{0}>").format(tag, shown)
    if cell.link:
        shown = Markup('<a href="{}">{}</a>').format(cell.link, shown)
    return shown + Markup("<small>{}</small>").format(cell.small) if cell.small else shown


def page(template: str, **values: Any) -> str:
    """A whole page from one of `templates/`; everything but `Markup` is escaped."""
    return _render(template, values, table=html, autoescape=True, undefined=jinja2.StrictUndefined)


class _Unknown(jinja2.ChainableUndefined):
    """What a Markdown page does not know."""

    def __str__(self) -> str:
        return "?"


def markdown_page(template: str, **values: Any) -> str:
    """A whole Markdown page from one of `templates/`; everything but tables is escaped.

    What is missing is shown as "?", and is `unknown` in a template's tests.
    """

    def shown(value: Any) -> str:
        if isinstance(value, Markup):
            return value
        return "?" if value is None else escape_markdown(value)

    return _render(
        template,
        values,
        table=lambda t: Markup(markdown(t).rstrip()),
        finalize=shown,
        undefined=_Unknown,
    )


def _render(template: str, values: dict[str, Any], table: Any, **options: Any) -> str:
    loader = jinja2.PackageLoader("ard_jax.reporting")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, **options)
    environment.filters.update(pct=percent, eps=eps_text, cell=value_text, table=table)
    environment.filters.update(plain_json=lambda value: json.dumps(value, sort_keys=True))
    environment.tests["unknown"] = lambda value: (
        value is None or isinstance(value, jinja2.Undefined)
    )
    return environment.get_template(template).render(**values)
