"""Every method on real CIFAR-10 images: two epochs of its `:cpu` variant on a few of them.

ARD_CIFAR_IMAGES=2000 takes as many, and the attack's own number of steps.
"""

import json
import os

import numpy as np
import pytest

from ard_jax import data, methods
from ard_jax.cli import train
from ard_jax.config import parse
from ard_jax.configs import cifar10
from ard_jax.io.metric_writer import METRICS_FILE, read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.data]
IMAGES = int(os.environ.get("ARD_CIFAR_IMAGES", 512))


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory):
    """Holds IMAGES training and 200 test images as an .npz file, and the teachers that the methods share."""
    folder, splits = tmp_path_factory.mktemp("cifar"), data.load("cifar10", shared_data / "tfds")
    arrays = {"class_names": np.array(splits.train.class_names)}
    for name, split, count in (("train", splits.train, IMAGES), ("test", splits.test, 200)):
        arrays |= {f"{name}_images": split.images[:count], f"{name}_labels": split.labels[:count]}
    np.savez(folder / "cifar.npz", **arrays)
    return folder


@pytest.mark.parametrize("name", methods.names())
def test_two_epochs_with_falling_loss(name, folder):
    raw = cifar10.get_config(f"{name}:cpu")
    raw.workdir, raw.epochs, raw.run.log_every = str(folder / name), 2, 1
    raw.run.update(devices=1, tensorboard=False)
    raw.data.update(name="npz", dir=str(folder / "cifar.npz"), holdout=100.0)
    raw.student_optim.schedule = (
        "constant"  # the first epoch of a 2-epoch cosine has most of the rate
    )
    if IMAGES < 2000:
        raw.batch_size = 32
        if raw.attack is not None and raw.attack.steps > 3:
            raw.attack.steps = 3
    if "eps_ramp" in raw.method:
        raw.method.eps_ramp = False  # or the second epoch has another attack
    if name == "gairat":
        raw.method.begin_epoch = 1  # its weights favour large losses: the same in both epochs
    raw.teachers.cache = str(folder / "teachers")
    for role in ("robust", "clean"):
        if raw.teachers[role] is not None:
            raw.teachers[role].min_clean = 0.0
            raw.teachers[role].recipe.epochs = 1
    raw.eval.update(attacks=("fgsm",), select_attack="fgsm", transfer=False, teachers=False)
    raw.eval.update(eps_sweep=(), grid=0, max_examples=200)
    evaluation = json.loads(
        (train.run(parse.to_experiment(raw)).parent / "evaluation.json").read_text()
    )
    assert {"student (best)", "student (last)"} <= set(evaluation["nets"])
    records = [r for r in read_metrics(folder / name / METRICS_FILE) if r["kind"] == "train"]
    first, second = (np.mean([r["loss"] for r in records if r["epoch"] == e]) for e in (1, 2))
    assert np.isfinite(second) and second < first, (first, second)
