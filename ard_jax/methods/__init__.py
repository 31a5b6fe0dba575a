"""Training methods: `create(name, ...)` and `names()`. One file per paper."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ard_jax.io.options import Options, read
from ard_jax.methods import (
    absld,
    adaad,
    ard,
    b_mtard,
    ciard,
    ciard_config,
    ciard_dard,
    dard,
    fair_rslad,
    iad,
    kd,
    mart,
    mtard,
    natural,
    rslad,
    sat,
    score,
    trades,
)
from ard_jax.methods.awp import Awp
from ard_jax.methods.base import Method, Parts


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered method.

    Attributes:
      config: its option record.
      make: (options, parts) -> Method.
      teachers: the roles that it takes.
      attack: its inner attack unless `config.attack` names another; "" for methods that make no
        adversarial examples.
      trained_teachers: the teachers that it goes on training.
      counts_iterates: whether it counts at how many iterates of its attack the student is right.
    """

    config: type[Options]
    make: Callable[[Any, Parts], Method]
    teachers: tuple[str, ...]
    attack: str = "sat_train"
    trained_teachers: tuple[str, ...] = ()
    counts_iterates: bool = False


_ROBUST = ("robust",)
_METHODS = {
    "absld": Entry(absld.AbsldConfig, absld.make, absld.TEACHERS, "rslad_train"),
    "adaad": Entry(adaad.AdaadConfig, adaad.make, adaad.TEACHERS, "adaad_train"),
    "adaiad": Entry(adaad.AdaiadConfig, adaad.make_adaiad, adaad.TEACHERS, "adaad_train"),
    "ard": Entry(ard.ArdConfig, ard.make, ard.TEACHERS, "ard_train"),
    "b_mtard": Entry(b_mtard.BMtardConfig, b_mtard.make, b_mtard.TEACHERS, "ciard_train"),
    "ciard": Entry(
        ciard_config.CiardConfig,
        ciard.make,
        ciard.TEACHERS,
        "ciard_train",
        trained_teachers=_ROBUST,
    ),
    "ciard_dard": Entry(
        ciard_dard.CiardDardConfig,
        ciard_dard.make,
        ciard_dard.TEACHERS,
        "dpgd",
        trained_teachers=_ROBUST,
    ),
    "dard": Entry(dard.DardConfig, dard.make, dard.TEACHERS, "dpgd"),
    "fair_rslad": Entry(
        fair_rslad.FairRsladConfig,
        fair_rslad.make,
        fair_rslad.TEACHERS,
        "rslad_train",
        counts_iterates=True,
    ),
    "iad1": Entry(iad.Iad1Config, iad.make_iad1, iad.TEACHERS, "ard_train"),
    "iad2": Entry(iad.Iad2Config, iad.make_iad2, iad.TEACHERS2, "ard_train"),
    "kd": Entry(kd.KdConfig, kd.make, kd.TEACHERS, attack=""),
    "mart": Entry(mart.MartConfig, mart.make, mart.TEACHERS, "mart_train"),
    "mtard": Entry(mtard.MtardConfig, mtard.make, mtard.TEACHERS, "ciard_train"),
    "natural": Entry(natural.NaturalConfig, natural.make, natural.TEACHERS, attack=""),
    "rslad": Entry(rslad.RsladConfig, rslad.make, rslad.TEACHERS, "rslad_train"),
    "sat": Entry(sat.SatConfig, sat.make, sat.TEACHERS),
    "score": Entry(score.ScoreConfig, score.make, score.TEACHERS, "score_train"),
    "trades": Entry(trades.TradesConfig, trades.make, trades.TEACHERS, "trades_train"),
}

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
    return read(_METHODS[name].config, options, where)


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
    name: str, attack: Any, bn_stats: str = "discard", bn: str = "eval"
) -> list[str]:
    """Why the method cannot train with this `attacks.Attack` (or None); empty when it can."""
    entry, found = _METHODS[name], []
    if not entry.attack:
        return []
    if attack is None:
        return [f"method {name!r} needs an attack"]
    if attack.needs_teacher and "robust" not in entry.teachers:
        found.append(
            f"attack {attack.name!r} maximises a loss ({attack.loss}) that needs a robust teacher, but "
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
    return found


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
    config, problems = read_options(name, options)
    problems += _teacher_problems(name, parts)
    problems += attack_problems(name, parts.attack, parts.attack_bn_stats, parts.attack_bn)
    if problems:
        raise ValueError("; ".join(problems))
    return _METHODS[name].make(config, parts)


__all__ = [
    "ATTACKING",
    "ATTACKS",
    "TEACHERS",
    "TRAINED_TEACHERS",
    "Awp",
    "Method",
    "Parts",
    "attack_problems",
    "create",
    "make_config",
    "names",
    "read_options",
]
