"""Comparisons: means and tables from made-up records, what is refused, and small real ones."""

import csv
import io
import json
import re
import statistics

import jax
import pytest
from experiments import tiny

from ard_jax import data
from ard_jax.cli import compare, train
from ard_jax.config.comparison import from_config
from ard_jax.config.parse import ConfigError
from ard_jax.reporting import comparison_page, comparison_results, comparison_table
from ard_jax.runtime import compilation
from ard_jax.training.loop import TrainingDivergedError


def net(clean, robust):
    return {
        "clean": clean,
        "worst_class_clean": clean / 2,
        "attacks": {
            "pgd_sat": {
                "accuracy": robust,
                "weighted": (clean + robust) / 2,
                "nrr": 2 * clean * robust / (clean + robust),
                "worst_class": robust / 3,
            }
        },
        "worst_case": {"accuracy": robust - 0.01},
    }


def evaluation(clean, robust, seconds=2.0, **nets):
    found = {"student (best)": net(clean, robust), "student (last)": net(clean, robust - 0.1)}
    return {
        "dataset": {"name": "digits", "split": "test", "num_examples": 360},
        "eps": 8 / 255,
        "norm": "linf",
        "select_on": "validation",
        "attacks": {"pgd_sat": {"label": "PGD_sat"}},
        "nets": found | nets | {"robust teacher": net(0.9, 0.7)},
        "teachers": {},
        "timing": {"train_seconds": 9.0, "seconds_per_epoch": seconds},
        "warnings": [],
    }


def make_record(done, methods=("sat", "our_method"), seeds=(0, 1, 2), errors=(), published=None):
    statuses = {key: "finished" for key in done} | {key: "failed" for key in errors}
    record = {
        "name": "50%_of & more",
        "created": "now",
        "command": "python",
        "main_attack": "pgd_sat",
        "seeds": list(seeds),
        "methods": list(methods),
        "protocol": {"eps": 8 / 255},
        "settings": {m: {"epochs": 3, "method.name": m} for m in methods},
        "published": published or {},
        "runs": [
            {"method": m, "seed": s, "status": statuses.get((m, s), "pending"), "error": "NaN", "folder": m}
            for s in seeds
            for m in methods
        ],
        "teachers": {"robust": {"identity": "a", "source": "here", "model": "x", "net": net(0.99, 0.9)}},
    } | comparison_results.shared(list(done.values()))  # fmt: skip
    record["results"] = comparison_results.aggregate(methods, seeds, done)
    record["results"] += comparison_results.teacher_results(record["teachers"])
    record["notes"] = comparison_results.notes(record)
    record["warnings"] = comparison_results.warnings(record, done)
    return record


@pytest.fixture
def three_seeds():
    """sat's mean is higher by 0.02 in robust accuracy, within its own spread, and by 0.1 in clean."""
    robust = {"sat": (0.50, 0.54, 0.52), "our_method": (0.49, 0.51, 0.50)}
    clean = {"sat": (0.90, 0.90, 0.90), "our_method": (0.80, 0.79, 0.81)}
    return {
        (method, seed): evaluation(clean[method][seed], robust[method][seed], 2.0 + seed)
        for method in robust
        for seed in range(3)
    }


def row_of(record, label, checkpoint=0):
    table = comparison_table.tables(record)[checkpoint]
    return dict(zip(table.titles[1:], dict(table.rows)[label], strict=True))


def test_mean_and_sample_deviation(three_seeds):
    record = make_record(three_seeds)
    result = next(r for r in record["results"] if r["row"] == "sat" and r["checkpoint"] == "best")
    value = result["metrics"]["pgd_sat"]
    assert value["mean"] == pytest.approx(0.52)
    assert value["sd"] == pytest.approx(0.02)  # sqrt(2 * 0.02^2 / (3 - 1))
    assert (value["n"], value["values"]) == (3, [0.50, 0.54, 0.52])
    row = row_of(record, "sat")
    assert row["PGD_sat"].text == "52.00 ± 2.00"
    assert row["worst case"].text == "51.00 ± 2.00"
    assert row["weighted PGD_sat"].text == "71.00 ± 1.00"
    nrr = [2 * 0.9 * r / (0.9 + r) for r in (0.50, 0.54, 0.52)]
    expected = f"{100 * statistics.mean(nrr):.2f} ± {100 * statistics.stdev(nrr):.2f}"
    assert row["NRR PGD_sat"].text == expected
    assert row["worst class PGD_sat"].text == "17.33 ± 0.67"
    assert row["seconds per epoch"].text == "3.00 ± 1.00"
    assert row_of(record, "sat", checkpoint=1)["PGD_sat"].text == "42.00 ± 2.00"


