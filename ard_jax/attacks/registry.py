"""Attacks by name, with the parameters that papers report them under.

A new attack is a subclass of `attack.Attack` in a file of its own, and one line in `_REGISTRY`.
"""

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from ard_jax.attacks.attack import Attack, create
from ard_jax.attacks.auto_attack.apgd import ApgdAttack
from ard_jax.attacks.auto_attack.attack import AutoAttack
from ard_jax.attacks.auto_attack.versions import SUITES
from ard_jax.attacks.friendly import FriendlyAttack
from ard_jax.attacks.projected_gradient import PgdAttack
from ard_jax.losses import checks

_LONG_STEP = 4  # radii: the longest step of a paper here is 1.25


def _create(
    kind: type[Attack], name: str, eps: float, norm: str, /, overrides: Any, **values: Any
) -> Attack:
    """Returns the attack of a registry line, with `overrides` of its record's fields.

    `step_per_eps` of a line is the step size as a part of eps.
    """
    checks.number(eps, "eps")
    if norm == "l2":
        values["label"] = f"{values['label'].replace('_inf', '')} (L2)"
    if ratio := values.pop("step_per_eps", None):
        values["step_size"] = ratio * eps
    made = create(kind, name, values | overrides, name=name, eps=eps, norm=norm)
    size = overrides.get("step_size")
    if isinstance(size, int | float) and 0 < _LONG_STEP * eps < size:
        warnings.warn(
            f"attack {name!r}: step_size={size:g} is {size / eps:.0f} times eps={eps:.3g}; it is a length in "
            "pixel units, not a part of eps",
            stacklevel=4,
        )
    return made


def _pgd(label: str, step_per_eps: float, steps: int, **static: Any) -> Callable[..., Attack]:
    return functools.partial(
        _create, PgdAttack, label=label, step_per_eps=step_per_eps, steps=steps, **static
    )


_UNIFORM = {"start": "uniform", "order": "range_then_ball"}
_GAUSS = {"start": "gauss", "clip_start": False}
_TRADES_STEP = 0.007 / 0.031
_PER_SAMPLE = {"loss": "dice", "dice": "per_sample"}

# Step sizes as parts of eps. At 8/255: eps/4 is 2/255, 0.003 is PGD_trades' step, all of them from
# eminentgu/CIARD's evaluation except BIM and T-PGD (torchattacks). Inner attacks of training:
# trades_train (yaodongyu/TRADES: 0.007 at eps 0.031), mart_train (YisenWang/MART, the same with CE),
# rslad_train (zibojia/RSLAD), adaad_train (boyellow/AdaAD), ard_train (goldblum/
# AdversariallyRobustDistillation and ZFancy/IAD), score_train (P2333/SCORE), sat_train
# (MadryLab/cifar10_challenge), hat_train (imrahulr/hat), gairat_train
# (zjfheart/Geometry-aware-Instance-reweighted-Adversarial-Training), saad_train (HongsinLee/saad),
# adr_train and adr_trades_train (see methods/adr.py), fgsm_rs_train (locuslab/fast_adversarial),
# n_fgsm_train (pdejorge/N-FGSM), dkl_train (jiequancui/DKL), fat_train
# (zjfheart/Friendly-Adversarial-Training), icml26_* (HongsinLee/why-robust-teachers-fail, whose starts are
# clipped), apgd_train (nmndeep/revisiting-at: two steps from the image, the largest loss). dpgd: DARD's
# scripts; see `dpgd`.
_REGISTRY: dict[str, Callable[..., Attack]] = {
    # Suites first: what can also be a pure function stands below under the same name.
    **{
        name: functools.partial(_create, AutoAttack, label=suite.label, suite=suite)
        for name, suite in SUITES.items()
    },
    "fgsm": _pgd("FGSM", 1.0, 1),
    "pgd_sat": _pgd("PGD_sat", 0.25, 20, **_UNIFORM),
    "pgd_trades": _pgd("PGD_trades", 0.003 * 255 / 8, 20, **_UNIFORM),
    "bim": _pgd("BIM", 0.25, 10),
    "tpgd": _pgd("T-PGD", 0.25, 10, start="uniform", loss="least_likely"),
    "cw_inf": _pgd("CW_inf", 0.25, 30, loss="cw", order="range_at_end"),
    "pgd20": _pgd("PGD-20", 0.25, 20, **_UNIFORM),
    "ciard_train": _pgd("CIARD training", 0.25, 10, **_GAUSS),
    "trades_train": _pgd("TRADES training", _TRADES_STEP, 10, loss="kl", **_GAUSS),
    "mart_train": _pgd("MART training", _TRADES_STEP, 10, **_GAUSS),
    "gairat_train": _pgd("GAIRAT training", _TRADES_STEP, 10, start="uniform"),
    "hat_train": _pgd("HAT training", 0.25, 10, loss="kl", **_GAUSS),
    "rslad_train": _pgd("RSLAD training", 0.25, 10, loss="teacher_kl", **_GAUSS),
    "adaad_train": _pgd("AdaAD training", 0.25, 10, loss="teacher_moving_kl", **_GAUSS),
    "ard_train": _pgd("ARD training", 0.25, 10, start="uniform", clip_start=False),
    "adr_train": _pgd("ADR training", 0.25, 10, loss="teacher_kl", start="uniform"),
    "adr_trades_train": _pgd("ADR-TRADES training", 0.25, 10, loss="kl", **_GAUSS),
    "saad_train": _pgd("SAAD training", 0.25, 10, loss="teacher_linear_kl", **_GAUSS),
    "score_train": _pgd("SCORE training", 0.25, 10, start="uniform", loss="squared"),
    "sat_train": _pgd("SAT training", 0.25, 10, start="uniform"),
    "fgsm_rs_train": _pgd("FGSM-RS training", 1.25, 1, start="uniform"),
    "n_fgsm_train": _pgd(
        "N-FGSM training", 1.0, 1, start="uniform", start_radius=2.0, order="range_only"
    ),
    "icml26_trades_train": _pgd("ICML'26 TRADES training", 0.25, 10, loss="kl", start="gauss"),
    "icml26_rslad_train": _pgd(
        "ICML'26 RSLAD training", 0.25, 10, loss="teacher_kl", start="uniform"
    ),
    "icml26_adaad_train": _pgd(
        "ICML'26 AdaAD training", 0.25, 10, loss="teacher_moving_kl", start="gauss"
    ),
    "dkl_train": _pgd("DKL training", 0.5, 5, loss="kl", **_GAUSS),
    "fat_train": functools.partial(
        _create, FriendlyAttack, label="FAT training", step_per_eps=_TRADES_STEP, steps=10
    ),
    "apgd_train": functools.partial(
        _create, ApgdAttack, label="APGD training", steps=2, start="none"
    ),
    "apgd_soft_train": functools.partial(
        _create,
        ApgdAttack,
        label="APGD training, soft labels",
        steps=2,
        start="none",
        loss="teacher_kl",
    ),
    "dpgd": _pgd("DPGD", 0.25, 10, loss="dice"),
    "dpgd_per_sample": _pgd("DPGD_per_sample", 0.25, 10, **_PER_SAMPLE),
    "dpgd_strong": _pgd("DPGD_strong", 0.25, 10, loss="dice", start="uniform"),
    "apgd_ce": functools.partial(_create, ApgdAttack, label="APGD-CE"),
    "apgd_dlr": functools.partial(_create, ApgdAttack, label="APGD-DLR", loss="dlr"),
}
# Names under which other libraries, and functions of `attacks`, have these.
_ELSEWHERE = {
    "pgd": "pgd_sat", "pgd10": "sat_train", "pgd_linf": "pgd_sat", "cw": "cw_inf", "cw_linf": "cw_inf",
    "aa": "autoattack", "auto_attack": "autoattack", "apgd": "apgd_ce", "square": "square5000",
    "targeted_pgd": "tpgd", "trades_pgd": "trades_train", "ciard_pgd": "ciard_train",
}  # fmt: skip
_EVALUATION = ("fgsm", "pgd_sat", "pgd_trades", "bim", "tpgd", "cw_inf")


