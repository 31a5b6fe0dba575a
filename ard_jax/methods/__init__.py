"""Training methods: `create(name, ...)` and `names()`. One file per paper, found by its REGISTRATION.

Functions that take a method's name take a `Registration` of your own too.
"""

import dataclasses
import importlib
import pkgutil
from typing import Any

from ard_jax.attacks.attack import Attack
from ard_jax.io.options import read
from ard_jax.losses import checks
from ard_jax.methods import checked
from ard_jax.methods.awp import Awp
from ard_jax.methods.base import ASKED, PARTNERS, Method, Parts, Registration
from ard_jax.methods.igdm import Igdm
from ard_jax.state import RunState


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
# Methods that take gradient matching as an add-on.
IGDM = tuple(name for name, entry in _METHODS.items() if entry.igdm is not None)


def names() -> list[str]:
    """Names that `create` knows."""
    return sorted(_METHODS)


def read_options(
    name: str | Registration, options: dict[str, Any], where: str = "method"
) -> tuple[Any, list[str]]:
    """The method's option record, and every problem: see `ard_jax.io.options.read`.

    Raises:
      ValueError: unknown method.
    """
    return read(_entry(name).options, options, where)


def _entry(name: str | Registration) -> Registration:
    if isinstance(name, Registration):
        return name
    checks.choice(name, "method", names())
    return _METHODS[name]


def make_config(name: str | Registration, options: dict[str, Any]) -> Any:
    """The method's option record.

    Raises:
      ValueError: unknown method, or options that are unknown or bad, all of them together.
    """
    config, problems = read_options(name, options)
    if problems:
        raise ValueError("; ".join(problems))
    return config


def attack_problems(
    name: str | Registration,
    attack: Any,
    bn_stats: str = "discard",
    bn: str = "eval",
    config: Any = None,
    *,
    soft_labels: bool = False,
) -> list[str]:
    """Why the method cannot train with this `attacks.Attack` (or None); empty when it can.

    `config` is the method's option record, None where there is none to look at; `soft_labels`: whether
    batches have soft labels, which an attack may take in place of a teacher's logits.

    Raises:
      ValueError: unknown method or BatchNorm mode.
    """
    entry, found = _entry(name), []
    name = entry.name
    checks.choice(bn, "bn", ("eval", "train"))
    checks.choice(bn_stats, "bn_stats", ("discard", "keep"))
    if not entry.attack:
        idle = f"method {name!r} makes no adversarial examples: leave Parts(attack=...) out"
        return [] if attack is None else [idle]
    if not isinstance(attack, Attack):
        kind = "" if attack is None else f", not {type(attack).__name__}"
        return [f"method {name!r} needs an attack of attacks.make(...){kind}"]
    if config is not None and (told := entry.refuses(config, attack)):
        found.append(f"attack {attack.name!r} {told}")
    own = (entry.soft_labels or soft_labels) and attack.needs_teacher == "logits"
    if attack.needs_teacher and not {*ASKED} & {*entry.teachers} and not own:
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
    if bn_stats == "keep" and "robust" in entry.trained_teachers:
        found.append(
            f"method {name!r} cannot keep the running statistics of its attack: S(x) comes before it; "
            "use bn_stats='discard'"
        )
    return found


def label_problems(
    name: str | Registration, config: Any, attack: Any, smoothing: float = 0.0, mixing: bool = False
) -> list[str]:
    """Why the method cannot learn from soft labels; empty when it can.

    Args:
      name: of the method.
      config: its option record.
      attack: `attacks.Attack`.
      smoothing: share of a label that is spread over all classes.
      mixing: whether labels are those of two images at once.

    Raises:
      ValueError: unknown method.
    """
    entry, found = _entry(name), []
    name = entry.name
    if smoothing and not entry.cross_entropy(config):
        found.append(
            f"label_smoothing={smoothing}: method {name!r} has no cross-entropy with the labels under these "
            "options; use 0"
        )
    if not mixing:
        return found
    if reason := entry.needs_labels(config):
        found.append(
            f"data.mixup or cutmix: method {name!r} {reason}, which labels of two images at once do not "
            "allow; leave them out"
        )
    if entry.attack and attack.needs_labels:
        found.append(
            f"data.mixup or cutmix: attack {attack.name!r} needs labels that are one class; use one that "
            "takes soft labels, such as attack.name=adr_train or apgd_soft_train, or leave them out"
        )
    return found


def ramp_problems(name: str | Registration, attack: Any, epochs: int, config: Any) -> list[str]:
    """Why the radius of this attack cannot grow over so many epochs with this method; empty when it can.

    Raises:
      ValueError: unknown method.
    """
    name = (entry := _entry(name)).name
    if not epochs:
        return []
    if not entry.attack:
        return [f"eps_ramp={epochs}: method {name!r} has no attack whose radius could grow; use 0"]
    if isinstance(attack, Attack) and not attack.numbers:
        return [
            f"eps_ramp={epochs}: attack {attack.name!r} has a fixed radius; use a PGD attack, or 0"
        ]
    if getattr(config, "eps_ramp", False):
        return [
            f"eps_ramp={epochs}: the radius of method {name!r} grows already; use 0, or method.eps_ramp=False"
        ]
    return []


