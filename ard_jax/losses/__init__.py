"""Losses: pure functions, one value per example; the caller reduces over the batch."""

from ard_jax.losses.distill import (
    balance_temperatures,
    balance_weights,
    cross_entropy,
    kl_divergence,
    negative_entropy,
    reduce_kl,
)
from ard_jax.losses.margin import cw_margin, dlr, targeted_dlr
from ard_jax.losses.push import (
    bounded_push,
    continuous_scale,
    decade_scale,
    masked_class_mean,
    push_loss,
)
from ard_jax.losses.robust import trades_kl

__all__ = [
    "balance_temperatures",
    "balance_weights",
    "bounded_push",
    "continuous_scale",
    "cross_entropy",
    "cw_margin",
    "decade_scale",
    "dlr",
    "kl_divergence",
    "masked_class_mean",
    "negative_entropy",
    "push_loss",
    "reduce_kl",
    "targeted_dlr",
    "trades_kl",
]
