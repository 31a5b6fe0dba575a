"""SCORE (Pang et al. 2022, ICML, arXiv 2202.10103): TRADES with squared errors of probabilities."""

import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import BelowOne, NotNegative, Options


class ScoreConfig(Options):
    """Options of SCORE."""

    beta: NotNegative = Field(
        4.0,
        description="Weight of the robust term; 4 in the paper's recipe, 3 in the published checkpoints.",
    )
    label_smoothing: BelowOne = Field(
        0.0,
        description=(
            "Probability mass taken from the label and shared evenly by the other classes; 0 in the "
            "published runs."
        ),
    )


def make(config: ScoreConfig, parts: base.Parts) -> base.Method:
    """L = mean_B |p(x) - y~|^2 + beta mean_B |p(x') - p(x)|^2, gradient through both p(x).

    y~ gives the label 1 - s and every other class s/(C-1), s = label_smoothing.
    Attack: PGD on |p(x') - p(x)|^2, p(x) constant, start x + U(-eps, eps) clipped, step eps/4, 10
    steps. BatchNorm: attack and its p(x) in train mode with tracking switched off, that is
    `attack_bn="train"`, `attack_bn_stats="discard"`, which the configs set; then the train-mode passes
    S(x), S(x'), in this order: two updates of the running statistics.
    Schedule with generated data: 400 epochs, batch 512, rate 0.2, weight averaging; without: 110 epochs,
    rate 0.05, times 0.1 after 100 and after 105, weight decay 5e-4. Source: P2333/SCORE,
    gowal21uncovering/utils/trades.py. Its other script, without_DDPM/train_cifar.py, attacks in eval mode
    from x + 0.001 N(0, I), runs S(x') before S(x), and cuts each example's loss at a threshold
    from below; that cut is not offered here.
    """

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        classes = z.nat.shape[-1]
        uniform_share = config.label_smoothing * classes / (classes - 1)
        clean = jnp.mean(losses.label_squared_error(z.nat, batch["label"], uniform_share))
        robust = jnp.mean(losses.squared_error(z.adv, z.nat))
        return clean + config.beta * robust, {"loss_clean": clean, "loss_robust": robust}

    return base.from_loss(parts, loss, passes=("nat", "adv"))


REGISTRATION = base.Registration(
    "score",
    ScoreConfig,
    make,
    attack="score_train",
    needs_labels=lambda _: "has its own smoothed labels, method.label_smoothing",
)