def igdm_problems(name: str | Registration, igdm: Igdm | None) -> list[str]:
    """Why the method cannot be trained with this gradient matching; empty when it can.

    Raises:
      ValueError: unknown method.
    """
    name = (entry := _entry(name)).name
    if igdm is None or not igdm.weight:
        return []
    if (passes := entry.igdm) is None:
        return [
            f"igdm.weight={igdm.weight}: method {name!r} takes no gradient matching, but "
            f"{', '.join(IGDM)} do; use 0, or one of these"
        ]
    if igdm.variant not in (known := ("paper", *passes)):
        return [
            f"igdm.variant={igdm.variant!r}: there is no such code with method {name!r}; choose "
            f"{' or '.join(map(repr, known))}"
        ]
    return []


def needs_robust_teacher(name: str | Registration, igdm: Igdm | None) -> str:
    """What fails with a teacher that is not robust, for people; "" where nothing does.

    Raises:
      ValueError: unknown method.
    """
    entry = _entry(name)
    if igdm is not None and igdm.weight:
        return "gradient matching (config.igdm.weight)"
    return f"method {entry.name!r}" if entry.robust_teacher else ""


def _teacher_problems(entry: Registration, parts: Parts) -> list[str]:
    name, wanted, given = entry.name, entry.teachers, parts.teachers
    found = [f"method {name!r} needs a {role} teacher" for role in wanted if role not in given]
    found += [
        f"method {name!r} takes no {role} teacher"
        + (f", only {' and '.join(wanted)}" if wanted else "; it has no teachers at all")
        for role in given
        if role not in wanted
    ]
    found += [
        f"method {name!r} trains its {role} teacher: give teacher_optims={{{role!r}: optim.make(...)}}"
        for role in entry.trained_teachers
        if role not in (*parts.teacher_optims, *PARTNERS)
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
    found += [
        f"method {name!r} trains no {role} teacher by an optimiser of its own; leave "
        f"teacher_optims[{role!r}] out"
        for role in parts.teacher_optims
        if role not in entry.trained_teachers or role in PARTNERS
    ]
    return found


def length_matters(name: str | Registration, options: dict[str, Any]) -> str:
    """Returns what in the method's step depends on the length of the run; "" if nothing does."""
    return _entry(name).length_matters(make_config(name, options))


def updates_per_step(name: str | Registration, options: dict[str, Any]) -> int:
    """Returns how often a step of the method updates the student, for schedules that change each time."""
    return _entry(name).updates(make_config(name, options))


def accumulation_problems(name: str | Registration, options: dict[str, Any]) -> list[str]:
    """Why a step of the method cannot be several parts with one update; empty when it can."""
    entry = _entry(name)
    if entry.accumulates and updates_per_step(name, options) == 1:
        return []
    return [
        f"method {entry.name!r} does more in a step than one update of the student: use accumulate=1"
    ]


def create(name: str | Registration, parts: Parts, **options: Any) -> Method:
    """The method `name` on these networks, attack and optimisers.

    Args:
      name: one of `names()`, or the registration of a method of your own.
      parts: networks, optimisers and attack.
      **options: fields of the method's option record.

    Raises:
      ValueError: unknown method or option; or, all problems together: bad values, teachers that are
        missing, not wanted or of other classes, an attack or a gradient matching that the method cannot
        use.
    """
    if not isinstance(parts, Parts):
        raise ValueError(f"parts is {type(parts).__name__}; give methods.Parts(student=..., ...)")
    entry = _entry(name)
    config, problems = read_options(entry, options)
    problems += _teacher_problems(entry, parts)
    problems += attack_problems(
        entry, parts.attack, parts.attack_bn_stats, parts.attack_bn, config,
        soft_labels=parts.soft_labels,
    )  # fmt: skip
    problems += ramp_problems(entry, parts.attack, parts.eps_ramp, config)
    problems += igdm_problems(entry, parts.igdm)
    if problems:
        raise ValueError("; ".join(problems))
    if entry.attack:
        checked.attack(parts.attack, parts.student)
    made = entry.make(config, parts)
    if not isinstance(made, Method):
        raise ValueError(
            f"make of method {entry.name!r} returned {type(made).__name__}; it must return a base.Method, "
            "such as base.from_loss(parts, ...) makes"
        )
    needed = (*made.columns, "soft_label") if parts.soft_labels else made.columns
    asked = dataclasses.replace(made, columns=needed)

    def init(student: Any, teachers: dict[str, Any]):
        checked.start(parts, student, teachers, entry.teachers)
        return made.init(student, teachers)

    def step(state: RunState, batch: dict[str, Any], key: Any):
        checked.step(parts, asked, state, batch)
        groups = {"the_teachers_are": state.teachers, "the_method_has": state.method}
        with checked.keys(f"method {entry.name!r}", batch, **groups):
            return made.step(state, batch, checks.random_key(key))

    return dataclasses.replace(
        made, init=init, step=step, name=entry.name, teachers=entry.teachers,
        trained_teachers=entry.trained_teachers,
    )  # fmt: skip


__all__ = [
    "ATTACKING",
    "ATTACKS",
    "IGDM",
    "TEACHERS",
    "TRAINED_TEACHERS",
    "Awp",
    "Igdm",
    "Method",
    "Parts",
    "Registration",
    "accumulation_problems",
    "attack_problems",
    "create",
    "igdm_problems",
    "label_problems",
    "make_config",
    "names",
    "needs_robust_teacher",
    "ramp_problems",
    "read_options",
    "updates_per_step",
]
