"""What --help prints: the modes, their flags, and the keys of a configuration.

The keys are read from the source of the schema, not from its classes: importing these imports JAX, and --help
is to answer at once.
"""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags

from ard_jax.cli.flags import MODES, MODES_OF

_PACKAGE = Path(__file__).parents[1]
_SOURCES = (
    "config/schema.py",
    "config/data_options.py",
    "optim.py",
    "methods/igdm.py",
)  # the records of `schema.Experiment`
_WIDTH, _INDENT = 110, 34


class Key(NamedTuple):
    """A value of a configuration: its dotted name, default ("" where it must be given) and meaning."""

    name: str
    default: str
    meaning: str


def text() -> str:
    """Returns the whole help."""
    lines = [
        "ard-jax [--mode=MODE] [--config=NAME] [--config.KEY=VALUE ...] [FLAG ...]",
        "python -m ard_jax.main is the same. The smallest run: ard-jax --config=ciard_digits",
        "",
        "MODES (--mode; train unless it is given)",
        *(line for name, about in MODES.items() for line in _entry(name, about)),
        "",
        "FLAGS",
        *_entry("--config", flags.FLAGS["config"].help or ""),
    ]
    for name in MODES_OF:
        flag = flags.FLAGS[name]
        default = f" Default: {flag.default_as_str}." if flag.default else ""
        lines += _entry(f"--{name}", f"{flag.help}{default}")
    lines += [
        "",
        "KEYS of a configuration (--config.KEY=VALUE; defaults in brackets, a config file has its own)",
        *(line for key in keys() for line in _entry(key.name, _meaning(key))),
        "",
        "A method's own options are config.method.KEY, without `options`; a wrong KEY lists them.",
    ]
    return "\n".join(lines)


def _meaning(key: Key) -> str:
    return f"{key.meaning} [{key.default}]" if key.default else key.meaning


def _entry(name: str, about: str) -> list[str]:
    """A name and its meaning, folded beside it."""
    lines = textwrap.wrap(about, _WIDTH - _INDENT)
    first = f"  {name}".ljust(_INDENT)
    if len(name) + 4 > _INDENT:
        return [first, *(" " * _INDENT + line for line in lines)]
    return [first + lines[0], *(" " * _INDENT + line for line in lines[1:])]


def keys() -> Iterator[Key]:
    """Every key of `schema.Experiment`, in its order; a record that stood before only by its place there."""
    records = {
        node.name: node
        for source in _SOURCES
        for node in ast.parse((_PACKAGE / source).read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    yield from _keys("Experiment", "", records, {})


def _keys(
    record: str, prefix: str, records: dict[str, ast.ClassDef], shown: dict[str, str]
) -> Iterator[Key]:
    """The keys of one record; shown: record -> prefix, of those that were yielded."""
    shown[record] = prefix
    for node in records[record].body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if not isinstance(node.value, ast.Call):
            continue
        name, inner = prefix + node.target.id, ast.unparse(node.annotation).removesuffix(" | None")
        told = {word.arg: word.value for word in node.value.keywords}
        if inner not in records:
            default = ast.unparse(told["default"]) if "default" in told else ""
            meaning = ast.literal_eval(told["description"])
            if inner.startswith("Literal["):
                meaning += f" One of {inner.removeprefix('Literal[').removesuffix(']')}."
            yield Key(name, default, meaning)
        elif inner in shown:
            meaning = ast.literal_eval(told["description"])
            yield Key(f"{name}.*", "", f"{meaning} Keys as in {shown[inner]}*.")
        else:
            yield from _keys(inner, f"{name}.", records, shown)
