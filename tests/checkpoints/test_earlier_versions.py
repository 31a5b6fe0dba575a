"""A run of version 0.1.0, its teachers and an imported network: `run_0_1_0.zip`, made by that version.

It is the experiment of `experiments.tiny` with ema_decay=0.9, its student exported to safetensors and
imported, and the logits that 0.1.0 gave on four images (expected.npz).
"""

import json

import numpy as np
import pytest
from experiments import tiny

from ard_jax.checkpoints import networks
from ard_jax.cli import export, train, train_checks
from ard_jax.config import build, parse
from ard_jax.training import teachers


@pytest.mark.parametrize(
    ("name", "path", "item"),
    [
        ("student", "run", "student"),
        ("ema", "run", "ema"),
        ("last", "run/last", "student"),
        ("robust", "teachers/robust-small_resnet-digits-sat-930577583821", "student"),
        ("imported", "imported", "student"),
    ],
)
def test_every_network_gives_its_logits(root, name, path, item):
    with np.load(root / "expected.npz") as expected:
        bundle, variables, *_ = networks.load(str(root / path), item)
        logits = np.asarray(bundle.apply(variables, expected["images"], False)[0])
        scale = np.abs(expected[name]).max()
        # Two float32 programs of some 20 operations in a row, relative to the largest logit.
        np.testing.assert_allclose(logits, expected[name], rtol=0, atol=1e-5 * scale)


def test_a_run_is_evaluated_again(root):
    experiment = train_checks.saved_experiment(str(root / "run"))
    assert experiment.method.name == "ciard" and experiment.ema_decay == 0.9
    report = train.evaluate_checkpoint(experiment, str(root / "run"), ["fgsm"])
    again = json.loads((report.parent / "evaluation.json").read_text())["nets"]
    before = json.loads((root / "run" / "evaluation.json").read_text())["nets"]
    assert again["student (best)"]["clean"] == before["student (best)"]["clean"]


def test_a_finished_run_is_known_and_its_teachers_are_found(root, capsys):
    raw = tiny(root, ema_decay=0.9)
    experiment = parse.to_experiment(raw)
    assert train.run(experiment) == root / "run" / "report.html"
    assert "This run is finished" in capsys.readouterr().out
    splits = build.load_data(experiment.data)
    mesh = build.make_mesh(experiment, splits)
    robust = teachers.obtain(build.teacher_settings(experiment, "robust"), splits, mesh)
    assert "Using the robust teacher" in capsys.readouterr().out
    meta = networks.describe_checkpoint(str(root / "run"))[1]
    assert meta["config"]["teachers"]["robust"] == robust.identity


def test_an_imported_network_teaches(root):
    raw = tiny(root, ema_decay=0.9)
    raw.teachers.robust.checkpoint = str(root / "imported")
    experiment = parse.to_experiment(raw)
    splits = build.load_data(experiment.data)
    settings = build.teacher_settings(experiment, "robust")
    teacher = teachers.obtain(settings, splits, build.make_mesh(experiment, splits))
    assert teacher.identity.startswith("imported ") and teacher.model == "small_resnet"


def test_a_run_is_exported(root):
    written = export.run(str(root / "run"), str(root / "out"), formats=("safetensors",))
    assert {path.name for path in written} >= {"student.safetensors", "model_card.md"}
