"""Why Robust Teachers Fail (ICML 2026): its baselines, other methods' objectives under one protocol."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base, batch_statistics
from ard_jax.methods.options import AtLeastOne, NotNegative, Options
from ard_jax.state import RunState

_RELIABILITY = 0.1  # exponent of IAD's


class Icml26Config(Options):
    """Options of the distillation baselines."""

    objective: Literal["ard", "iad", "rslad", "adaad"] = Field(
        "ard", description="Whose objective, see `make`; `adaad` with `igdm` is their IGDM."
    )
    begin_epoch: AtLeastOne = Field(
        60,
        description="Of `iad`: first epoch, from 1, with the student's own term; 80 on CIFAR-100.",
    )


class Icml26AtConfig(Options):
    """Options of the baselines without a teacher."""

    objective: Literal["pgd", "trades"] = Field(
        "pgd", description="Whose objective, see `make_at`."
    )
    beta: NotNegative = Field(6.0, description="Of `trades`: weight of the KL term.")


_ATTACKS = {
    "ard": "sat_train", "iad": "sat_train", "rslad": "icml26_rslad_train",
    "adaad": "icml26_adaad_train", "pgd": "sat_train", "trades": "icml26_trades_train",
}  # fmt: skip
_LOSSES = {"rslad": "teacher_kl", "adaad": "teacher_moving_kl", "trades": "kl"}
_IGDM = {"saad": ("plus", "minus")}  # with IGDM, S(x + d) in place of S(x')


def make(config: Icml26Config, parts: base.Parts) -> base.Method:
    """L as below; means over the batch of sums over the classes, temperature 1, no hard labels.

        ard    KL(p_T(x') || p_S(x')), x' by PGD on CE (`sat_train`): ARD has T(x) and t = 30
        rslad  KL(p_T(x) || p_S(x')), `icml26_rslad_train`: RSLAD has a clean term beside it
        iad    KL(p_T(x) || p_S(x')) + (1 - p_T(y|x')^0.1) KL(p_S(x) || p_S(x')) from `begin_epoch` on,
               `sat_train`: IAD weighs the first term too
        adaad  KL(p_T(x') || p_S(x')), `icml26_adaad_train`; with `igdm.variant="saad"`, weight 1: IGDM

    Attacks: 10 steps of eps/4 in eval mode, random starts clipped to [0,1]. Train-mode passes: S(x'), of
    `iad` from `begin_epoch` on also S(x), with IGDM S(x + d), S(x - d); and in all of them S(x) once more
    after the update, with the new weights, whose running statistics stay: the code's training accuracy.
    Schedule: 200 epochs, rate 0.1, times 0.1 after 100 and 150, weight decay 2e-4. Source:
    HongsinLee/why-robust-teachers-fail.
    """
    iad = config.objective == "iad"

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        target = soft.adv if config.objective in ("ard", "adaad") else soft.nat
        distill = jnp.mean(losses.trades_kl(target, z.adv))
        if not iad:
            return distill, {"loss_distill": distill}
        active = batch["epoch"] >= config.begin_epoch
        trust = base.reliability(soft.adv, batch["label"], _RELIABILITY, active)
        own = jnp.mean((1 - trust) * losses.trades_kl(z.nat, z.adv))
        return distill + own, {"loss_distill": distill, "loss_own": own}

    def merge(before: Any, after: tuple, epoch: jax.Array):
        return batch_statistics.select(epoch >= config.begin_epoch, after[1], after[0])

    views = {"rslad": ("nat",), "iad": ("nat", "adv")}
    return _seen_once_more(
        parts,
        base.from_loss(
            parts, loss, passes=("adv", "nat") if iad else ("adv",),
            teacher_at=views.get(config.objective, ("adv",)), merge_stats=merge if iad else None,
            igdm=_IGDM,
        ),
    )  # fmt: skip


def make_at(config: Icml26AtConfig, parts: base.Parts) -> base.Method:
    """L = mean_B CE(S(x'), y) (`pgd`), or mean_B [ CE(S(x), y) + beta KL(p_S(x) || p_S(x')) ] (`trades`).

    The target p_S(x) of `trades` is detached, unlike TRADES' own: see `methods.trades`. Attack: `sat_train`
    or `icml26_trades_train`. Train-mode passes S(x'), or S(x), S(x'); then as `make`, also the schedule.
    """
    trades = config.objective == "trades"

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        ce = jnp.mean(losses.cross_entropy(z.nat if trades else z.adv, batch["label"]))
        if not trades:
            return ce, {}
        kl = jnp.mean(losses.trades_kl(jax.lax.stop_gradient(z.nat), z.adv))
        return ce + config.beta * kl, {"loss_ce": ce, "loss_kl": kl}

    passes = ("nat", "adv") if trades else ("adv",)
    return _seen_once_more(parts, base.from_loss(parts, loss, passes=passes))


def _seen_once_more(parts: base.Parts, method: base.Method) -> base.Method:
    """The method, with a train-mode pass at x after every update."""

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        state, metrics = method.step(state, batch, key)
        z, stats = parts.student.apply(state.student.variables, batch["image"], True)
        student = state.student.replace(batch_stats=stats)
        return state.replace(student=student), metrics | base.accuracies(batch["label"], z)

    return dataclasses.replace(method, step=step)


def _refuses(config: Any, attack: Any) -> str:
    wanted = _LOSSES.get(config.objective, "cross_entropy")
    if getattr(attack, "loss", "") == wanted:
        return ""
    return f"is not that of objective={config.objective!r}: use {_ATTACKS[config.objective]!r}"


REGISTRATION = (
    base.Registration(
        "icml26",
        Icml26Config,
        make,
        ("robust",),
        "sat_train",
        refuses=_refuses,
        igdm=_IGDM,
        needs_labels=lambda _: "attacks by the class",
    ),
    base.Registration(
        "icml26_at",
        Icml26AtConfig,
        make_at,
        attack="sat_train",
        refuses=_refuses,
        needs_labels=lambda _: "learns from the class, as its code does",
    ),
)
