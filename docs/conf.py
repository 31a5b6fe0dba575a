"""The documentation: `pip install -e '.[docs]' && sphinx-build -W -b html docs docs/_build`.

What the code knows is generated at each build: options, attacks and configuration values are never copied.
"""

import inspect
import re
import shutil
from pathlib import Path

import ard_jax
from ard_jax import attacks, methods, models
from ard_jax.config import reference
from ard_jax.io.options import Options

DOCS = Path(__file__).parent
SNIPPETS = DOCS / "_snippets"

project = "ard_jax"
author = "The ard_jax authors"
release = version = ard_jax.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.mermaid",
]
exclude_patterns = ["_build", "_snippets", "**.ipynb_checkpoints"]
highlight_language = "none"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # .ci/run executes the notebooks

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # signatures stay short; docstrings give shapes and units
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar, napoleon_attr_annotations = True, False

html_theme = "furo"
html_title = "ard_jax"
html_copy_source = html_show_copyright = False


def method_facts(name: str) -> str:
    """Registration and options of a method, as Markdown."""
    trained = methods.TRAINED_TEACHERS[name]
    facts = {
        "networks beside the student": ", ".join(methods.TEACHERS[name]) or "none",
        "of these trained on": ", ".join(trained),
        "default attack": f"`{methods.ATTACKS[name]}`" if methods.ATTACKS[name] else "none",
        "gradient matching": "`config.igdm`" if name in methods.IGDM else "",
    }
    facts = " · ".join(f"{title}: **{value}**" for title, value in facts.items() if value)
    return f"{facts}\n\n{reference.options(name)}\n"


def attack_rows() -> str:
    """The registry's projected gradient attacks at 8/255, as a Markdown table."""
    rows = [
        "| name | maximises | steps | step size at 8/255 | start | cut |",
        "|---|---|---|---|---|---|",
    ]
    for name in attacks.training_names():
        attack = attacks.make(name)
        if isinstance(attack, attacks.PgdAttack):
            start = attack.start if attack.start_radius == 1 else f"{attack.start}, twice eps"
            rows.append(
                f"| `{name}` | `{attack.loss}` | {attack.steps} | {attack.step_size * 255:.3g}/255 "
                f"| {start} | `{attack.order}` |"
            )
    return "\n".join(rows) + "\n"


def suite_rows() -> str:
    """AutoAttack's versions and members, as a Markdown table."""
    rows = ["| name | in reports | attacks, in order |", "|---|---|---|"]
    for name, suite in attacks.SUITES.items():
        members = ", ".join(
            m.name + (f" ({m.restarts} restarts)" if m.restarts > 1 else "") for m in suite.members
        )
        rows.append(f"| `{name}` | {suite.label} | {members} |")
    return "\n".join(rows) + "\n"


def network_rows() -> str:
    """The networks with their options and sizes, as a Markdown table."""
    rows = ["| name | options | parameters, 10 classes |", "|---|---|---:|"]
    for name, builder in models.MODELS.items():
        network = models.create(name)
        options = inspect.signature(builder).parameters.values()
        names = [f"`{p.name}`" for p in options if p.kind is p.KEYWORD_ONLY]
        names = [n for n in names if n not in ("`depth`", "`width`", "`size`")]
        rows.append(f"| `{name}` | {', '.join(names)} | {models.num_params(network):,} |")
    return "\n".join(rows) + "\n"


def generate(app) -> None:
    """Writes what the pages include, and copies the notebooks into the source folder."""
    shutil.rmtree(SNIPPETS, ignore_errors=True)
    (SNIPPETS / "methods").mkdir(parents=True)
    for name in methods.names():
        (SNIPPETS / "methods" / f"{name}.md").write_text(method_facts(name))
    (SNIPPETS / "attacks.md").write_text(attack_rows())
    (SNIPPETS / "networks.md").write_text(network_rows())
    (SNIPPETS / "suites.md").write_text(suite_rows())
    (SNIPPETS / "configuration.md").write_text(reference.configuration())
    shutil.rmtree(DOCS / "notebooks", ignore_errors=True)
    notebooks = sorted((DOCS.parent / "notebooks").glob("*.ipynb"))
    for notebook in notebooks:
        (DOCS / "notebooks").mkdir(exist_ok=True)
        shutil.copy(notebook, DOCS / "notebooks")
    lines = ["```{toctree}", ":hidden:", ":caption: Notebooks", ""]
    lines += [f"notebooks/{notebook.stem}" for notebook in notebooks] + ["```"]
    (SNIPPETS / "notebooks.md").write_text("\n".join(lines) if notebooks else "")


_COLON = "\uff1a"  # stands for the colon of a property, which napoleon takes for the end of a type


def as_plain_text(app, what, name, obj, options, lines) -> None:
    """Docstrings are plain text with `code` in backticks: nothing else in them is markup."""
    if isinstance(obj, type) and issubclass(obj, Options):  # whose fields have descriptions
        fields = obj.model_fields.items()
        lines += ["", "Attributes:", *(f"  {name}: {field.description}" for name, field in fields)]
    parts = re.split(r"(`[^`]+`)", "\n".join(lines))
    escaped = [re.sub(r"([\\*|]|_(?=\W))", r"\\\1", part) for part in parts[::2]]
    code = [f"`{part}`" for part in parts[1::2]]
    text = "".join(a + b for a, b in zip(escaped, [*code, ""], strict=True))
    lines[:] = (text.replace(":", _COLON) if what == "property" else text).split("\n")


def with_colons(app, what, name, obj, options, lines) -> None:
    """Undoes what `as_plain_text` has hidden from napoleon."""
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def skip_fields(app, what, name, obj, skip, options) -> bool | None:
    """Fields of a NamedTuple stand in its docstring; pydantic's settings are not part of the API."""
    field = (obj.__doc__ or "").startswith("Alias for field number")
    return True if field or name == "model_config" else None


def setup(app) -> None:
    """Connects these steps to Sphinx."""
    app.connect("builder-inited", generate)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", as_plain_text, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", with_colons, priority=900)
