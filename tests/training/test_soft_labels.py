"""Soft labels made before the run: right rows, the right view, read back on a second start."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import tiny

from ard_jax.cli import train
from ard_jax.config import build, parse
from ard_jax.configs import dard_digits
from ard_jax.runtime import sharding
from ard_jax.training import soft_labels, teachers


def experiment(folder, variant="", **overrides):
    """A tiny DARD run."""
    raw, small = dard_digits.get_config(variant), tiny(folder, **overrides)
    for name in ("workdir", "epochs", "batch_size", "student", "eval", "run"):
        raw[name] = small[name]
    raw.teachers = small.teachers
    raw.teachers.clean = None
    raw.attack.steps = 2
    return parse.to_experiment(raw)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Experiment, training split, teacher, labels and the folder that keeps them."""
    folder = tmp_path_factory.mktemp("labels")
    e = experiment(folder)
    mesh, splits = sharding.make_mesh(1), build.load_data(e.data)
    teacher = teachers.obtain(build.teacher_settings(e, "robust"), splits, mesh)
    split = splits.train.subset(np.arange(300))  # not a multiple of the batch
    arguments = (build.training_settings(e), split, teacher, mesh, folder / "run")
    return arguments, soft_labels.offline(*arguments)


def test_clean_rows_are_the_teacher_at_the_image_of_that_index(made):
    (_, split, teacher, *_), found = made
    for row in (0, 7, 255, 256, 299):
        image = jnp.asarray(split.images[row : row + 1], jnp.float32) / 255
        logits = teacher.bundle.apply(teacher.variables, image, False)[0]
        np.testing.assert_allclose(found["teacher_nat"][row], logits[0], atol=1e-4)


def test_adversarial_rows_are_worse_for_the_teacher(made):
    (_, split, *_), found = made

    def loss(logits):
        rows = jax.nn.log_softmax(logits)[np.arange(len(split)), split.labels]
        return -float(jnp.mean(rows))

    assert found["teacher_adv"].shape == (300, 10)
    assert loss(found["teacher_adv"]) > loss(found["teacher_nat"])


def test_second_start_reads_them_back(made, monkeypatch):
    arguments, found = made
    monkeypatch.setattr(soft_labels, "_program", lambda *a: pytest.fail("computed again"))
    again = soft_labels.offline(*arguments)
    for name, values in found.items():
        np.testing.assert_array_equal(values, again[name])


def test_another_attack_makes_them_anew(made, tmp_path):
    (settings, *others, folder), found = made
    own = shutil.copytree(folder, tmp_path / "run")  # other tests read what is there
    changed = dataclasses.replace(settings, attack=settings.attack.with_eps(0.01))
    other = soft_labels.offline(changed, *others, own)
    np.testing.assert_array_equal(other["teacher_nat"], found["teacher_nat"])
    assert np.any(other["teacher_adv"] != found["teacher_adv"])


@pytest.mark.slow
def test_scripts_preset_trains_from_labels_of_another_view(tmp_path):
    e = experiment(tmp_path, "paper_compat")
    record = json.loads((train.run(e).parent / "evaluation.json").read_text())
    assert (tmp_path / "run" / soft_labels.FILE).is_file()
    assert record["config"]["method"]["labels"] == "offline"
    with np.load(tmp_path / "run" / soft_labels.FILE) as kept:
        assert np.all(np.isfinite(kept["teacher_adv"])) and "crop" in str(kept["made_by"])
