"""Which training made a teacher, for the report: found near its folder, and never in the way."""

import pytest

from ard_jax.evaluation import full
from ard_jax.reporting.record import Evaluation

LINE = '{"kind": "train", "step": 1, "loss": 2.0}\n'


def found(folder):
    record = Evaluation.from_json({"teachers": {"robust": {"source": "x", "folder": str(folder)}}})
    return full._teacher_metrics(record)


@pytest.mark.parametrize("inside", ["", "best", "best/600"])
def test_it_is_found_from_a_run_its_best_and_a_step(tmp_path, inside):
    (tmp_path / "metrics.jsonl").write_text(LINE)
    assert found(tmp_path / inside) == {"robust": [{"kind": "train", "step": 1, "loss": 2.0}]}


def test_teachers_without_a_training_have_none(tmp_path, monkeypatch):
    assert found(tmp_path / "imported" / "best" / "0") == {}
    (tmp_path / "metrics.jsonl").write_text(LINE)  # where no folder is known, no training is
    monkeypatch.chdir(tmp_path)
    assert found("") == {}


def test_a_damaged_one_is_told_and_left_out(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text("{broken\n" + LINE)
    assert found(tmp_path) == {}
    assert "lacks the training of the robust teacher" in caplog.text