def test_marks_follow_the_rule_of_the_caption(three_seeds):
    record = make_record(three_seeds)
    sat, ours = row_of(record, "sat"), row_of(record, "our_method")
    assert sat["clean"].best and not ours["clean"].close
    assert sat["PGD_sat"].best and ours["PGD_sat"].close and ours["PGD_sat"].text.endswith("†")
    # Teachers and seconds take no part.
    teacher = row_of(record, "robust teacher")
    assert teacher["clean"].text == "99.00" and not teacher["clean"].best
    assert not any(row["seconds per epoch"].best for row in (sat, ours))


def test_nobody_is_best_where_all_are_equal():
    done = {(m, 0): evaluation(0.9, 0.0) for m in ("sat", "our_method")}
    row = row_of(make_record(done, seeds=(0,)), "sat")
    assert row["PGD_sat"].text == "0.00" and not row["PGD_sat"].best


def test_one_seed_has_no_deviation_and_no_dagger():
    done = {("sat", 7): evaluation(0.9, 0.5), ("our_method", 7): evaluation(0.8, 0.499)}
    record = make_record(done, seeds=(7,))
    row = row_of(record, "our_method")
    assert row["PGD_sat"].text == "49.90"
    assert not row["PGD_sat"].close and row_of(record, "sat")["PGD_sat"].best
    assert "†" not in comparison_table.text(record)
    assert any("One seed" in note for note in record["notes"])


def test_failed_and_missing_runs_show(three_seeds):
    del three_seeds["sat", 1]
    for seed in range(3):
        del three_seeds["our_method", seed]
    record = make_record(three_seeds, errors=[("sat", 1), ("our_method", 0)])
    assert row_of(record, "sat (n = 2 of 3)")["PGD_sat"].text == "51.00 ± 1.41"
    assert row_of(record, "our_method (n = 0 of 3)")["PGD_sat"].text == "-"
    assert any(text.startswith("sat, seed 1 failed: NaN") for text in record["warnings"])
    assert any("2 of 6 runs are not finished" in text for text in record["warnings"])
    for render in (
        comparison_table.text,
        comparison_table.markdown,
        comparison_table.latex,
        comparison_page.render,
    ):
        assert "n = 2 of 3" in render(record)  # fmt: skip


def test_nothing_finished_is_still_a_table(tmp_path):
    record = make_record({})
    assert row_of(record, "sat (n = 0 of 3)")["clean"].text == "-"
    comparison_page.write_plot(record, tmp_path)
    assert "robust teacher" in comparison_page.render(record)


def test_average_of_weights_has_a_row_of_its_own(three_seeds):
    for record in three_seeds.values():
        record["nets"]["student EMA (best)"] = net(0.95, 0.6)
    assert row_of(make_record(three_seeds), "sat (EMA)")["PGD_sat"].best


def test_teacher_of_another_run_is_told(three_seeds):
    three_seeds["sat", 0]["teachers"] = {"robust": {"identity": "b"}}
    three_seeds["sat", 1]["teachers"] = {"robust": {"identity": "a"}}
    told = [t for t in make_record(three_seeds)["warnings"] if "another robust teacher" in t]
    assert len(told) == 1 and told[0].startswith("sat, seed 0")


def test_upper_bound_is_told_unless_autoattack_is_there(three_seeds):
    assert any("upper bounds" in note for note in make_record(three_seeds)["notes"])
    for record in three_seeds.values():
        record["attacks"]["autoattack"] = {"label": "AutoAttack"}
    assert not any("upper bounds" in note for note in make_record(three_seeds)["notes"])


