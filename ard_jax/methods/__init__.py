"""Training methods: `create(name, ...)` and `names()`. One file per paper."""

from typing import Any

from ard_jax.methods import ciard, ciard_config, natural, sat, trades
from ard_jax.methods.base import Method, Parts

_CONFIGS = {
    "ciard": ciard_config.CiardConfig,
    "natural": natural.NaturalConfig,
    "sat": sat.SatConfig,
    "trades": trades.TradesConfig,
}
_MAKERS = {"ciard": ciard.make, "natural": natural.make, "sat": sat.make, "trades": trades.make}
TEACHERS = {"ciard": ciard.TEACHERS, "natural": (), "sat": (), "trades": ()}
# Methods whose step makes adversarial examples, so that they need an attack.
ATTACKING = ("ciard", "sat", "trades")


def names() -> list[str]:
    """Names that `create` knows."""
    return sorted(_MAKERS)


def make_config(name: str, options: dict[str, Any]) -> Any:
    """The method's option record.

    Raises:
      ValueError: unknown method or option, or an option of the wrong type.
    """
    if name not in _CONFIGS:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(names())}")
    known = _CONFIGS[name].__dataclass_fields__
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"method {name!r} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
    return _CONFIGS[name](**options)


def create(name: str, parts: Parts, **options: Any) -> Method:
    """The method `name` on these networks, attack and optimisers.

    Args:
      name: one of `names()`.
      parts: networks, optimisers and attack.
      **options: fields of the method's option record.

    Raises:
      ValueError: unknown method or option, a bad value, or a missing teacher.
    """
    config = make_config(name, options)
    problems = config.problems()
    problems += [
        f"method {name!r} needs a {role} teacher"
        for role in TEACHERS[name]
        if role not in parts.teachers
    ]
    if name in ATTACKING and parts.attack is None:
        problems.append(f"method {name!r} needs an attack")
    if problems:
        raise ValueError("; ".join(problems))
    return _MAKERS[name](config, parts)


__all__ = ["ATTACKING", "TEACHERS", "Method", "Parts", "create", "make_config", "names"]
