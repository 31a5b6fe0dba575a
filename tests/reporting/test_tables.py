"""One writer for each format of a table."""

import csv
import dataclasses
import io
import re

import pytest
from pages import Page

from ard_jax.reporting import tables
from ard_jax.reporting.tables import Cell, Table

TABLE = Table(
    ["net", "clean", "PGD_sat", "a long title of a column"],
    [
        ["a|b\n<i>\\", Cell("52.00 ± 2.00", "best"), "1.5", Cell("x", share=0.5, hint="95 %")],
        [
            "50%_& more",
            Cell("50.00", "close"),
            Cell("f(x)", "code"),
            Cell("y", small="z", link="u"),
        ],
    ],
)


def test_text_is_aligned_and_folded():
    lines = tables.text(TABLE, 120)
    assert lines[-2].startswith("a|b") and "52.00 ± 2.00*" in lines[-2] and "50.00†" in lines[-1]
    assert lines[-2].index("2.00*") + 4 == lines[-1].index("†")  # digits below each other
    narrow = tables.text(TABLE, 30)
    assert sum(line.startswith("50%_& more") for line in narrow) > 1
    assert max(map(len, narrow)) <= 30


def test_markdown_is_rectangular_whatever_the_names():
    lines = tables.markdown(TABLE).splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert lines[2] == "| a\\|b &lt;i>\\\\ | **52.00 ± 2.00** | 1.5 | x |"
    assert "| 50.00† | `f(x)` |" in lines[3]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_latex_is_escaped():
    assert tables.escape_latex("a_b%&#$\\{±") == r"a\_b\%\&\#\$\textbackslash{}\{$\pm$"
    tex = tables.latex(TABLE, "50% & more")
    assert r"\textbf{52.00 $\pm$ 2.00}" in tex and r"50.00$^{\dagger}$" in tex
    assert r"\caption{50\% \& more}" in tex and r"\begin{tabular}{lrrr}" in tex


def test_html_is_escaped():
    page = tables.html(
        Table(["net", "<b>"], TABLE.rows[:0] + [["<i>", Cell("<", hint='"', link="&")]])
    )
    assert "<th><span>&lt;b&gt;</span></th>" in page and "<tr><th>&lt;i&gt;</th>" in page
    assert '<td title="&#34;"><a href="&amp;">&lt;</a></td>' in page
    page = tables.html(TABLE)
    for part in ("<td><b>52.00 ±\u00a02.00</b></td>", 'class="heat" style="--v:0.5000" title="95 %">x<',
                 "<code>f(x)</code>", '<a href="u">y</a><small>z</small>'):  # fmt: skip
        assert part in page


def test_html_holds_the_other_forms_to_copy():
    table = dataclasses.replace(TABLE, heading="50% & more")
    (_, attributes), *_ = [
        e for e in Page(f"<h1></h1>{tables.html(table)}").elements if e[0] == "table"
    ]
    assert attributes["aria-label"] == "50% & more" and attributes["class"] == "sortable"
    assert attributes["data-markdown"] == tables.markdown(table)
    assert attributes["data-latex"] == tables.latex(table, "50% & more")
    # `page.js` takes the lines above the rows as they are: 2 of Markdown, 7 of LaTeX.
    lines = attributes["data-latex"].splitlines()
    assert len(attributes["data-markdown"].splitlines()) == 2 + len(table.rows)
    assert lines[6] == r"\midrule" and lines[7 + len(table.rows)] == r"\bottomrule"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.421, "0.421 s"), (59.9, "59.9 s"), (73.2, "1 min 13 s"), (11100, "3 h 5 min")],
)
def test_duration_text(seconds, text):
    assert tables.duration_text(seconds) == text


def test_csv_quotes():
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(["a", "b"], [{"a": 'x " , y'}]))))
    assert rows == [{"a": 'x " , y', "b": ""}]


@pytest.mark.parametrize(
    ("value", "text"),
    [(8 / 255, "8/255"), (0.2, "0.2"), (0, "0"), (0.03, "0.03"), (0.0123, "0.0123"), (None, "-")],
)
def test_eps_text(value, text):
    assert tables.eps_text(value) == text