def test_latex_is_escaped_and_rectangular(three_seeds):
    assert comparison_table.escape_latex("a_b%&#$\\{±") == r"a\_b\%\&\#\$\textbackslash{}\{$\pm$"
    tex = comparison_table.latex(make_record(three_seeds))
    assert r"our\_method" in tex and r"50\%\_of \& more" in tex and r"PGD\_sat" in tex
    assert r"\textbf{52.00 $\pm$ 2.00}" in tex and r"50.00 $\pm$ 1.00$^{\dagger}$" in tex
    body = "".join(line + "\n" for line in tex.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[_%#]", body)
    width = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", tex).group(1))
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 8 and {len(re.split(r"(?<!\\)&", row)) for row in rows} == {width}
    assert tex.count(r"\toprule") == tex.count(r"\midrule") == tex.count(r"\bottomrule") == 2


def test_csv_and_markdown_hold_every_number(three_seeds):
    record = make_record(three_seeds)
    rows = list(csv.DictReader(io.StringIO(comparison_table.csv_text(record))))
    (row,) = [
        r for r in rows if (r["row"], r["checkpoint"], r["metric"]) == ("sat", "best", "pgd_sat")
    ]
    assert row["values"] == "0.5 0.54 0.52" and row["seeds"] == "0 1 2" and row["n"] == "3"
    assert float(row["sd"]) == pytest.approx(0.02)
    markdown = comparison_table.markdown(record)
    widths = {line.count("|") for line in markdown.splitlines() if line.startswith("|")}
    assert len(widths) == 1 and "**52.00 ± 2.00**" in markdown


PUBLISHED = {
    "protocol": "300 epochs & picked on the test set.",
    "rows": {
        "sat": {"source": "A (2021), table 3", "clean": 83.4, "autoattack": 45.83},
        "rslad": {"source": "B (2021)", "clean": 83.38},
    },
}


def test_published_numbers_stand_beside_ours(three_seeds):
    record = make_record(three_seeds, published=PUBLISHED)
    *_, table = comparison_table.tables(record)
    assert table.titles == ["method", "clean", "autoattack"]  # and no column that no paper has
    rows = {label: [cell.text for cell in cells] for label, cells in table.rows}
    assert rows == {
        "sat": ["90.00 ± 0.00", "-"],
        "sat, paper": ["83.40", "45.83"],
        "our_method": ["80.00 ± 1.00", "-"],
    }
    assert "sat: A (2021), table 3." in table.note and "B (2021)" not in table.note


def test_published_number_that_is_not_known_is_blank(three_seeds):
    published = PUBLISHED | {"rows": {"sat": {"source": "A", "pgd_sat": 49.0},
                                      "our_method": {"source": "A", "clean": 88.87}}}  # fmt: skip
    *_, table = comparison_table.tables(make_record(three_seeds, published=published))
    rows = {label: [cell.text for cell in cells] for label, cells in table.rows}
    assert table.titles == ["method", "clean", "PGD_sat"]
    assert rows["sat, paper"] == ["", "49.00"] and rows["our_method, paper"] == ["88.87", ""]
    assert "sat, our_method: A." in table.note


@pytest.mark.parametrize(
    "render, line",
    [
        (comparison_table.text, r"^sat, paper +83\.40 +45\.83 *$"),
        (comparison_table.markdown, r"^\| sat, paper \| 83\.40 \| 45\.83 \|$"),
        (comparison_table.latex, r"^sat, paper & 83\.40 & 45\.83 \\\\$"),
        (comparison_page.render, r"<tr><th>sat, paper</th><td>83\.40</td><td>45\.83</td></tr>"),
    ],
)
def test_every_form_of_the_report_has_the_published_numbers(three_seeds, render, line):
    page = render(make_record(three_seeds, published=PUBLISHED))
    assert len(re.findall(line, page, re.MULTILINE)) == 1
    assert "not measured here" in page and "A (2021), table 3" in page
    assert re.search(r"300 epochs (&|&amp;|\\&) picked on the test set", page)
    assert "not measured here" not in render(make_record(three_seeds))


def test_first_images_for_autoattack_are_told(three_seeds):
    for evaluated in three_seeds.values():
        evaluated["attacks"]["autoattack"] = {"label": "AutoAttack"}
    record = make_record(three_seeds)
    for few, told in ((100, True), (1000, False), (0, False)):  # of 360
        record["protocol"]["eval.autoattack_examples"] = few
        notes = comparison_results.notes(record)
        assert any(note == "AutoAttack: the first 100 images." for note in notes) == told


def test_plot_shows_best_checkpoints_and_teachers(three_seeds):
    shown = {p["label"]: p for p in comparison_page.points(make_record(three_seeds))}
    assert list(shown) == ["sat", "our_method", "robust teacher"]
    assert shown["sat"]["y"] == pytest.approx(52) and shown["sat"]["y_sd"] == pytest.approx(2)
    assert shown["robust teacher"]["x_sd"] == 0
    figure = comparison_page.plot(make_record(three_seeds))
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == set(shown)


def test_plot_enlarges_the_robust_ones(three_seeds):
    """Every name once: beside the frame for the weak ones, in the enlarged part for the others."""
    for seed in range(3):
        three_seeds["natural", seed] = evaluation(0.97, 0.15)
    record = make_record(three_seeds, methods=("sat", "our_method", "natural"))
    whole, enlarged = comparison_page.plot(record).axes
    assert [text.get_text() for text in whole.texts] == ["natural"]
    assert [text.get_text() for text in enlarged.texts] == ["sat", "our_method", "robust teacher"]


def test_page_escapes_what_comes_from_the_run(three_seeds):
    record = make_record(three_seeds, errors=[])
    record["warnings"] = ["<script>alert(1)</script>"]
    page = comparison_page.render(record)
    assert "<script" not in page and "&lt;script" in page
    assert not re.search(r"(src|href)=\"https?:", page)


def comparison(tmp_path, runs, seeds=(0,), **fields):
    """A comparison config of tiny runs: name -> (variant, overrides)."""
    experiments = {}
    for name, (variant, overrides) in runs.items():
        raw = tiny(tmp_path, variant, eval__attacks=("pgd_sat",))
        raw.workdir = ""
        raw = raw.to_dict()
        for key, value in overrides.items():
            *groups, last = key.split("__")
            target = raw
            for group in groups:
                target = target[group]
            target[last] = value
        experiments[name] = raw
    workdir = str(tmp_path / "comparison")
    return {"name": "tiny", "workdir": workdir, "seeds": seeds, "methods": tuple(runs),
            "runs": experiments, "main_attack": "pgd_sat"} | fields  # fmt: skip


def published(**row):
    return {"published": PUBLISHED | {"rows": {"sat": {"source": "A"} | row}}}


def test_all_problems_of_all_runs_are_listed_together(tmp_path):
    raw = comparison(
        tmp_path,
        {
            "sat": ("sat", {"epochs": 0}),
            "natural": ("natural", {"eval__every": 0, "data__pad": -1}),
        },
    )
    with pytest.raises(ConfigError) as caught:
        from_config(raw)
    lines = str(caught.value).split("\n  - ")[1:]
    assert [line.split(":")[0] for line in lines] == ["sat", "natural", "natural"]
    assert not (tmp_path / "comparison").exists()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"methods": ("sat", "nothing")}, "no run 'nothing'; there are sat"),
        ({"methods": ()}, "config.methods=(): needs at least 1"),
        ({"methods": ("sat", "sat")}, "'sat' more than once"),
        ({"seeds": ()}, "config.seeds=(): needs at least 1"),
        ({"seeds": (1, 1)}, "config.seeds: 1 more than once"),
        ({"seeds": (True, -1)}, "config.seeds[0]=True: expected an integer"),
        ({"seeds": 3}, "expected a tuple"),
        ({"main_attack": "cw_inf"}, "lacks main_attack='cw_inf'"),
        ({"metods": ()}, "config.metods does not exist"),
        ({"seeds": (-1,)}, "config.seeds[0]=-1: must be at least 0"),
        ({"published": {"sat": {"clean": 80.0}}}, "config.published must be protocol"),
        ({"published": PUBLISHED}, "config.published.rows.rslad: no run 'rslad'"),
        ({"published": PUBLISHED | {"protocol": ""}}, "config.published.protocol must say"),
        (published(clean=80.0, source=""), "rows.sat.source must say"),
        (published(clean=0.8, pgd=50.0), "rows.sat.pgd: neither clean nor an attack"),
        (published(clean=180.0), "rows.sat.clean=180.0: expected a percentage"),
    ],
)
def test_refused(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_config(comparison(tmp_path, {"sat": ("sat", {})}, **fields))


def test_two_protocols_are_refused_by_key(tmp_path):
    runs = {
        "sat": ("sat", {}),
        "natural": ("natural", {"eps": 0.1, "student__kwargs": {"widths": (8,)}}),
        "long": ("sat", {"epochs": 7, "student_optim__lr": 0.3, "eval__transfer": False}),
    }
    with pytest.raises(ConfigError) as caught:
        from_config(comparison(tmp_path, runs))
    text = str(caught.value)
    assert "config.eps must be the same in all runs: 0.2 in sat, long; 0.1 in natural" in text
    assert "config.student.kwargs.widths" in text and "config.student.kwargs.blocks" in text
    assert text.count("\n  - ") == 3  # what may differ, or is left out of the runs, is no problem


def test_settings_hold_what_may_differ(tmp_path):
    runs = {"natural": ("natural", {}), "sat": ("sat", {"epochs": 7}), "ciard": ("", {})}
    built = from_config(comparison(tmp_path, runs, seeds=(3, 4)))
    assert list(built.experiments)[:4] == [
        ("natural", 3), ("sat", 3), ("ciard", 3), ("natural", 4)]  # fmt: skip
    assert built.experiments["sat", 4].seed == 4
    assert built.experiments["sat", 4].workdir.endswith("comparison/sat/seed4")
    assert built.settings["sat"]["epochs"] == 7 and built.settings["sat"]["attack.name"]
    assert "attack.name" not in built.settings["natural"]
    assert built.settings["ciard"]["method.push_lambda"] == 1.0
    assert built.roles == ("robust", "clean") and "teachers.clean.net.model" in built.protocol


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two methods, two seeds, interrupted in the third run; then the same again, uninterrupted."""
    folder = tmp_path_factory.mktemp("compared")
    raw = comparison(folder, {"natural": ("natural", {}), "sat": ("sat", {})}, seeds=(0, 1))
    real, calls, codes, records = train.run, [], [], []

    def interrupt(experiment):
        calls.append(experiment.workdir)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(experiment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "run", interrupt)
        for _ in range(2):
            codes.append(compare.run(from_config(raw)))
            records.append(json.loads((folder / "comparison" / "comparison.json").read_text()))
    return raw, folder / "comparison", calls, codes, records


def test_interrupted_comparison_writes_its_table_and_continues(compared):
    _, _, calls, codes, (interrupted, _) = compared
    assert codes == [compare.INTERRUPTED, 0]
    runs = ["/".join(path.split("/")[-2:]) for path in calls]
    assert runs == ["natural/seed0", "sat/seed0", "natural/seed1", "natural/seed1", "sat/seed1"]
    assert [r["status"] for r in interrupted["runs"]] == 2 * ["finished"] + 2 * ["pending"]
    assert "sat (n = 1 of 2)" in comparison_table.text(interrupted)


def test_real_comparison_writes_everything(compared):
    _, folder, _, _, (_, record) = compared
    endings = {p.suffix for p in folder.glob("comparison.*")}
    assert endings == {".json", ".csv", ".md", ".tex", ".png", ".svg", ".html"}
    assert [r["status"] for r in record["runs"]] == 4 * ["finished"]
    result = record["results"][0]
    assert (result["row"], result["checkpoint"], result["seeds"]) == ("natural", "best", [0, 1])
    for seed, value in enumerate(result["metrics"]["pgd_sat"]["values"]):
        run = json.loads((folder / f"natural/seed{seed}/evaluation.json").read_text())
        assert value == run["nets"]["student (best)"]["attacks"]["pgd_sat"]["accuracy"]
        assert run["seed"] == seed and set(run["nets"]) == {"student (best)", "student (last)"}
        assert 0 < run["timing"]["seconds_per_epoch"] < run["timing"]["train_seconds"]


def test_third_start_repeats_nothing(compared):
    raw, folder, *_ = compared
    runs = [*folder.glob("*/seed*/evaluation.json"), *folder.glob("*/seed*/last/*")]
    before = {path: path.stat().st_mtime_ns for path in runs}
    assert len(before) >= 8
    compilation.TRACES.clear()
    assert compare.run(from_config(raw)) == 0
    assert not compilation.TRACES
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_run_is_not_taken_for_the_finished_one(compared):
    raw, _, _, _, _ = compared
    changed = json.loads(json.dumps(raw))
    changed["runs"]["sat"]["student_optim"]["lr"] = 0.05
    built = from_config(changed)
    kinds = {key[0]: train.finished(e) is None for key, e in built.experiments.items()}
    assert kinds == {"natural": False, "sat": True}


def test_failed_runs_are_recorded_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    runs = {"natural": ("natural", {}), "sat": ("sat", {}), "other": ("sat", {})}
    failures = {
        "natural": TrainingDivergedError("loss not finite at step 7"),
        "sat": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"),
    }
    started = []

    def fail(experiment):
        started.append(experiment.workdir.split("/")[-2])
        if started[-1] in failures:
            raise failures[started[-1]]

    monkeypatch.setattr(train, "run", fail)
    assert compare.run(from_config(comparison(tmp_path, runs))) == 1
    assert started == list(runs)
    record = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert [r["status"] for r in record["runs"]] == ["failed", "failed", "pending"]
    assert record["runs"][0]["error"] == "loss not finite at step 7"
    assert "FAILED: sat, seed 0: RESOURCE_EXHAUSTED" in capsys.readouterr().err


def test_data_that_cannot_be_read_stops_the_comparison(tmp_path):
    raw = comparison(tmp_path, {"natural": ("natural", {}), "sat": ("sat", {})})
    for run in raw["runs"].values():
        run["data"].update(name="npz", dir=str(tmp_path / "nothing.npz"))
    with pytest.raises(data.DataError):
        compare.run(from_config(raw))


def test_teachers_are_trained_and_evaluated_once(tmp_path, monkeypatch):
    """Without training students: what they would do with the teachers is tested with single runs."""
    built = from_config(comparison(tmp_path, {"ciard": ("", {})}))
    monkeypatch.setattr(train, "run", lambda experiment: None)
    compare.run(built)
    teachers = json.loads((tmp_path / "comparison" / "teachers.json").read_text())
    assert list(teachers) == ["robust", "clean"]
    assert "pgd_sat" in teachers["robust"]["net"]["attacks"]
    table = (tmp_path / "comparison" / "comparison.md").read_text()
    assert "| robust teacher | " in table and "| clean teacher | " in table
    calls = []
    monkeypatch.setattr(compare.full, "evaluate_all", lambda *args: calls.append(args))
    compare.run(built)
    assert not calls
    assert json.loads((tmp_path / "comparison" / "teachers.json").read_text()) == teachers


def test_teacher_that_cannot_teach_fails_its_methods_only(tmp_path, monkeypatch, capsys):
    missing = {"teachers__robust__checkpoint": str(tmp_path / "nowhere")}
    runs = {"ciard": ("", missing), "natural": ("natural", {})}
    raw = comparison(tmp_path, runs)
    raw["runs"]["ciard"]["teachers"]["clean"]["checkpoint"] = str(tmp_path / "nowhere")
    done = []
    monkeypatch.setattr(train, "run", lambda experiment: done.append(experiment.method.name))
    assert compare.run(from_config(raw)) == 1
    assert done == ["natural"]
    assert "nowhere does not exist" in capsys.readouterr().err
