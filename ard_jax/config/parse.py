"""From an ml_collections ConfigDict to frozen dataclasses, with every problem reported at once."""

import dataclasses
import typing
from typing import Any

from ard_jax.config import removed
from ard_jax.config.schema import Experiment

# Other spellings, which must not make another run of it.
_PRECISIONS = {"f32": "float32", "bf16": "bfloat16"}


class ConfigError(ValueError):
    """A configuration that cannot run; the message lists every problem."""


def to_experiment(config: Any, saved: bool = False) -> Experiment:
    """Experiment from a ConfigDict or nested dict, validated.

    Args:
      config: every value, but for those that have defaults.
      saved: whether a run recorded it, perhaps one of an earlier version: see `removed.problems`.

    Raises:
      ConfigError: listing every problem found.
    """
    raw = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    raw, gone = removed.split(raw)
    problems = removed.problems(gone, saved)
    method = dict(raw.get("method", {}))
    raw["method"] = {"name": method.pop("name", ""), "options": method}
    if (precision := raw.get("precision")) in list(_PRECISIONS):
        raw["precision"] = _PRECISIONS[precision]
    experiment = _build(Experiment, raw, "config", problems)
    if not problems:
        from ard_jax.config.validate import find_problems  # it reads the records of this module

        problems = find_problems(experiment)
    if problems:
        raise ConfigError("This configuration cannot run:\n  - " + "\n  - ".join(problems))
    return experiment


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Plain nested dict of JSON types, in the layout that `build` reads."""
    raw = _plain(dataclasses.asdict(experiment))
    raw["method"] = {"name": raw["method"]["name"], **raw["method"]["options"]}
    return raw


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _build(cls: type, raw: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(raw, dict):
        problems.append(f"{where} must be a group of values, got {raw!r}")
        return None
    hints = typing.get_type_hints(cls)
    for name in sorted(set(raw) - set(hints)):
        problems.append(f"{where}.{name} does not exist; {where} has {', '.join(sorted(hints))}")
    values = {}
    for field in dataclasses.fields(cls):
        here, hint = f"{where}.{field.name}", hints[field.name]
        if field.name not in raw:
            if field.default is dataclasses.MISSING:
                problems.append(f"{here} is missing")
        elif raw[field.name] is None and type(None) in typing.get_args(hint):
            values[field.name] = None
        elif dataclasses.is_dataclass(record := (*typing.get_args(hint), hint)[0]):
            values[field.name] = _build(record, raw[field.name], here, problems)
        else:
            values[field.name] = _convert(raw[field.name], hint, here, problems)
    return None if problems else cls(**values)


def _convert(value: Any, hint: Any, where: str, problems: list[str]) -> Any:
    origin = typing.get_origin(hint) or hint
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if origin is dict and isinstance(value, dict):
        return _tuples(value)  # JSON has no tuples, networks and methods take no lists
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong = not isinstance(value, origin) or origin is not dict and isinstance(value, dict)
    if wrong or origin is int and isinstance(value, bool):
        problems.append(f"{where}={value!r}: expected {origin.__name__}")
    return value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
