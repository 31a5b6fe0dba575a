"""Comparisons: what is refused, and small real ones."""

import json
import re

import jax
import pytest
from experiments import tiny

from ard_jax import data
from ard_jax.cli import compare, train, train_checks
from ard_jax.config.comparison import from_config
from ard_jax.config.parse import ConfigError
from ard_jax.reporting import comparison_page
from ard_jax.reporting.record import ComparisonRecord
from ard_jax.runtime import compilation
from ard_jax.training.loop import ConfigChangedError, TrainingDivergedError

PUBLISHED = {
    "protocol": "300 epochs & picked on the test set.",
    "rows": {
        "sat": {"source": "A (2021), table 3", "clean": 83.4, "autoattack": 45.83},
        "rslad": {"source": "B (2021)", "clean": 83.38},
    },
}


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
        (published(checkpoint="first"), "rows.sat.checkpoint='first': choose among best, last"),
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
    assert built.teachers == {"robust": ("robust", ("ciard",)), "clean": ("clean", ("ciard",))}
    assert "teachers.clean.net.model" in built.protocol


def test_runs_are_made_with_each_named_teacher(tmp_path):
    runs, named = {"sat": ("sat", {}), "ciard": ("", {})}, {"a": "/x", "b": "/y", "c": None}
    rows = {"ciard-b": {"source": "A", "clean": 80.0, "checkpoint": "last"}}
    rows |= {"ciard-c": {"source": "A", "clean": 81.0}}  # of a teacher that was left out
    papers = {"protocol": "theirs", "rows": rows}
    built = from_config(comparison(tmp_path, runs, teachers=named, published=papers))
    assert built.methods == ("sat", "ciard-a", "ciard-b")
    both = ("ciard-a", "ciard-b")
    assert built.teachers == {
        "a": ("robust", both[:1]), "b": ("robust", both[1:]), "clean": ("clean", both),
    }  # fmt: skip
    for name, folder in (("ciard-a", "/x"), ("ciard-b", "/y")):
        experiment = built.experiments[name, 0]
        assert experiment.teachers.robust.checkpoint == folder
        assert experiment.workdir.endswith(f"comparison/{name}/seed0")
        assert built.settings[name]["teachers.robust.checkpoint"] == folder
    assert not any(key.startswith("teachers.robust") for key in built.protocol)
    with pytest.raises(ValueError, match="robust teacher: .*/x.*robust teacher: .*/y"):
        compare.run(built)  # before anything is trained
    assert not list((tmp_path / "comparison").glob("*/seed0"))


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (
            {"a": "", "b": "/y"},
            "config.teachers.a is missing: the LTD network; give --config.teachers.a=",
        ),
        ({"a": None}, "config.teachers are all None: leave one"),
        ({"a/b": "/x"}, "config.teachers: 'a/b' is no name for a folder"),
    ],
)
def test_named_teachers_that_are_refused(tmp_path, named, told):
    about = {"a": "the LTD network"}
    raw = comparison(tmp_path, {"ciard": ("", {})}, teachers=named, teachers_about=about)
    with pytest.raises(ConfigError, match=re.escape(told)):
        from_config(raw)


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
    assert "sat (n = 1 of 2)" in comparison_page.text(ComparisonRecord.from_json(interrupted))


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


def test_a_changed_run_is_not_taken_for_the_finished_one(compared, monkeypatch):
    raw, _, _, _, _ = compared
    changed = json.loads(json.dumps(raw))
    changed["runs"]["sat"]["student_optim"]["lr"] = 0.05
    built = from_config(changed)
    kinds = {key[0]: train_checks.finished(e) is None for key, e in built.experiments.items()}
    assert kinds == {"natural": False, "sat": True}
    with pytest.raises(
        ConfigChangedError, match=r"sat/seed0 holds .*\n  student_optim.lr: .*now 0.05\n"
    ):
        compare.run(built)
    changed = json.loads(json.dumps(raw))
    changed["runs"]["sat"]["epochs"] = 3
    longer = list(from_config(changed).experiments.values())
    with pytest.raises(
        ConfigChangedError, match="trained longer: config.student_optim.schedule='cosine'"
    ):
        train_checks.check_begun(longer)
    monkeypatch.setattr(train_checks.build, "extension_problem", lambda *_: "")
    train_checks.check_begun(longer)


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
