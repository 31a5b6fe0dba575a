"""Losses: pure functions, one value per example; the caller reduces over the batch."""

from ard_jax.losses.consistency import jensen_shannon
from ard_jax.losses.decoupled import soft_cross_entropy, weighted_mse
from ard_jax.losses.dice import DICE_FORMS, DICE_KINDS, dice_loss, dpgd_objective, soft_dice
from ard_jax.losses.distill import (
    as_logits,
    balance_temperatures,
    balance_weights,
    corrected_logits,
    cross_entropy,
    kl_divergence,
    negative_entropy,
    reduce_kl,
    softened_kl,
)
from ard_jax.losses.margin import cw_margin, dlr, probability_margin, targeted_dlr
from ard_jax.losses.push import (
    bounded_push,
    continuous_scale,
    decade_scale,
    masked_class_mean,
    push_loss,
)
from ard_jax.losses.robust import (
    boosted_cross_entropy,
    label_squared_error,
    mart_kl,
    squared_error,
    trades_kl,
)

__all__ = [
    "DICE_FORMS",
    "DICE_KINDS",
    "as_logits",
    "balance_temperatures",
    "balance_weights",
    "boosted_cross_entropy",
    "bounded_push",
    "continuous_scale",
    "corrected_logits",
    "cross_entropy",
    "cw_margin",
    "decade_scale",
    "dice_loss",
    "dlr",
    "dpgd_objective",
    "jensen_shannon",
    "kl_divergence",
    "label_squared_error",
    "mart_kl",
    "masked_class_mean",
    "negative_entropy",
    "probability_margin",
    "push_loss",
    "reduce_kl",
    "soft_cross_entropy",
    "soft_dice",
    "softened_kl",
    "squared_error",
    "targeted_dlr",
    "trades_kl",
    "weighted_mse",
]
