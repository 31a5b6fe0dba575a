"""Who may import whom: walks the imports and fails on any other arrow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ard_jax"
# Part of the package -> parts that it may import. Parts that wire everything together are free.
ALLOWED = {
    "losses": set(),
    "rng": set(),
    "metrics": set(),
    "locks": {"distributed", "preemption"},
    "state": set(),
    "optim": set(),
    "sharding": set(),
    "distributed": {"rendezvous"},
    "rendezvous": set(),
    "preemption": {"distributed"},
    "writers": set(),
    "attacks": {"distributed", "losses", "preemption", "rng", "sharding", "writers"},
    "models": set(),
    "data": set(),
    "interop": {"models", "state"},
    "methods": {"attacks", "losses", "metrics", "models", "state", "optim"},
    "checkpoint": {"distributed", "state"},
    "report": {"writers", "report_html", "report_autoattack"},
    "report_autoattack": set(),
    "report_html": {"writers", "report", "report_autoattack"},
    "steps": {"data", "methods", "models", "state", "rng", "metrics", "sharding"},
    "evaluate": {
        "attacks", "data", "distributed", "preemption", "rng", "sharding", "steps", "suites", "summaries",
    },
    "suites": {"attacks", "data", "distributed", "evaluate", "rng"},
    "summaries": set(),
    "loop": {
        "steps", "checkpoint", "data", "distributed", "methods", "metrics", "sharding", "state",
        "writers", "resume", "preemption", "feed", "train_log",
    },
    "feed": {"data", "sharding", "state", "steps", "timing"},
    "train_log": {"metrics", "writers"},
    "timing": set(),
    "resume": {"checkpoint", "distributed", "removed", "state"},
    "removed": set(),
}  # fmt: skip
ONLY = {
    "grain": {"data"},
    "flax.linen": {"models"},
    "orbax": {"checkpoint"},
    "ml_collections": {"main"},
    "tensorflow": {"data"},
}
DEVICE_WORDS = {"Mesh", "PartitionSpec", "NamedSharding"}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows(path):
    part = part_of(path)
    for name in imports(path):
        for library, parts in ONLY.items():
            assert not name.startswith(library) or part in parts, f"{part} imports {name}"
        if name.startswith("ard_jax.") and part in ALLOWED:
            target = name.split(".")[1]
            assert target == part or target in ALLOWED[part] or target == "__version__", (
                f"{part} imports {name}"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_sharding_knows_devices(path):
    if part_of(path) in ("sharding", "distributed"):
        return
    words = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
    assert not words & DEVICE_WORDS


def test_configs_know_of_the_package_the_methods_alone():
    standard = {"dataclasses", "difflib", "importlib"}
    for path in (PACKAGE.parent / "configs").glob("*.py"):
        for name in imports(path):
            known = name.split(".")[0] in {"ml_collections", "configs"} | standard
            assert known or name == "ard_jax.methods", f"{path.name}: {name}"


def test_importing_the_package_does_not_import_jax():
    code = "import sys, ard_jax; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_notebook_imports():
    from ard_jax import attacks, data, losses, methods, models

    for name in ("fgsm", "bim", "pgd", "targeted_pgd", "cw_linf", "trades_pgd",
                 "autoattack", "apgd", "fab", "square"):  # fmt: skip
        assert callable(getattr(attacks, name))
    for name in ("kl_divergence", "push_loss", "decade_scale", "cw_margin", "dlr", "targeted_dlr"):
        assert callable(getattr(losses, name))
    assert models.create("small_cnn").num_classes == 10
    assert "ciard" in methods.names() and "digits" in data.names()
