"""Configurations found by name, wherever one is; a user's own files beside the package's."""

import shutil
from pathlib import Path

import pytest

from ard_jax import configs
from ard_jax.cli import config_file

SHIPPED = Path(configs.__path__[0])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name", ["ciard_digits", "ciard_digits.py", "configs/ciard_digits.py", "digits:ciard"]
)
def test_an_experiment_of_the_package(name):
    found = config_file.load(name, ["epochs=3"])
    assert (found.name, found.epochs) == ("ciard_digits", 3)


def test_files_go_before_names(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()  # no trouble for the package's own
    mine = tmp_path / "configs" / "ciard_digits.py"
    mine.write_text(
        "from ard_jax.configs import protocol\n\n\ndef get_config():\n"
        "    config = protocol.digits('sat')\n    config.name = 'mine'\n    return config\n"
    )
    assert config_file.load("configs/ciard_digits.py").name == "mine"
    assert config_file.load("ciard_digits").name == "ciard_digits"
    (tmp_path / "ciard_digits").mkdir()
    assert config_file.load("ciard_digits").name == "ciard_digits"


def test_a_copy_works_anywhere(tmp_path):
    for name in (
        "ciard_digits",
        "common",
    ):  # nor does one called common take the place of the package's
        shutil.copy(SHIPPED / f"{name}.py", tmp_path)
    with pytest.raises(ValueError, match="common.py is no config file"):
        config_file.load("common.py")
    assert config_file.load(f"{tmp_path}/ciard_digits.py:sat").name == "sat_digits"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ciard_digit", "ciard_digit does not exist; did you mean ciard_digits or "),
        ("rslad_digits:released", "the config of a method is --config=digits:rslad:rel"),
        ("elsewhere/ciard_digits.py", "elsewhere/ciard_digits.py does not exist; did you mean ciard_digits"),
        (".", "is a folder; give a config file"),
    ],
)  # fmt: skip
def test_what_is_nowhere_is_told_with_what_is_near(name, message):
    with pytest.raises(config_file.ConfigFileError, match=message):
        config_file.load(name)
