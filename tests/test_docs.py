"""The documentation says what the code is: its methods, public names, examples and links."""

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from ard_jax import attacks, methods, models, optim
from ard_jax.cli import modes
from ard_jax.config.comparison import ComparisonConfig
from ard_jax.config.schema import Experiment
from ard_jax.io.options import record_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = sorted(p for p in DOCS.rglob("*.md") if not {"_build", "_snippets"} & set(p.parts))
PACKAGES = ("attacks", "data", "losses", "methods", "models")
MODULES = ("evaluate", "optim", "evaluation.evaluator", "evaluation.accuracies", "evaluation.noise")


def examples(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_every_method_has_its_section():
    pages = [
        p.read_text()
        for p in (DOCS / "methods").glob("*.md")
        if p.stem not in ("index", "switches")
    ]
    sections = [name for text in pages for name in re.findall(r"^## (\w+)$", text, re.MULTILINE)]
    assert sorted(sections) == methods.names()
    included = [n for text in pages for n in re.findall(r"_snippets/methods/(\w+)\.md", text)]
    assert included == sections


@pytest.mark.parametrize(
    "text", (README, (DOCS / "methods" / "index.md").read_text()), ids=("README", "index")
)
def test_every_method_is_listed(text):
    assert not [name for name in methods.names() if not re.search(rf"[`\[]{name}[`\]]", text)]


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.slow
def test_the_notebook_code_of_the_front_page_runs():
    (code,) = examples(README)
    names = {}
    exec(code.replace("range(200)", "range(1)"), names)  # what is shown, in less time
    assert set(names["result"]["attacks"]) == {"fgsm", "pgd_sat"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_notebooks_are_small_and_show_a_whole_clean_run(path):
    assert path.stat().st_size < 200_000
    code = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    kinds = {(output["output_type"], output.get("name")) for output in outputs}
    assert kinds <= {("display_data", None), ("stream", "stdout")}
    assert not re.search(r"Warning|/(tmp|home|root|usr)/", json.dumps(outputs))


def test_the_examples_of_extensions_run():
    method, attack, dataset = examples((DOCS / "extending.md").read_text())
    names = {"__name__": "example"}
    exec(method, names)
    net = models.create("small_cnn", 3, (8, 8, 1))
    sgd = optim.make(optim.OptimConfig(), 1)
    parts = methods.Parts(net, sgd, attacks.make("rslad_train", eps=0.1), {"robust": net})
    registration = names["REGISTRATION"]
    images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    batch = {"image": images, "label": np.array([0, 2], np.int32), "epoch": 1}
    losses = []
    for made in (
        methods.create(registration, parts),
        methods.create("rslad", parts, adv_weight=0.8),
    ):
        state = made.init(net.init(0), {"robust": net.init(1)})
        losses.append(float(jax.jit(made.step)(state, batch, jax.random.key(2))[1]["loss"]))
    # The page says that it is RSLAD with another weight.
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    exec(dataset, names)
    assert names["load"](None, None).test.labels.tolist() == [0, 1] * 8
    exec(attack, names)
    weights = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    found = names["RandomSigns"](eps=0.1)(
        lambda x: x.reshape(len(x), -1) @ weights, images, np.array([0, 2]), jax.random.key(0)
    )
    assert 0.05 < np.abs(found - images).max() <= 0.1 + 1e-6


def public_objects():
    for name in PACKAGES:
        package = importlib.import_module(f"ard_jax.{name}")
        for public in package.__all__:
            yield f"{name}.{public}", getattr(package, public)
    for name in MODULES:
        module = importlib.import_module(f"ard_jax.{name}")
        for public, value in inspect.getmembers(module, callable):
            if not public.startswith("_") and getattr(value, "__module__", "") == module.__name__:
                yield f"{name}.{public}", value


def config_paths(record, path=""):
    for name, field in record.model_fields.items():
        yield (inner := f"{path}.{name}")
        if kind := record_of(field.annotation):
            yield from config_paths(kind, inner)


def test_values_that_the_pages_name_exist():
    known = {*config_paths(Experiment), *config_paths(ComparisonConfig)}
    for name in methods.names():
        known |= {*config_paths(type(methods.make_config(name, {})), ".method")}
    texts = [README, *(page.read_text() for page in PAGES)]
    named = {n for t in texts for n in re.findall(r"--config((?:\.[a-z_]+)+)=", t)}
    free = (
        r"\.runs\..*|\.attack\.options\..*|\.teachers\.[a-z_]+"  # a comparison names its teachers
    )
    named = {n for n in named if not re.fullmatch(free, n)}
    assert len(named) > 20
    assert not named - known


def test_every_mode_is_in_the_quickstart():
    table = (DOCS / "quickstart.md").read_text()
    assert not [
        mode for mode in modes.BY_NAME if not re.search(rf"^\| `{mode}`", table, re.MULTILINE)
    ]


def undocumented(name, value):
    doc = inspect.getdoc(value) or ""
    generated = dataclasses.is_dataclass(value) and doc.startswith(f"{name.split('.')[-1]}(")
    return len(doc) < 20 or generated


def test_public_names_are_documented():
    assert not [n for n, value in public_objects() if callable(value) and undocumented(n, value)]
