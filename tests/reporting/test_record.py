"""The typed record: evaluation.json and back, and files that lack or spoil parts of it."""

import json
from pathlib import Path

import pytest
from evaluations import evaluation, suite

from ard_jax.reporting.record import (
    ComparisonRecord,
    Evaluation,
    NetworkResult,
    Result,
    Run,
    Spread,
    label,
    read_evaluation,
    selection_note,
)

# A real run's file: AutoAttack with Square's curve, a sweep, teachers, timing, a selection.
STORED = json.loads(Path(__file__).with_name("evaluation.json").read_text())


def test_a_file_comes_back_key_for_key():
    again = Evaluation.from_json(STORED).to_json()
    assert again == STORED and list(again) == list(STORED)


def test_a_comparison_comes_back():
    spread = Spread(mean=0.5, sd=None, n=1, values=(0.5,))
    record = ComparisonRecord(
        name="x",
        seeds=(0,),
        runs=(Run(method="sat", error="why"),),
        results=(Result(row="sat", seeds=(0,), metrics={"clean": spread}),),
    )
    values = json.loads(json.dumps(record.to_json()))
    assert ComparisonRecord.from_json(values) == record and "dataset" not in values


def test_typed_values():
    record = Evaluation.from_json(STORED)
    best = record.nets["student (best)"]
    assert (
        best.robust("fgsm").accuracy
        == STORED["nets"]["student (best)"]["attacks"]["fgsm"]["accuracy"]
    )
    assert (
        best.selected_by.scores["pgd_trades"] > 0
        and best.autoattack["square100"].curve.queries[0] == 0
    )
    assert record.attacks["fgsm"].parameters["eps"] == record.eps == 0.2
    assert record.teachers["robust"].accuracy["clean"] == 0.12 and record.timing.train_seconds > 0


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"nets": None, "attacks": None, "dataset": None, "seed": None, "eps": None, "warnings": None},
        {"nets": 3, "attacks": [], "dataset": "x", "seed": "x", "eps": "x", "warnings": "x", "timing": 1},
        {"nets": {"a": {}}, "written_by_a_later_version": {"a": 1}},
    ],
)  # fmt: skip
def test_missing_and_odd_parts_have_defaults(values):
    record = Evaluation.from_json(values)
    assert record.eps is None and record.warnings == () and record.dataset.class_names == ()
    assert "written_by_a_later_version" not in record.to_json()


def test_numbers_that_json_cannot_say():
    net = NetworkResult.from_json(
        {"clean": "nan", "attacks": {"cw": {"accuracy": "inf", "ci95": None}}}
    )
    assert net.clean != net.clean and net.robust("cw").accuracy == float("inf")
    assert net.robust("fgsm").accuracy is None and net.weighted("fgsm") is None


def test_main_attack():
    def main(*names):
        return Evaluation.from_json({"attacks": dict.fromkeys(names, {})}).main_attack()

    assert main("bim", "pgd_trades", "pgd_sat", "autoattack") == "autoattack"
    assert main("bim", "pgd_trades", "pgd_sat") == "pgd_sat" and main("bim", "cw") == "bim"
    assert main() is None


def test_weighted_is_computed_where_the_record_lacks_it():
    attacks = {"cw": {"accuracy": 0.5}, "bim": {"weighted": 0.1}}
    net = NetworkResult.from_json({"clean": 0.9, "attacks": attacks})
    assert net.weighted("cw") == pytest.approx(0.7) and net.weighted("bim") == 0.1


@pytest.mark.parametrize(
    ("name", "suites", "expected"),
    [
        ("autoattack", {"autoattack": suite()}, "autoattack"),
        ("autoattack", {"autoattack": suite(upper_bound=True)}, ""),
        ("autoattack", {}, ""),
        ("square100", {"square100": suite()}, ""),
    ],
)
def test_what_may_be_called_autoattack(name, suites, expected):
    net = NetworkResult.from_json({"attacks": {name: {"accuracy": 0.5}}, "autoattack": suites})
    assert net.complete() == expected


def test_labels_and_selection():
    record = Evaluation.from_json(evaluation())
    assert label(record, "pgd_sat") == "PGD_sat" and label(record, "unknown") == "unknown"
    assert "selected on the validation split" in selection_note(record)
    assert "TEST set" in selection_note(Evaluation(select_on="test"))
    assert selection_note(Evaluation()) == ""


def test_a_folder_without_a_whole_file_has_no_evaluation(tmp_path):
    assert read_evaluation(tmp_path) is None
    for text, known in (("{", False), ("[]", False), (json.dumps(STORED), True)):
        (tmp_path / "evaluation.json").write_text(text)
        assert (read_evaluation(tmp_path) is not None) == known
