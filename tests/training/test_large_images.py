"""Photos of several sizes at 224 and 64 pixels, from files to a checkpoint, an evaluation and an export."""

import jax
import numpy as np
import pytest
from PIL import Image

from ard_jax.checkpoints import manager, networks, resume
from ard_jax.cli import export, train
from ard_jax.config import parse
from ard_jax.configs import protocol
from ard_jax.runtime import preemption
from ard_jax.training import start
from ard_jax.training.step_runner import StepRunner


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Train 4 x 8, val 4 x 2: stripes of the class over smooth noise, every image of another size."""
    root = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 8), ("val", 2)):
        for c in range(4):
            for i in range(count):
                rng = np.random.default_rng([len(part), c, i])
                width, height = (int(n) for n in rng.integers(240, 320, 2))
                coarse = Image.fromarray(rng.integers(0, 128, (8, 8, 3), np.uint8))
                pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()
                pixels[:: c + 2] += 96
                path = root / part / f"n{c:08}" / f"{i}.jpeg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, quality=90)
    return root


def experiment(folder, photos, name="sat", size=224, **changes):
    """configs/imagenet.py with a tiny student, two epochs of four updates."""
    raw = protocol.experiment("imagenet", name)
    raw.update(workdir=str(folder / "run"), epochs=2, batch_size=7, ema_decay=0.9)
    raw.data.update(dir=str(photos), image_size=size, resize=size * 8 // 7, holdout=4.0, workers=0)
    raw.student.update(model="small_resnet", kwargs={"widths": (4,), "blocks": 1, "stem_stride": 4})
    raw.student_optim.update(warmup=1, lr=1e-2)
    raw.eval.update(attacks=("fgsm",), select_attack="fgsm", every=1, batch_size=8, grid=0)
    raw.run.update(devices=1, log_every=1, tensorboard=False)
    raw.update_from_flattened_dict(changes)
    return parse.to_experiment(raw)


def last(built):
    folder = manager.find(f"{built.workdir}/last")
    return [networks.load(str(folder), item)[1] for item in ("student", "ema")]


def check_stop_and_export(make, tmp_path, monkeypatch, capfd, epoch):
    """A run that stops after update 6 ends in the bits of one that does not, and is exported."""
    whole, stopped, done = make(tmp_path / "whole"), make(tmp_path / "stopped"), []
    train.run(whole)
    advance = StepRunner.advance
    with monkeypatch.context() as patched:
        patched.setattr(
            StepRunner, "advance", lambda self, *args: done.append(args[1]) or advance(self, *args)
        )
        patched.setattr(preemption, "requested", lambda: 5 in done)
        with pytest.raises(preemption.PreemptedError):
            train.run(stopped)
    capfd.readouterr()
    train.run(stopped)
    assert f"continues at step 6, epoch {epoch}" in capfd.readouterr().err
    for one, other in zip(last(whole), last(stopped), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    folder = str(tmp_path / "out")
    files = export.run(f"{whole.workdir}/best", folder, ("safetensors", "stablehlo"))
    assert all(file.exists() for file in files)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit_and_its_student_is_evaluated_and_exported(
    photos, tmp_path, monkeypatch, capfd
):
    def make(folder):
        return experiment(folder, photos)

    # In the middle of the second epoch of four updates.
    check_stop_and_export(make, tmp_path, monkeypatch, capfd, 2)


def test_a_run_with_growing_images_likewise(photos, tmp_path, monkeypatch, capfd):
    def make(folder):
        sizes = {"data.crop_sizes": (32, 48), "data.crop_boundaries": (2,)}
        return experiment(folder, photos, size=64, **sizes)

    seen, call = [], StepRunner._call
    monkeypatch.setattr(
        StepRunner,
        "_call",
        lambda self, n, s, b: seen.append(b["image"].shape[1]) or call(self, n, s, b),
    )
    check_stop_and_export(make, tmp_path, monkeypatch, capfd, 2)
    assert seen == 4 * [32] + 4 * [48] + 4 * [32] + 4 * [48]  # once whole, once stopped


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"student.model": "vit_tiny", "student.kwargs": {"patch": 16}},
            "48 pixels change the arrays of method",
        ),
        ({"method.name": "free"}, "48 pixels change the arrays of method 'free'"),
    ],
)
def test_images_that_cannot_grow(photos, tmp_path, changes, message):
    sizes = {"data.crop_sizes": (48, 64), "data.crop_boundaries": (2,)}
    name = changes.pop("method.name", "sat")
    with pytest.raises(ValueError, match=message):
        train.run(experiment(tmp_path, photos, name, 64, **sizes, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.multidevice
def test_a_run_with_little_memory_likewise(photos, tmp_path, monkeypatch, capfd):
    less = {"accumulate": 3, "run.shard_optimizer": True, "run.remat": True, "run.devices": 2}

    def make(folder):
        return experiment(folder, photos, size=64, batch_size=6, **less)

    check_stop_and_export(make, tmp_path, monkeypatch, capfd, 2)


@pytest.mark.slow
def test_tiny_imagenet_likewise(shared_data, tmp_path, monkeypatch, capfd):
    def make(folder):
        raw = protocol.experiment("tiny_imagenet", "trades")
        raw.update(workdir=str(folder / "run"), epochs=1, batch_size=128, ema_decay=0.9)
        raw.data.update(dir=str(shared_data / "tiny-imagenet-200"), loader="grain", holdout=200.0)
        raw.student.update(model="small_resnet", kwargs={"widths": (4,), "stem_stride": 2})
        raw.student_optim.update(schedule="cosine", boundaries=())
        raw.eval.update(attacks=("fgsm",), select_attack="fgsm", every=1, batch_size=200, grid=0)
        raw.eval.update(dense_from=0, eps_sweep=())
        raw.run.update(devices=1, log_every=1, tensorboard=False)
        return parse.to_experiment(raw)

    # In the middle of an epoch of eleven updates.
    check_stop_and_export(make, tmp_path, monkeypatch, capfd, 1)


@pytest.fixture(scope="module")
def clean(photos, tmp_path_factory):
    """A finished run of natural training."""
    folder = tmp_path_factory.mktemp("clean")
    built = experiment(folder, photos, "natural", 64, **{"epochs": 1, "student_optim.warmup": 0})
    train.run(built)
    return built


def test_a_student_begins_with_a_checkpoint(clean, photos, tmp_path, capsys):
    changes = {"start_from": clean.workdir, "epochs": 1, "student_optim.lr": 1e-12}
    changes |= {"student_optim.last_lr": 0.0, "student_optim.warmup": 0}
    found = experiment(tmp_path / "robust", photos, "sat", 64, **changes)
    train.run(found)
    begun, ended = (
        networks.load(f"{e.workdir}/{w}")[1] for e, w in ((clean, "best"), (found, "last"))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), begun["params"], ended["params"]
    )
    capsys.readouterr()
    train.run(found)
    assert "This run is finished" in capsys.readouterr().out
    # Another beginning is another run.
    fresh = experiment(tmp_path / "robust", photos, "sat", 64, **(changes | {"start_from": ""}))
    with pytest.raises(resume.ConfigChangedError, match="start"):
        train.run(fresh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_from": "/nowhere"}, "start_from=/nowhere: .*does not exist"),
        (
            {"student.kwargs.widths": (5,)},
            r"is another network: it has kwargs \{.*'widths': \[4\].*, the student \{",
        ),
        ({"student.normalization": "imagenet"}, "normalization None, the student 'imagenet'"),
    ],
)
def test_checkpoints_that_no_student_begins_with(clean, photos, tmp_path, changes, message):
    given = {"start_from": clean.workdir} | changes
    with pytest.raises(start.StartError, match=message):
        train.run(experiment(tmp_path / "new", photos, "sat", 64, **given))
    assert not (tmp_path / "new").exists()