def names() -> list[str]:
    """Returns the attacks that are pure functions and stay within eps: those that evaluate."""
    return [n for n in training_names() if _REGISTRY[n].keywords.get("order") != "range_only"]


def check_name(name: Any, known: Iterable[str]) -> None:
    """Raises ValueError unless `name` is one of the `known` names of attacks."""
    known = sorted(known)
    if isinstance(name, str) and "," in name:
        raise ValueError(f"unknown attack {name!r}; give several names as a tuple of texts")
    meant = _ELSEWHERE.get(name.lower().replace("-", "_")) if isinstance(name, str) else None
    if meant in known and name not in known:
        raise ValueError(f"unknown attack {name!r}; did you mean {meant!r}?")
    if name in list(_REGISTRY) and name not in known:
        raise ValueError(
            f"attack {name!r} only trains: it needs a teacher, or leaves the ball of eps; to evaluate choose "
            f"one of {', '.join(known)}"
        )
    checks.choice(name, "attack", known)


def training_names() -> list[str]:
    """Returns the attacks that are pure functions, so that a step can train with them."""
    return sorted(name for name, make in _REGISTRY.items() if make.args[0].pure)


def suite_names() -> list[str]:
    """Returns the attacks that AutoAttack's cascade runs on the host, in evaluations alone."""
    return list(SUITES)


def label_of(name: str) -> str:
    """Returns how reports call an attack; a name that is not registered is its own label."""
    return _REGISTRY[name].keywords["label"] if name in list(_REGISTRY) else name


def evaluation_names() -> tuple[str, ...]:
    """Returns the attacks that the evaluation runs by default, in the order of its table."""
    return _EVALUATION


def make(name: str, eps: float = 8 / 255, norm: str = "linf", **overrides: Any) -> Attack:
    """Returns the attack `name` at radius `eps`.

    Step sizes are stored relative to eps, so every attack can be had at any radius (digits: 0.2);
    at 8/255 they are the papers'. In L2 the same step-to-radius ratios hold and the label says so.

    Args:
      name: one of `training_names()` or `suite_names()`. "pgd20" is PGD_sat under the name that training
        logs use.
      eps: radius in pixel units.
      norm: "linf" or "l2".
      **overrides: fields of the attack's record, absolute (steps, step_size, restarts, start, ...).

    Raises:
      ValueError: unknown name or field, or a bad value.
    """
    if isinstance(name, str) and (plain := name.replace("-", "_")) in _REGISTRY:
        name = plain  # as members of AutoAttack are written
    check_name(name, _REGISTRY)
    return _REGISTRY[name](name, eps, norm, overrides)


def weak_alone(attacks: Iterable[str]) -> str:
    """Why these attacks alone are no evaluation; "" if they are one."""
    if not all(name.startswith("dpgd") for name in attacks):
        return ""
    return (
        "DPGD alone can stall where it should succeed (its gradient vanishes on confident images); add "
        "another attack, such as pgd_sat"
    )
