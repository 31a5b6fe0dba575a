"""What the doctor finds, and its exit code."""

import shutil
from pathlib import Path
from unittest import mock

import jax
import pytest

from ard_jax.cli import doctor

ROOT = Path(__file__).parents[2]


def found(findings):
    return {one.about: one for one in findings}


def test_packages_that_are_missing_or_too_old():
    lines = ["numpy>=1", "no_such_package[x]>=2.5", "jax>=1000", "other; extra == 'test'"]
    one = found(doctor.packages(lines))
    assert set(one) == {"no_such_package", "jax", "packages"}
    assert one["no_such_package"].fix == "pip install 'no_such_package[x]>=2.5'"
    assert one["jax"].text == f"{jax.__version__}, but it must be >=1000"
    assert one["jax"].stops and one["no_such_package"].stops
    assert one["packages"].text.startswith("numpy ") and not one["packages"].fix


def test_a_missing_package_ends_it_before_jax_is_needed(monkeypatch, main):
    monkeypatch.setattr(doctor, "_requirements", lambda: ["no_such_package"])
    monkeypatch.setattr(doctor, "devices", None)
    code, told, _ = main("--mode=doctor")
    assert code == 1 and "pip install 'no_such_package'" in told and "was not looked at" in told


def test_a_machine_on_which_a_run_would_start(main):
    code, told, _ = main("--mode=doctor", "--config=ciard_digits")
    assert code == 0 and "ERROR" not in told and told.endswith("Nothing would stop a run.\n")
    for text in ("8 x cpu", "config           ciard_digits: ciard on digits, 40 epochs", "clean teacher",
                 "of compiled programs in", f"free for {ROOT}/runs"):  # fmt: skip
        assert text in told


def test_a_device_that_does_not_work():
    with mock.patch.object(jax, "jit", side_effect=RuntimeError("CUDA_ERROR_NO_DEVICE: here")):
        (one,) = doctor.devices()
    assert one.stops and one.text == "RuntimeError: CUDA_ERROR_NO_DEVICE: here"


@pytest.mark.parametrize(
    ("free", "fix", "stops"), [(1e6, True, True), (1e9, True, False), (1e10, False, False)]
)
def test_free_disk(free, fix, stops):
    with mock.patch.object(shutil, "disk_usage", return_value=mock.Mock(free=free)):
        (one,) = doctor.disk()
    assert (bool(one.fix), one.stops) == (fix, stops)


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ARD_CACHE_DIR", str(tmp_path / "file"))
    (one,) = doctor.caches()
    assert "is not a folder" in one.text and one.fix and one.stops
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    (one,) = doctor.disk()
    assert "is not a folder" in one.text and "--config.workdir" in one.fix


def test_sizes_of_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("ARD_CACHE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "xla" / "deep").mkdir(parents=True)
    (tmp_path / "xla" / "deep" / "program").write_bytes(bytes(1234))
    (tmp_path / "cifar10-x.npz").write_bytes(bytes(5000))
    told = [one.text for one in doctor.caches()]
    assert told[0] == f"1.23 kB of compiled programs in {tmp_path}/xla"
    assert told[2] == f"5 kB of decoded images in {tmp_path}"


@pytest.mark.parametrize(
    ("config", "overrides", "about", "text"),
    [
        ("ciard_digit", [], "config", "did you mean"),
        ("ciard_digits", ["epochs=0"], "config", "config.epochs=0: must be at least 1"),
        ("cifar10:sat", ["data.dir=/nowhere"], "data", "tfds.builder('cifar10', data_dir='/nowhere'"),
        ("digits:sat", ["data.name=npz", "data.dir=/nowhere.npz"], "data", "/nowhere.npz"),
        ("ciard_digits", ["teachers.robust.checkpoint=/nowhere"], "teachers", "/nowhere does not exist"),
        ("digits:sat", ["data.extra=/nowhere.npz"], "run", "there is no such file"),
        ("digits:sat", ["workdir=/dev/null/x"], "run", "config.workdir"),
    ],
)  # fmt: skip
def test_an_experiment_that_would_not_start(config, overrides, about, text):
    *_, last = doctor.experiment(config, overrides)
    assert last.stops and last.about == about and text in last.fix
