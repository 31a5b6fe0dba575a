"""Means over seeds, tables and plot of a comparison, from made-up evaluations."""

import csv
import dataclasses
import io
import json
import re
import statistics

import pytest
from evaluations import evaluation, net
from matplotlib.figure import Figure
from pages import Page

from ard_jax.reporting import comparison_page, plots
from ard_jax.reporting.record import (
    ComparedTeacher,
    ComparisonRecord,
    Evaluation,
    NetworkResult,
    Run,
)

PGD = {"pgd_sat": "PGD_sat"}
PUBLISHED = {
    "protocol": "300 epochs & picked on the test set.",
    "rows": {
        "sat": {"source": "A (2021), table 3", "clean": 83.4, "autoattack": 45.83},
        "rslad": {"source": "B (2021)", "clean": 83.38},
    },
}
FORMS = (
    comparison_page.text,
    comparison_page.markdown,
    comparison_page.latex,
    comparison_page.render,
)


def finished(clean, robust, seconds=2.0, nets=None, **fields):
    found = {"student (best)": net(clean, robust, attacks=PGD),
             "student (last)": net(clean, robust - 0.1, attacks=PGD)} | (nets or {})  # fmt: skip
    timing = {"train_seconds": 9.0, "seconds_per_epoch": seconds}
    fields = {"attacks": {"pgd_sat": {"label": "PGD_sat"}}, "teachers": {}, "warnings": []} | fields
    return Evaluation.from_json(
        evaluation(
            nets=found | {"robust teacher": net(0.9, 0.7, "teacher")}, timing=timing, **fields
        )
    )


def make_record(done, methods=("sat", "our_method"), seeds=(0, 1, 2), errors=(), **fields):
    statuses = {key: "finished" for key in done} | {key: "failed" for key in errors}
    teacher = NetworkResult.from_json(net(0.99, 0.9, attacks=PGD))
    record = ComparisonRecord(
        name="50%_of & more", main_attack="pgd_sat", seeds=seeds, methods=methods,
        settings={m: {"epochs": 3, "method.name": m} for m in methods},
        runs=tuple(Run(method=m, seed=s, status=statuses.get((m, s), "pending"), error="NaN", folder=m)
                   for s in seeds for m in methods),
        teachers={"robust": ComparedTeacher(identity="a", source="here", model="x", net=teacher)},
        **fields,
    )  # fmt: skip
    return comparison_page.summarize(record, done)


@pytest.fixture
def three_seeds():
    """sat's mean is higher by 0.02 in robust accuracy, within its own spread, and by 0.1 in clean."""
    robust = {"sat": (0.50, 0.54, 0.52), "our_method": (0.49, 0.51, 0.50)}
    clean = {"sat": (0.90, 0.90, 0.90), "our_method": (0.80, 0.79, 0.81)}
    return {
        (method, seed): finished(clean[method][seed], robust[method][seed], 2.0 + seed)
        for method in robust
        for seed in range(3)
    }


def row_of(record, label, checkpoint=0):
    table = comparison_page.result_tables(record)[checkpoint]
    (row,) = [row for row in table.cells() if row[0].text == label]
    return dict(zip(table.titles[1:], row[1:], strict=True))


def test_mean_and_sample_deviation(three_seeds):
    record = make_record(three_seeds)
    result = next(r for r in record.results if r.row == "sat" and r.checkpoint == "best")
    value = result.metrics["pgd_sat"]
    assert value.mean == pytest.approx(0.52)
    assert value.sd == pytest.approx(0.02)  # sqrt(2 * 0.02^2 / (3 - 1))
    assert (value.n, value.values) == (3, (0.50, 0.54, 0.52))
    nrr = [2 * 0.9 * r / (0.9 + r) for r in (0.50, 0.54, 0.52)]
    texts = {title: cell.text for title, cell in row_of(record, "sat").items()}
    assert texts == {
        "clean": "90.00 ± 0.00",
        "PGD_sat": "52.00 ± 2.00",
        "worst case": "45.00 ± 2.00",
        "weighted PGD_sat": "71.00 ± 1.00",
        "NRR PGD_sat": f"{100 * statistics.mean(nrr):.2f} ± {100 * statistics.stdev(nrr):.2f}",
        "worst class PGD_sat": "26.00 ± 1.00",
        "seconds per epoch": "3.00 ± 1.00",
    }
    assert row_of(record, "sat", checkpoint=1)["PGD_sat"].text == "42.00 ± 2.00"


def test_marks_follow_the_rule_of_the_caption(three_seeds):
    record = make_record(three_seeds)
    sat, ours = row_of(record, "sat"), row_of(record, "our_method")
    assert (sat["clean"].mark, ours["clean"].mark) == ("best", "")
    assert (sat["PGD_sat"].mark, ours["PGD_sat"].mark) == ("best", "close")
    # Teachers and seconds take no part.
    teacher = row_of(record, "robust teacher")["clean"]
    assert (teacher.text, teacher.mark) == ("99.00", "")
    assert not any(row["seconds per epoch"].mark for row in (sat, ours))


