"""The reference of all values, as Markdown out of the schema and the methods' records."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from ard_jax import methods
from ard_jax.config.comparison import ComparisonConfig
from ard_jax.config.schema import Experiment
from ard_jax.io.options import Options, record_of

_BOUNDS = {"gt": "{0} < {1}", "ge": "{0} ≤ {1}", "lt": "{1} < {0}", "le": "{1} ≤ {0}"}
_HEAD = ["| name | type and range | default | meaning |", "|---|---|---|---|"]


def configuration() -> str:
    """A section with one table for each group of `config`, of a run and of a comparison."""
    of_comparison = _sections("config of --mode=compare", ComparisonConfig)
    return "\n\n".join([*_sections("config", Experiment), *of_comparison]) + "\n"


def options(method: str) -> str:
    """The table of `config.method` of a method; "" where it has no options.

    Raises:
      ValueError: unknown method.
    """
    return _table(type(methods.make_config(method, {})))


def _sections(title: str, record: type[Options]) -> Iterator[str]:
    if table := _table(record):
        summary = (record.__doc__ or "").split("\n\n")[0]
        yield "\n\n".join([f"## {title}", summary, table])
    for name, field in record.model_fields.items():
        if inner := record_of(field.annotation):
            yield from _sections(f"{title}.{name}", inner)


def _table(record: type[Options]) -> str:
    rows = [
        f"| `{name}` | {_type(field)} | {_default(field)} | {field.description} |"
        for name, field in record.model_fields.items()
        if not record_of(field.annotation)
    ]
    return "\n".join([*_HEAD, *rows]) if rows else ""


def _type(field: Any) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice!r}`" for choice in get_args(field.annotation))
    return _plain(field.annotation, field.metadata)


def _plain(hint: Any, metadata: Any = ()) -> str:
    """A type with its bounds, such as "1 ≤ int" or "tuple of 0 ≤ float ≤ 1"."""
    if hasattr(hint, "__metadata__"):  # Annotated, inside a tuple or a dict
        return _plain(hint.__origin__, getattr(hint.__metadata__[0], "metadata", ()))
    name = hint.__name__
    if inner := get_args(hint):
        name = f"{get_origin(hint).__name__} of {_plain(inner[get_origin(hint) is dict])}"
    for m in metadata:
        for key, form in _BOUNDS.items():
            if (bound := getattr(m, key, None)) is not None:
                name = form.format(f"{bound:.10g}", name)
    return name


def _default(field: Any) -> str:
    return "required" if field.is_required() else f"`{field.default!r}`"
