"""SGD as the papers use it, with learning rates that change once per epoch.

Every paper's code here sets the learning rate per epoch and uses torch's SGD: weight decay is added
to the gradient before the momentum, on all parameters including biases and BatchNorm. The rate is
an argument of the update rather than part of the optimiser's state, so that a resumed run needs
only its step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "multistep", "cosine", "ciard")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """SGD and its schedule.

    Attributes:
      lr: base learning rate.
      momentum: momentum, 0 for none.
      nesterov: Nesterov momentum.
      weight_decay: coupled L2 on all parameters.
      schedule: "constant"; "multistep" (times `decay` from each epoch of `boundaries` on);
        "cosine" (from lr to 0 over the run, after `warmup` epochs of linear increase); "ciard"
        (`start_lr` before epoch `start`, then a cosine to 0 times exp(-0.01 progress^2)).
      boundaries: first epochs (counted from 1) at each lower rate, for "multistep".
      decay: factor of "multistep".
      warmup: epochs of linear warm-up, for "cosine".
      start: epoch at which the "ciard" cosine begins.
      idle_before_start: for "ciard", rate 0 before `start` (robust teacher) instead of `lr` (student).
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 2e-4
    schedule: str = "constant"
    boundaries: tuple[int, ...] = ()
    decay: float = 0.1
    warmup: int = 0
    start: int = 150
    idle_before_start: bool = False

    def problems(self, where: str) -> list[str]:
        """What is wrong with these values, as sentences that begin with `where`."""
        found = []
        if self.schedule not in SCHEDULES:
            found.append(
                f"{where}.schedule={self.schedule!r}: choose one of {', '.join(SCHEDULES)}"
            )
        if not self.lr > 0:
            found.append(f"{where}.lr={self.lr}: must be positive")
        if not 0 <= self.momentum < 1:
            found.append(f"{where}.momentum={self.momentum}: must be in [0, 1)")
        if self.weight_decay < 0:
            found.append(f"{where}.weight_decay={self.weight_decay}: must not be negative")
        if self.nesterov and self.momentum == 0:
            found.append(f"{where}.nesterov=True needs momentum > 0")
        return found


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Pure functions: `init(params)`, `update(grads, opt_state, params, lr)`, `lr(epoch)`."""

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any, jax.Array], tuple[Any, Any]]
    lr: Callable[[jax.Array], jax.Array]


def learning_rate(config: OptimConfig, epochs: int, epoch: jax.Array) -> jax.Array:
    """Rate during `epoch` (int, counted from 1; may be traced). Returns a float32 scalar.

    Source of "ciard": eminentgu/CIARD, CIARD.py: student
    0.1 (0.5 + 0.5 cos(pi (e-150)/150)) exp(-0.01 (e-150)^2/150^2) from e = 150 of 300 epochs; the
    robust teacher the same from e = 50 with base 1e-4, and 0 before.
    """
    e = jnp.asarray(epoch, jnp.float32)
    if config.schedule == "constant":
        return jnp.full((), config.lr, jnp.float32)
    if config.schedule == "multistep":
        passed = sum((e >= b).astype(jnp.float32) for b in config.boundaries)
        return jnp.asarray(config.lr * config.decay**passed, jnp.float32)
    if config.schedule == "cosine":
        progress = (e - 1) / epochs
        rate = config.lr * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return rate * jnp.minimum(e / max(config.warmup, 1), 1.0) if config.warmup else rate
    progress = (e - config.start) / max(epochs - config.start, 1)
    rate = config.lr * (0.5 + 0.5 * jnp.cos(jnp.pi * progress)) * jnp.exp(-0.01 * progress**2)
    before = 0.0 if config.idle_before_start else config.lr
    return jnp.where(e < config.start, before, rate)


def make(config: OptimConfig, epochs: int) -> Optimizer:
    """The optimiser of `config` for a run of `epochs` epochs."""
    parts = [optax.add_decayed_weights(config.weight_decay)] if config.weight_decay else []
    if config.momentum:
        parts.append(optax.trace(decay=config.momentum, nesterov=config.nesterov))
    transform = optax.chain(*parts)

    def update(grads, opt_state, params, lr):
        updates, opt_state = transform.update(grads, opt_state, params)
        return jax.tree.map(lambda p, u: p - lr * u, params, updates), opt_state

    return Optimizer(transform.init, update, lambda epoch: learning_rate(config, epochs, epoch))
