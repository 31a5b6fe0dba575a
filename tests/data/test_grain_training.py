"""Whole runs on an image folder: loader=grain trains what loader=memory trains, in less memory."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

from ard_jax import data
from ard_jax.checkpoints import manager, networks, resume
from ard_jax.cli import train, train_checks
from ard_jax.config import build, parse
from ard_jax.configs import digits
from ard_jax.data.train_batches import TrainBatches

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    """The first 400 + 100 handwritten digits as a folder of PNG files."""
    root, splits = tmp_path_factory.mktemp("digits"), data.load("digits")
    for split, count in ((splits.train, 400), (splits.test, 100)):
        for i in range(count):
            path = root / split.split / str(split.labels[i]) / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[i, ..., 0]).save(path)
    return root


def experiment(folder, digits_folder, **options):
    raw = digits.get_config("sat")
    raw.workdir = str(folder / "run")
    raw.update(epochs=2, batch_size=64)
    raw.attack.steps = 2
    raw.student.kwargs.update(widths=(4,), blocks=1)
    raw.data.update(name="folder", dir=str(digits_folder), last_batch="keep", **options)
    raw.eval.update(attacks=("fgsm",), select_attack="fgsm", every=1, eps_sweep=(), batch_size=48)
    raw.eval.update(grid=4, transfer=False)
    raw.run.update(devices=1, log_every=2, save_every=1, tensorboard=False)
    return parse.to_experiment(raw)


def last_state(built):
    """Student's and teachers' arrays of the newest checkpoint, and its metadata."""
    step = manager.find(train_checks.workdir_of(built) / "last")
    _, variables, meta, _ = networks.load(step)
    return jax.tree.map(np.asarray, variables), meta


def comparable(built):
    """What the checkpoints of a run are known by."""
    splits = build.load_data(built.data)
    net = build.describe_network(built.student, built.precision, splits.train)
    return build.comparable(built, net, splits)


@pytest.mark.parametrize(
    ("loader", "change", "refused"),
    [
        ("grain", {"workers": 2, "prefetch": 7}, ""),  # how it is read
        ("memory", {"image_size": 8}, ""),  # the images have this size already
        ("grain", {"image_size": 4}, "net.image_shape.*train_split"),  # what is read
        ("memory", {"loader": "grain"}, "train_split"),  # known by its files in place of its pixels
    ],
)
def test_a_run_continues_with_what_it_began_with(tmp_path, digits_folder, loader, change, refused):
    found = [
        json.loads(json.dumps(comparable(experiment(tmp_path, digits_folder, **options))))
        for options in ({"loader": loader}, {"loader": loader} | change)
    ]
    expected = pytest.raises(resume.ConfigChangedError, match=f"(?s){refused}")
    with expected if refused else contextlib.nullcontext():
        resume.compare_configs(tmp_path, *found)


def test_a_finished_run_stays_finished_however_its_data_is_read(tmp_path, digits_folder):
    built = experiment(tmp_path, digits_folder)
    folder = train_checks.workdir_of(built)
    folder.mkdir()
    record = json.dumps({"config": parse.to_dict(built)})
    (folder / "evaluation.json").write_text(record)
    for change, same in (
        ({"workers": 2, "prefetch": 7}, True),
        ({"loader": "grain"}, True),
        ({"image_size": 4}, False),
    ):
        found = train_checks.finished(experiment(tmp_path, digits_folder, **change))
        assert (found is not None) is same


@pytest.mark.slow
def test_same_parameters_and_accuracies_bit_for_bit(
    tmp_path, digits_folder, monkeypatch, optimised_programs
):
    built = {
        "memory": experiment(tmp_path / "memory", digits_folder),
        "grain": experiment(tmp_path / "grain", digits_folder, loader="grain", prefetch=3),
    }
    train.run(built["memory"])
    real, crash_at = TrainBatches.next, 9  # in the second epoch of 6 steps

    def next_or_crash(self, step):
        if step == crash_at and self._load.dataset.split == "train" and crashing:
            raise KeyboardInterrupt
        return real(self, step)

    crashing = True
    monkeypatch.setattr(TrainBatches, "next", next_or_crash)
    with pytest.raises(KeyboardInterrupt):
        train.run(built["grain"])
    crashing = False
    assert last_state(built["grain"])[1]["data"] == {"next_index": 6}
    with mock.patch.object(
        TrainBatches, "restore", autospec=True, side_effect=TrainBatches.restore
    ) as spy:
        train.run(built["grain"])
    assert (6, {"next_index": 6}) in [call.args[1:] for call in spy.mock_calls]
    (want, _), (got, meta) = last_state(built["memory"]), last_state(built["grain"])
    jax.tree.map(np.testing.assert_array_equal, want, got)
    assert meta["data"] == {"next_index": meta["step"]} == {"next_index": 12}
    one, other = (
        json.loads((train_checks.workdir_of(e) / "evaluation.json").read_text())
        for e in built.values()
    )
    assert one["nets"] == other["nets"]


RUN = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
from ard_jax.cli import train
from ard_jax.config import parse
from ard_jax.configs import digits

raw = digits.get_config("natural")
raw.workdir, loader, folder = sys.argv[1:4]
raw.data.update(name="folder", dir=folder, loader=loader, augment="none", last_batch="drop", prefetch=2)
raw.update(epochs=1, batch_size=8)
raw.student.kwargs.update(widths=(2,), blocks=1, stem_stride=8)  # cheap on large images
raw.eval.update(attacks=("fgsm",), select_attack="fgsm", batch_size=8, max_examples=8, eps_sweep=())
raw.eval.update(max_selection_examples=8, grid=0)
raw.run.update(devices=1, tensorboard=False, compilation_cache="off")
train.run(parse.to_experiment(raw))
# Not getrusage: its maximum begins with that of the process that started this one.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_memory(workdir, loader, folder):
    """MiB of memory that a run in a process of its own has at most."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(workdir), loader, str(folder)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_far_below_the_decoded_size(tmp_path):
    side, count, rng = 512, 480, np.random.default_rng(0)
    decoded = count * side * side * 3 / 2**20  # 360 MiB
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        path = tmp_path / "set" / ("test" if i < 16 else "train") / "ab"[i % 2] / f"{i:04}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((side, side)).save(path)
    grain, memory = (
        peak_memory(tmp_path / loader, loader, tmp_path / "set") for loader in ("grain", "memory")
    )
    # Both compile the same programs and hold the same activations. Beside that, memory has the decoded
    # images and grain a few batches of 6 MiB; the rest of the margin is for the allocator.
    assert grain < memory - 0.6 * decoded
