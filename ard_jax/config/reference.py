"""The reference of all values, as Markdown out of the schema and the methods' records."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from ard_jax import methods
from ard_jax.config.schema import Experiment
from ard_jax.io.options import Options, record_of

_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
_HEAD = ["| name | type and range | default | meaning |", "|---|---|---|---|"]


def markdown() -> str:
    """One table for each group of `config`, and one for each method's options."""
    tables = list(_tables("config", Experiment))
    for name in methods.names():
        tables += _tables(f"config.method, {name}", type(methods.make_config(name, {})))
    return "\n\n".join(tables) + "\n"


def _tables(title: str, record: type[Options]) -> Iterator[str]:
    fields = record.model_fields.items()
    rows = [
        f"| `{name}` | {_type(field)} | {_default(field)} | {field.description} |"
        for name, field in fields
        if not record_of(field.annotation)
    ]
    if rows:
        yield "\n".join(
            [f"### {title}", "", (record.__doc__ or "").split("\n\n")[0], "", *_HEAD, *rows]
        )
    for name, field in fields:
        if inner := record_of(field.annotation):
            yield from _tables(f"{title}.{name}", inner)


def _type(field: Any) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice!r}`" for choice in get_args(field.annotation))
    return _plain(field.annotation, field.metadata)


def _plain(hint: Any, metadata: Any = ()) -> str:
    """A type with its bounds, such as "int ≥ 1" or "tuple of float ≥ 0"."""
    if hasattr(hint, "__metadata__"):  # Annotated, inside a tuple or a dict
        return _plain(hint.__origin__, hint.__metadata__[0].metadata)
    name = hint.__name__
    if inner := get_args(hint):
        name = f"{get_origin(hint).__name__} of {_plain(inner[get_origin(hint) is dict])}"
    bounds = [(sign, getattr(m, key, None)) for m in metadata for key, sign in _SIGNS.items()]
    return " ".join(
        [name, *(f"{sign} {bound:.10g}" for sign, bound in bounds if bound is not None)]
    )


def _default(field: Any) -> str:
    return "required" if field.is_required() else f"`{field.default!r}`"
