"""Training curves, from made-up metrics."""

import numpy as np
from evaluations import evaluation, make_metrics

from ard_jax.reporting import curves
from ard_jax.reporting.record import Evaluation


def test_series_keeps_the_last_of_a_step_and_thins():
    found = curves.series([
        {"step": 2, "loss": 1.0}, {"step": 1, "loss": 3.0, "epoch": 0}, {"step": 2, "loss": 2.0},
        {"step": 3, "loss": "nan"},
    ])  # fmt: skip
    assert list(found) == ["loss"]
    steps, values = found["loss"]
    np.testing.assert_array_equal(steps, [1, 2, 3])
    np.testing.assert_array_equal(values, [3.0, 2.0, np.nan])
    many = curves.series([{"step": s, "x": float(s)} for s in range(30_000)])["x"]
    assert len(many[0]) == 300
    np.testing.assert_allclose(many[0], many[1])
    np.testing.assert_allclose(many[1].mean(), 14999.5)


def test_what_belongs_together_is_one_figure():
    metrics = [
        *make_metrics(50),
        {"kind": "train", "step": 50, "temp_adv": 1.0, "teacher_robust_accuracy": 0.9, "entropy_adv": 0.1},
        {"kind": "eval", "step": 50, "net": "robust", "split": "test", "pgd_sat_on_student": 0.5},
    ]  # fmt: skip
    found = dict(curves.figures(Evaluation.from_json(evaluation()), metrics))
    assert "temp_adv" in found["Temperatures"] and "temp_nat" in found["Temperatures"]
    assert "push_scale" in found["Push scale"] and "entropy_adv" in found["Entropies"]
    robust = found["Accuracy: robust teacher"]
    assert "train: robust" in robust and "test: PGD_sat on the student" in robust
    assert "teacher" not in found["Accuracy: student"]


def test_teachers_own_trainings_have_figures_of_their_own():
    """Without the marks of the student's steps; none for a teacher without records."""
    own = {"robust": make_metrics(50), "clean": []}
    titles = [t for t, _ in curves.figures(Evaluation.from_json(evaluation()), [], own)]
    assert titles == [
        f"Robust teacher's own training: {what}" for what in ("accuracy", "loss terms")
    ]
