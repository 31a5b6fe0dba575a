"""Configurations: every file loads, every mistake is reported, all of them at once."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from experiments import tiny

from ard_jax import config

REPOSITORY = Path(__file__).parents[1]
FILES = {
    "ciard_digits": ("", "natural", "sat"),
    "ciard_cifar10": ("", "mobilenet_v2", "cpu"),
    "ciard_cifar100": ("", "mobilenet_v2"),
    "ciard_tiny_imagenet": ("", "mobilenet_v2"),
}


def test_every_config_file_is_tested():
    files = {p.stem for p in (REPOSITORY / "configs").glob("*.py")} - {"__init__", "common"}
    assert files == set(FILES)


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, vs in FILES.items() for v in vs])
def test_config_files_are_valid_and_survive_json(name, variant):
    module = importlib.import_module(f"configs.{name}")
    experiment = config.build(module.get_config(variant))
    assert config.build(config.to_dict(experiment)) == experiment


@pytest.mark.parametrize("name", FILES)
def test_unknown_variant(name):
    with pytest.raises(ValueError, match="no variant 'nonsense'"):
        importlib.import_module(f"configs.{name}").get_config("nonsense")


def test_paper_values():
    """reference: eminentgu/CIARD, HEAD 93a9a2d."""
    e = config.build(importlib.import_module("configs.ciard_cifar10").get_config())
    assert (e.epochs, e.batch_size, e.eps, e.student.model) == (300, 128, 8 / 255, "resnet18")
    assert (e.student_optim.lr, e.student_optim.momentum, e.student_optim.weight_decay) == (
        0.1,
        0.9,
        2e-4,
    )
    r = e.robust_teacher_optim
    assert (r.lr, r.momentum, r.weight_decay, r.start) == (1e-4, 0.1, 2e-4, 50)
    assert e.teachers.robust.net.model == "wrn_34_10" and e.teachers.clean.net.model == "resnet56"
    assert (e.select_on, e.eval.select_attack, e.eval.dense_from) == ("test", "pgd_trades", 250)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("eps", 8.0, "config.eps=8.0.*8/255"),
        ("epochs", 0, "config.epochs=0"),
        ("batch_size", 0, "config.batch_size=0"),
        ("select_on", "train", "config.select_on='train': choose one of 'validation', 'test'"),
        ("data__holdout", 0.0, "no validation images"),
        ("data__name", "mnist", "config.data.name='mnist'"),
        ("data__augment", "rotate", "config.data.augment='rotate'"),
        ("student__model", "resnet19", "unknown model 'resnet19'"),
        ("student_optim__schedule", "step", "config.student_optim.schedule='step'"),
        ("student_optim__lr", -0.1, "lr=-0.1: must be positive"),
        ("attack__name", "pdg", "config.attack.name='pdg'"),
        ("method__push_scale", "decimal", "push_scale='decimal'"),
        ("method__push_t", 0.0, "a temperature must be positive"),
        ("method__push_lambda", -1.0, "must not be negative"),
        ("method__itt_every", 0, "itt_every=0"),
        ("eval__attacks", ("pgd_sta",), "'pgd_sta'"),
        ("teachers__robust__min_clean", 80.0, "not percent"),
        ("teachers__clean__recipe__method", "ciard", "recipe.method='ciard'"),
    ],
)  # fmt: skip
def test_bad_values(tmp_path, name, value, message):
    with pytest.raises(config.ConfigError, match=message):
        config.build(tiny(tmp_path, **{name: value}))


def test_all_problems_at_once(tmp_path):
    with pytest.raises(config.ConfigError) as caught:
        config.build(tiny(tmp_path, eps=8.0, epochs=0, data__name="mnist", method__push_t=-1.0))
    assert str(caught.value).count("\n  - ") == 4


def test_unknown_and_missing_keys(tmp_path):
    raw = tiny(tmp_path).to_dict()
    raw["lr"] = 0.1
    del raw["eps"]
    with pytest.raises(config.ConfigError, match="config.lr does not exist") as caught:
        config.build(raw)
    assert "config.eps is missing" in str(caught.value)


def test_unknown_method_option(tmp_path):
    raw = tiny(tmp_path).to_dict()
    raw["method"]["itt_begin"] = 3
    with pytest.raises(config.ConfigError, match="no option itt_begin"):
        config.build(raw)


def main(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ard_jax.main", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config=configs/ciard_digits.py", "--config.epoch=3"), "epoch"),
        (("--config=configs/ciard_digits.py", "--config.epochs=three"), "three"),
        (("--config=configs/ciard_digits.py", "--config.eps=8"), "config.eps=8.0"),
        (("--config=configs/nothing.py",), "nothing.py"),
        (("--mode=export",), "export"),
        ((), "--config is missing"),
        (("--mode=evaluate", "--checkpoint=/nowhere"), "/nowhere does not exist"),
        (("--config=configs/ciard_cifar10.py", "--config.data.dir=/nowhere"), "/nowhere"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message):
    done = main(*arguments)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
