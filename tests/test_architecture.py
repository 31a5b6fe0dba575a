"""How large and how tangled the package may become: measured on its source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ard_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in FILES}
# A combination of two papers is made of both.
COMBINED = {"ciard_dard"}


def functions():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def parameters(node):
    found = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    return [p for p in found if p.arg not in ("self", "cls")]


def test_the_top_folder_is_small():
    names = {path.name for path in PACKAGE.glob("*.py")}
    assert names == {
        "__init__.py", "evaluate.py", "main.py", "optim.py", "rng.py", "state.py",
    }  # fmt: skip


def test_files_and_functions_can_be_read():
    long = {str(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 500}
    assert not long
    assert len((PACKAGE / "main.py").read_text().splitlines()) < 100
    bodies = {f"{p}:{n.name}": n.end_lineno - n.lineno + 1 for p, n in functions()}
    assert not {name: lines for name, lines in bodies.items() if lines > 80}
    many = {f"{p}:{n.name}": len(parameters(n)) for p, n in functions()}
    assert not {name: count for name, count in many.items() if count > 10}


def test_the_whole_experiment_ends_in_the_configuration():
    takers = [
        f"{path}:{node.name}"
        for path, node in functions()
        if path.parts[0] not in ("cli", "config")
        for p in parameters(node)
        if p.annotation and "Experiment" in ast.unparse(p.annotation)
    ]
    assert not takers


def test_state_between_calls_is_the_runtimes():
    for path, tree in TREES.items():
        if path.parts[0] == "runtime":
            continue
        assert not any(isinstance(node, ast.Global) for node in ast.walk(tree)), path
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                empty = ast.unparse(node.value) in ("[]", "{}", "set()", "dict()", "list()")
                assert not empty, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("*.py")), ids=lambda p: p.stem)
def test_a_paper_does_not_import_another(path):
    tree = ast.parse(path.read_text())
    papers = {p.stem for p in path.parent.glob("*.py") if "\nREGISTRATION = " in p.read_text()}
    if path.stem not in papers - COMBINED:
        return
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "ard_jax.methods"
        for alias in node.names
    }
    assert not names & papers
