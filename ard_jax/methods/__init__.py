"""Training methods: `create(name, ...)` and `names()`. One file per paper, found by its REGISTRATION."""

import dataclasses
import importlib
import pkgutil
from typing import Any

from ard_jax.io.options import read
from ard_jax.methods.awp import Awp
from ard_jax.methods.base import Method, Parts, Registration


def _registrations() -> dict[str, Registration]:
    found: dict[str, Registration] = {}
    for module in pkgutil.iter_modules(__path__):
        own = getattr(importlib.import_module(f"{__name__}.{module.name}"), "REGISTRATION", ())
        for one in (own,) if isinstance(own, Registration) else own:
            if one.name in found:
                raise ImportError(f"method {one.name!r} is registered twice")
            found[one.name] = one
    return found


_METHODS = _registrations()
TRAINED_TEACHERS = {name: entry.trained_teachers for name, entry in _METHODS.items()}
TEACHERS = {name: entry.teachers for name, entry in _METHODS.items()}
ATTACKS = {name: entry.attack for name, entry in _METHODS.items()}
# Methods whose step makes adversarial examples.
ATTACKING = tuple(name for name, entry in _METHODS.items() if entry.attack)


def names() -> list[str]:
    """Names that `create` knows."""
    return sorted(_METHODS)


def read_options(
    name: str, options: dict[str, Any], where: str = "method"
) -> tuple[Any, list[str]]:
    """The method's option record, and every problem: see `ard_jax.io.options.read`.

    Raises:
      ValueError: unknown method.
    """
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(names())}")
    return read(_METHODS[name].options, options, where)


def make_config(name: str, options: dict[str, Any]) -> Any:
    """The method's option record.

    Raises:
      ValueError: unknown method, or options that are unknown or bad, all of them together.
    """
    config, problems = read_options(name, options)
    if problems:
        raise ValueError("; ".join(problems))
    return config


def attack_problems(
    name: str, attack: Any, bn_stats: str = "discard", bn: str = "eval", config: Any = None
) -> list[str]:
    """Why the method cannot train with this `attacks.Attack` (or None); empty when it can.

    `config` is the method's option record, None where there is none to look at.
    """
    entry, found = _METHODS[name], []
    if not entry.attack:
        return []
    if attack is None:
        return [f"method {name!r} needs an attack"]
    if config is not None and (told := entry.refuses(config, attack)):
        found.append(f"attack {attack.name!r} {told}")
    if attack.needs_teacher and "robust" not in entry.teachers:
        found.append(
            f"attack {attack.name!r} maximises a loss that needs a robust teacher, but "
            f"method {name!r} has none; use an attack such as 'sat_train' or 'ciard_train'"
        )
    if not attack.pure:
        found.append(
            f"attack {attack.name!r} decides on the host what to do next, so that no step can train with "
            "it; use 'apgd_ce', or name it in config.eval.attacks"
        )
    if not attack.takes_state and (entry.counts_iterates or (bn, bn_stats) == ("train", "keep")):
        why = "counts its iterates" if entry.counts_iterates else "keeps its running statistics"
        found.append(
            f"attack {attack.name!r} carries no state from step to step, but method {name!r} {why}; use a "
            "PGD attack such as 'sat_train'"
        )
    if bn_stats == "keep" and entry.trained_teachers:
        found.append(
            f"method {name!r} cannot keep the running statistics of its attack: S(x) comes before it; "
            "use bn_stats='discard'"
        )
    return found


def _teacher_problems(name: str, parts: Parts) -> list[str]:
    wanted, given = _METHODS[name].teachers, parts.teachers
    found = [f"method {name!r} needs a {role} teacher" for role in wanted if role not in given]
    found += [
        f"method {name!r} takes no {role} teacher"
        + (f", only {' and '.join(wanted)}" if wanted else "; it has no teachers at all")
        for role in given
        if role not in wanted
    ]
    classes = parts.student.num_classes
    found += [
        f"the {role} teacher has {net.num_classes} classes, the student {classes}"
        for role, net in given.items()
        if net.num_classes != classes
    ]
    found += [
        f"the {role} teacher takes images of {net.image_shape}, the student of {parts.student.image_shape}"
        for role, net in given.items()
        if net.image_shape != parts.student.image_shape
    ]
    return found


def length_matters(name: str, options: dict[str, Any]) -> str:
    """Returns what in the method's step depends on the length of the run; "" if nothing does."""
    return _METHODS[name].length_matters(make_config(name, options))


def create(name: str, parts: Parts, **options: Any) -> Method:
    """The method `name` on these networks, attack and optimisers.

    Args:
      name: one of `names()`.
      parts: networks, optimisers and attack.
      **options: fields of the method's option record.

    Raises:
      ValueError: unknown method or option; or, all problems together: bad values, teachers that are
        missing, not wanted or of other classes, an attack that the method cannot use.
    """
    if not isinstance(parts, Parts):
        raise ValueError(f"parts is {type(parts).__name__}; give methods.Parts(student=..., ...)")
    config, problems = read_options(name, options)
    problems += _teacher_problems(name, parts)
    problems += attack_problems(name, parts.attack, parts.attack_bn_stats, parts.attack_bn, config)
    if problems:
        raise ValueError("; ".join(problems))
    entry = _METHODS[name]
    return dataclasses.replace(
        entry.make(config, parts), name=name, teachers=entry.teachers,
        trained_teachers=entry.trained_teachers,
    )  # fmt: skip


__all__ = [
    "ATTACKING",
    "ATTACKS",
    "TEACHERS",
    "TRAINED_TEACHERS",
    "Awp",
    "Method",
    "Parts",
    "Registration",
    "attack_problems",
    "create",
    "make_config",
    "names",
    "read_options",
]
