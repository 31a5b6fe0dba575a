"""Records of values that a user gives: typed, frozen, all problems told at once."""

import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

# The upper ends are far beyond what has a meaning, and far below what overflows on the way.
_MOST = 1_000_000
Positive = Annotated[float, Field(gt=0, le=_MOST)]
NotNegative = Annotated[float, Field(ge=0, le=_MOST)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=_MOST)]
AtLeastOne = Annotated[int, Field(ge=1, le=_MOST)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]

_BOUNDS = {
    "greater_than": "must be greater than {gt:.10g}",
    "greater_than_equal": "must be at least {ge:.10g}",
    "less_than": "must be less than {lt:.10g}",
    "less_than_equal": "must be at most {le:.10g}",
    "literal_error": "choose one of {expected}",
    "finite_number": "must be a finite number",
    "too_short": "needs at least {min_length}",
}
_KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "True or False",
    "string": "a text",
    "tuple": "a tuple, such as (1, 2)",
    "dict": "a group of values",
    "model": "a group of values",
}


class Options(BaseModel):
    """Base of the records.

    A field has a type, a default, a range and a description. An int is taken where a float is wanted, a list
    where a tuple is (JSON has none), and nothing else is converted. No number is NaN or infinite.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, **values: Any):
        """Raises ValueError with every problem, each with field, value and fix."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            kind = type(self)
            found = [_sentence(kind, one, "").removeprefix(".") for one in error.errors()]
            raise ValueError(f"{kind.__name__}: {'; '.join(found)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises AttributeError: a record stays as it was checked."""
        kind = type(self).__name__
        raise AttributeError(f"{kind} is frozen: make a new one, {kind}(..., {name}={value!r})")

    # Or pydantic would make nested records by the above, whose errors have no place any more.
    __init__.__pydantic_base_init__ = True  # pyright: ignore[reportFunctionMemberAccess]

    def conflicts(self) -> list[str]:
        """What is wrong with the fields taken together, in sentences that begin with a field's name."""
        return []

    def without_effect(self, switch: str) -> list[str]:
        """One conflict for each field that is not at its default, though `switch` is off."""
        return [
            f"{name}={value!r} has no effect with {switch}={getattr(self, switch)}: set {switch} too, or "
            f"leave {name} out"
            for name, value in self
            if name != switch and value != type(self).model_fields[name].default
        ]

    def replace(self, **values: Any) -> Self:
        """The record with other values, checked anew."""
        return type(self)(**(dict(self) | values))

    @model_validator(mode="before")
    @classmethod
    def _take_lists(cls, values: Any) -> Any:
        return tuples(values)

    @model_validator(mode="after")
    def _agree(self, info: ValidationInfo) -> Self:
        if info.context is None and (found := self.conflicts()):
            raise ValueError("; ".join(found))
        return self


def tuples(value: Any) -> Any:
    """Nested dicts with a tuple for every list."""
    if isinstance(value, dict):
        return {name: tuples(item) for name, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list | tuple) else value


def read(
    record: type[Options], raw: Any, where: str, together: bool = True
) -> tuple[Any, list[str]]:
    """Makes a record of nested dicts.

    Args:
      record: its type.
      raw: the values.
      where: dotted name of the record, with which problems begin.
      together: whether to check the fields taken together too (`Options.conflicts`).

    Returns:
      (the record, every problem). With problems the record has defaults in place of bad values, so that
      more checks can follow, and is None where it cannot.
    """
    problems: list[str] = []
    try:
        made = record.model_validate(raw, context={})
    except ValidationError as error:
        wrong = error.errors()
        paths = [one["loc"] for one in wrong]
        # A tuple of a bad item is also said to be too short.
        wrong = [one for one in wrong if not any(_within(path, one["loc"]) for path in paths)]
        problems = [_sentence(record, one, where) for one in wrong]
        raw = _without(raw, [one["loc"] for one in wrong])
        try:
            made = record.model_validate(raw, context={})
        except ValidationError:
            return None, problems
    if not together:
        return made, problems
    more = [f"{path}.{text}" for path, one in records(made, where) for text in one.conflicts()]
    return made, problems + unless_told(more, problems)


def _within(path: tuple[Any, ...], group: tuple[Any, ...]) -> bool:
    return len(path) > len(group) and path[: len(group)] == group


def unless_told(problems: list[str], told: list[str]) -> list[str]:
    """The problems that do not speak of a value that `told`, which begin with dotted names, finds bad."""
    found = (re.match(r"[\w.]*?(\w+)(?=$|[^\w.])", text) for text in told)
    names = {match[1] for match in found if match}
    return [p for p in problems if not names & set(re.findall(r"\w+", p))]


def records(record: Options, where: str) -> Iterator[tuple[str, Options]]:
    """(dotted name, record) of this record and those within."""
    yield where, record
    for name, value in record:
        if isinstance(value, Options):
            yield from records(value, f"{where}.{name}")


def fields(record: type[Options], mark: str) -> Iterator[tuple[str, ...]]:
    """Paths of the fields, or of whole groups, whose `json_schema_extra` has this "changes"."""
    for name, field in record.model_fields.items():
        if (field.json_schema_extra or {}).get("changes") == mark:
            yield (name,)
        elif inner := record_of(field.annotation):
            yield from ((name, *path) for path in fields(inner, mark))


def record_of(hint: Any) -> type[Options] | None:
    """The record that a type hint names, perhaps as `record | None`."""
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    found = (c for c in choices if isinstance(c, type) and issubclass(c, Options))
    return next(found, None)


def _sentence(record: type[Options], error: Any, where: str) -> str:
    *groups, last = error["loc"] or ("",)
    path = where + "".join(f"[{n}]" if isinstance(n, int) else f".{n}" for n in error["loc"])
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "value_error":  # of `conflicts`
        return str(context.get("error", error["msg"]))
    if kind == "missing":
        return f"{path} is missing"
    if kind == "extra_forbidden":
        parent = record
        for name in groups:
            parent = typing.cast(type[Options], record_of(parent.model_fields[name].annotation))
        have = ", ".join(parent.model_fields) or "none"
        group = ".".join(map(str, (where, *groups))) or record.__name__
        return f"{path} does not exist; {group} has {have}"
    if kind in _BOUNDS:
        told = _BOUNDS[kind].format(**context)
        return f"{path}={value!r}: {told.replace(' or ', ', ')}"
    return f"{path}={value!r}: expected {_KINDS.get(kind.rpartition('_')[0], error['msg'])}"


def _without(raw: Any, paths: list[tuple[Any, ...]]) -> Any:
    """Nested dicts without the values at these paths; a path into a tuple takes the whole tuple."""
    heads = {path[0]: [p[1:] for p in paths if p[0] == path[0]] for path in paths if path}
    if not isinstance(raw, dict):
        return raw
    kept = {}
    for name, value in raw.items():
        if name not in heads:
            kept[name] = value
        elif isinstance(value, dict) and all(heads[name]):
            kept[name] = _without(value, heads[name])
    return kept
