"""From an ml_collections ConfigDict to the records of the schema, with every problem reported at once."""

from typing import Any

from ard_jax.config import removed
from ard_jax.config.schema import NOTHING, Experiment
from ard_jax.io import options


class ConfigError(ValueError):
    """A configuration that cannot run; the message lists every problem."""


def to_experiment(config: Any, saved: bool = False) -> Experiment:
    """Experiment from a ConfigDict or nested dict, validated.

    Args:
      config: every value, but for those that have defaults.
      saved: whether a run recorded it, perhaps one of an earlier version: see `removed.problems`. It ran,
        so that fields which later versions would not combine are taken.

    Raises:
      ConfigError: listing every problem found.
    """
    raw = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    if "runs" in raw and "methods" in raw:
        raise ConfigError(
            "this is the configuration of a comparison: use --mode=compare, or that of one experiment, such "
            "as --config=configs/digits.py:rslad"
        )
    raw, gone = removed.split(removed.values_of_now(raw) if saved else raw)
    problems = removed.problems(gone, saved)
    if isinstance(method := raw.get("method"), dict):
        rest = {name: value for name, value in method.items() if name != "name"}
        raw["method"] = {"name": method.get("name", ""), "options": rest}
    experiment, found = options.read(Experiment, raw, "config", together=not saved)
    problems += found
    if experiment is not None:
        from ard_jax.config.validate import (
            find_problems,  # it builds attacks, with this module's records
        )

        problems += options.unless_told(find_problems(experiment), found)
    if problems or experiment is None:
        raise ConfigError("This configuration cannot run:\n  - " + "\n  - ".join(problems))
    return experiment


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Plain nested dict of JSON types, in the layout that `to_experiment` reads."""
    raw = experiment.model_dump(mode="json")
    raw["method"] = {"name": raw["method"]["name"], **raw["method"]["options"]}
    return raw


def of_results(experiment: Experiment) -> dict[str, Any]:
    """`to_dict` without what changes no result."""
    return without(to_dict(experiment), NOTHING)


def without(raw: dict[str, Any], *marks: dict[str, Any]) -> dict[str, Any]:
    """`to_dict`'s groups without the fields of the schema that have one of these marks."""
    for mark in marks:
        for *groups, name in options.fields(Experiment, mark["changes"]):
            target = raw
            for group in groups:
                target = target[group]
            del target[name]
    return raw
