"""The layers of the package: an import goes to a lower layer or stays in its own folder."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ard_jax"
# From the ground up; docs/architecture.md says what each part is.
LAYERS = (
    {"convolutions", "losses", "runtime", "io", "rng", "state"},
    {"attacks", "models", "data", "reporting", "optim"},
    {"methods"},
    {"config"},
    {"checkpoints", "evaluation", "configs"},
    {"training", "interop", "evaluate"},
    {"cli"},
    {"main"},
)
LAYER_OF = {part: number for number, layer in enumerate(LAYERS, 1) for part in layer}
# Library -> the parts that alone import it.
ONLY = {
    "grain": {"data"},
    "flax.linen": {"models"},
    "orbax": {"checkpoints"},
    "ml_collections": {"cli"},
    "tensorflow": {"data"},
}
DEVICE_WORDS = {"Mesh", "PartitionSpec", "NamedSharding"}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def of_the_package(path):
    """Parts of the package that a file imports, its own left out."""
    names = [name.split(".") for name in imports(path) if name.startswith("ard_jax.")]
    return {name[1] for name in names} - {part_of(path), "__version__"}


def test_every_part_has_a_layer():
    assert {part_of(path) for path in FILES} - {"__init__"} == set(LAYER_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_an_import_goes_to_a_lower_layer(path):
    if part_of(path) == "__init__":
        return
    own = LAYER_OF[part_of(path)]
    higher = {part for part in of_the_package(path) if LAYER_OF[part] >= own}
    assert not higher, f"layer {own} imports {higher}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_one_part_imports_a_library(path):
    for name in imports(path):
        for library, parts in ONLY.items():
            assert not name.startswith(library) or part_of(path) in parts, name


def test_reports_are_made_without_jax():
    for path in (PACKAGE / "reporting").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"jax", "flax"}, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_runtime_knows_devices(path):
    if part_of(path) == "runtime":
        return
    words = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
    assert not words & DEVICE_WORDS


def test_configs_know_of_the_package_the_schema_and_the_methods_alone():
    standard = {"dataclasses", "difflib", "importlib", "typing"}
    for path in (PACKAGE.parent / "configs").glob("*.py"):
        for name in imports(path):
            # Of each other by `from . import`: they are configs here, and ard_jax.configs where installed.
            known = name.split(".")[0] in {"ml_collections", ""} | standard
            allowed = {"ard_jax.methods", "ard_jax.config.schema"}
            assert known or name in allowed, f"{path.name}: {name}"


def test_importing_the_package_does_not_import_jax():
    code = "import sys, ard_jax; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_notebook_imports():
    from ard_jax import attacks, data, evaluate, losses, methods, models

    for name in ("fgsm", "bim", "pgd", "targeted_pgd", "cw_linf", "trades_pgd",
                 "autoattack", "apgd", "fab", "square"):  # fmt: skip
        assert callable(getattr(attacks, name))
    for name in ("kl_divergence", "push_loss", "decade_scale", "cw_margin", "dlr", "targeted_dlr"):
        assert callable(getattr(losses, name))
    assert callable(evaluate.evaluate)
    assert models.create("small_cnn").num_classes == 10
    assert "ciard" in methods.names() and "digits" in data.names()
