"""What is said of the package in several places is the same."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

import ard_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# conda-forge's name where it is another.
CONDA = {"matplotlib": "matplotlib-base"}


def test_the_version_is_everywhere_the_same():
    assert f"\nversion: {ard_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'version: "{ard_jax.__version__}"' in (ROOT / "conda" / "recipe.yaml").read_text()


def test_the_recipe_has_the_same_requirements():
    text = (ROOT / "conda" / "recipe.yaml").read_text().split("  run:\n")[1].split("\ntests:")[0]
    lines = [re.sub(r"^ *- ", "", line) for line in text.splitlines() if line.strip()][1:]
    wanted = [Requirement(line) for line in PROJECT["dependencies"]]
    names = [CONDA.get(w.name, w.name.lower().replace("_", "-")) for w in wanted]
    assert lines == [f"{n} {w.specifier}".strip() for n, w in zip(names, wanted, strict=True)]


def test_every_python_that_is_named_is_tested():
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert f"python: {named}".replace("'", '"') in (ROOT / ".github/workflows/ci.yml").read_text()
    assert PROJECT["requires-python"] == f">={named[0]}"