def test_one_seed_has_no_deviation_and_no_dagger():
    done = {("sat", 7): finished(0.9, 0.5), ("our_method", 7): finished(0.9, 0.499)}
    record = make_record(done, seeds=(7,))
    cells = [row_of(record, name)["PGD_sat"] for name in ("sat", "our_method")]
    assert [(cell.text, cell.mark) for cell in cells] == [("50.00", "best"), ("49.90", "")]
    assert row_of(record, "sat")["clean"].mark == ""  # all are equal
    assert "†" not in comparison_page.text(record)
    assert any("One seed" in note for note in record.notes)


def test_failed_and_missing_runs_show(three_seeds):
    done = {("sat", seed): three_seeds["sat", seed] for seed in (0, 2)}
    record = make_record(done, errors=[("sat", 1), ("our_method", 0)])
    assert row_of(record, "sat (n = 2 of 3)")["PGD_sat"].text == "51.00 ± 1.41"
    assert row_of(record, "our_method (n = 0 of 3)")["PGD_sat"].text == "-"
    assert any(text.startswith("sat, seed 1 failed: NaN") for text in record.warnings)
    assert any("2 of 6 runs are not finished" in text for text in record.warnings)
    for render in FORMS:
        assert "n = 2 of 3" in render(record)


def test_nothing_finished_is_still_a_table(tmp_path):
    record = make_record({})
    assert row_of(record, "sat (n = 0 of 3)")["clean"].text == "-"
    comparison_page.write(record, tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {
        ".json",
        ".csv",
        ".md",
        ".tex",
        ".png",
        ".svg",
        ".html",
    }
    assert "robust teacher" in (tmp_path / "comparison.html").read_text()
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert ComparisonRecord.from_json(stored) == record


def test_average_of_weights_has_a_row_of_its_own():
    average = {"student EMA (best)": net(0.95, 0.6, attacks=PGD)}
    done = {("sat", seed): finished(0.9, 0.5, nets=average) for seed in range(3)}
    assert row_of(make_record(done), "sat (EMA)")["PGD_sat"].text == "60.00 ± 0.00"


def test_teacher_of_another_run_is_told():
    done = {("sat", seed): finished(0.9, 0.5, teachers={"robust": {"identity": identity}})
            for seed, identity in enumerate("ba")}  # fmt: skip
    told = [text for text in make_record(done).warnings if "another robust teacher" in text]
    assert len(told) == 1 and told[0].startswith("sat, seed 0")


def test_what_is_known_of_autoattack_is_told(three_seeds):
    assert any("upper bounds" in note for note in make_record(three_seeds).notes)
    done = {("sat", 0): finished(0.9, 0.5, attacks={"autoattack": {"label": "AutoAttack"}})}
    for few, told in ((100, True), (1000, False), (0, False)):  # of 360
        notes = make_record(done, protocol={"eval.autoattack_examples": few}).notes
        assert not any("upper bounds" in note for note in notes)
        assert ("AutoAttack: the first 100 images." in notes) == told


def test_latex_is_escaped_and_rectangular(three_seeds):
    tex = comparison_page.latex(make_record(three_seeds))
    assert r"our\_method" in tex and r"50\%\_of \& more" in tex and r"PGD\_sat" in tex
    assert r"\textbf{52.00 $\pm$ 2.00}" in tex and r"50.00 $\pm$ 1.00$^{\dagger}$" in tex
    body = "".join(line + "\n" for line in tex.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[_%#]", body)
    width = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", tex).group(1))
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 8 and {len(re.split(r"(?<!\\)&", row)) for row in rows} == {width}


def test_csv_and_markdown_hold_every_number(three_seeds):
    record = make_record(three_seeds)
    rows = csv.DictReader(io.StringIO(comparison_page.csv_text(record)))
    (row,) = [
        r for r in rows if (r["row"], r["checkpoint"], r["metric"]) == ("sat", "best", "pgd_sat")
    ]
    assert row["values"] == "0.5 0.54 0.52" and row["seeds"] == "0 1 2" and row["n"] == "3"
    assert float(row["sd"]) == pytest.approx(0.02)
    assert "**52.00 ± 2.00**" in comparison_page.markdown(record)


def test_published_numbers_stand_beside_ours(three_seeds):
    *_, table = comparison_page.result_tables(make_record(three_seeds, published=PUBLISHED))
    assert table.titles == ["method", "clean", "autoattack"]  # and no column that no paper has
    assert [[cell.text for cell in row] for row in table.cells()] == [
        ["sat", "90.00 ± 0.00", "-"],
        ["sat, paper", "83.40", "45.83"],
        ["our_method", "80.00 ± 1.00", "-"],
    ]
    assert "sat: A (2021), table 3." in table.note and "B (2021)" not in table.note
    rows = {"sat": {"source": "A", "pgd_sat": 49.0}, "our_method": {"source": "A", "clean": 88.87}}
    published = PUBLISHED | {"rows": rows}
    *_, table = comparison_page.result_tables(make_record(three_seeds, published=published))
    assert table.titles == ["method", "clean", "PGD_sat"] and "sat, our_method: A." in table.note
    texts = {row[0].text: [cell.text for cell in row[1:]] for row in table.cells()}
    assert texts["sat, paper"] == ["", "49.00"] and texts["our_method, paper"] == ["88.87", ""]


def test_both_checkpoints_stand_side_by_side_and_papers_beside_theirs(three_seeds):
    rows = {
        "sat": {"source": "A", "pgd_sat": 43.0, "checkpoint": "last"},
        "our_method": {"source": "A", "pgd_sat": 44.0, "checkpoint": "last", "net": "SWA"},
    }
    record = make_record(three_seeds, published=PUBLISHED | {"rows": rows})
    *_, both, beside = comparison_page.result_tables(record)
    assert both.titles == ["method", "clean, best", "clean, last", "PGD_sat, best", "PGD_sat, last"]
    assert [cell.text for cell in both.cells()[0]] == [
        "sat", "90.00 ± 0.00", "90.00 ± 0.00", "52.00 ± 2.00", "42.00 ± 2.00",
    ]  # fmt: skip
    assert [[cell.text for cell in row] for row in beside.cells()] == [
        ["sat (last)", "42.00 ± 2.00"],
        ["sat, paper (last)", "43.00"],
        ["our_method (SWA, last)", "-"],  # no average was kept here
        ["our_method, paper (SWA, last)", "44.00"],
    ]


def test_a_run_learned_from_its_own_named_teacher(three_seeds):
    """Of two named ones; a warning tells only of another than that."""
    told = {
        key: Evaluation.from_json(
            e.to_json() | {"teachers": {"robust": {"identity": f"of {key[0]}"}}}
        )
        for key, e in three_seeds.items()
    }
    record = make_record(told)
    assert sum("learned from another robust teacher" in w for w in record.warnings) == 6
    named = {
        name: ComparedTeacher(role="robust", methods=(name,), identity=f"of {name}")
        for name in ("sat", "our_method")
    }
    again = comparison_page.summarize(dataclasses.replace(record, teachers=named), told)
    assert not any("learned from" in warning for warning in again.warnings)


LINES = (
    r"^sat, paper +83\.40 +45\.83 *$",
    r"^\| sat, paper \| 83\.40 \| 45\.83 \|$",
    r"^sat, paper & 83\.40 & 45\.83 \\\\$",
    r"<tr><th>sat, paper</th><td>83\.40</td><td>45\.83</td></tr>",
)


@pytest.mark.parametrize(("render", "line"), [*zip(FORMS, LINES, strict=True)])
def test_every_form_of_the_report_has_the_published_numbers(three_seeds, render, line):
    page = render(make_record(three_seeds, published=PUBLISHED))
    assert len(re.findall(line, page, re.MULTILINE)) == 1
    assert "not measured here" in page and "A (2021), table 3" in page
    assert re.search(r"300 epochs (&|&amp;|\\&) picked on the test set", page)
    assert "not measured here" not in render(make_record(three_seeds))


def test_plot_shows_best_checkpoints_and_teachers(three_seeds):
    shown = {p.label: p for p in comparison_page.points(make_record(three_seeds))}
    assert list(shown) == ["sat", "our_method", "robust teacher"]
    assert shown["sat"].y == pytest.approx(52) and shown["sat"].y_sd == pytest.approx(2)
    assert shown["robust teacher"].star and shown["robust teacher"].x_sd == 0


def panels(points):
    figure = plots.scatter(points, "title", "x", "y")
    assert isinstance(figure, Figure)
    return [[text.get_text() for text in axes.texts] for axes in figure.axes]


def test_plot_enlarges_the_robust_ones(three_seeds):
    """Every name once: beside the frame for the weak ones, in the enlarged part for the others."""
    points = comparison_page.points(make_record(three_seeds))
    names = ["sat", "our_method", "robust teacher"]
    assert panels(points) == [names]
    assert panels([*points, plots.Point("natural", 97, 15)]) == [["natural"], names]


def test_page_escapes_what_comes_from_the_run():
    done = {("sat", 0): finished(0.9, 0.5, warnings=["<script>alert(1)</script>"])}
    page = comparison_page.render(make_record(done))
    assert page.count("<script") == 1 and "<script>alert" not in page and "&lt;script" in page
    assert Page(page).problems() == []
    assert not re.search(r"(src|href)=\"https?:", page)
