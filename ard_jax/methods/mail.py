"""MAIL (Wang et al. 2021, NeurIPS, arXiv 2106.07904): examples near or beyond the boundary count more.

The weight of an example comes from its probability margin m = max_{c != y} p_c(x') - p_y(x'):

    w~ = sigmoid(slope (m + bias)),   w = w~ / mean_B w~ ("paper") or 3 w~ ("released"),   w = 1 at first

p(x') is that of the train-mode pass of the loss; w is a constant. Schedule of the authors' script for every
form, as MART's: 120 epochs, rate 0.01, times 0.1, 0.01, 0.001 from epochs 75, 90, 100, weight decay 3.5e-3,
eps 0.031, step 0.007. Source: QizhouWang/MAIL, which has ten classes built in.
"""

import functools
from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import AtLeastOne, NotNegative, Options, Positive, Variant

Bias = Annotated[float, Field(ge=-10, le=10)]
_BIAS = "Added to the margin, which is from -1 (certain and right) to 1 (certain and wrong)."


class MailConfig(Options):
    """Options of MAIL-AT."""

    variant: Variant = Field(
        "paper",
        description=(
            "`paper`: the weights of a batch have mean 1. `released`: three times the sigmoid, so that the "
            "size of the step changes with the margins."
        ),
    )
    slope: Positive = Field(10.0, description="How sharply the weight rises with the margin.")
    bias: Bias = Field(-0.5, description=_BIAS)
    begin_epoch: AtLeastOne = Field(
        77,
        description=(
            "First epoch, from 1, with weights (the code counts from 0 and leaves out those up to 75)."
        ),
    )


class MailTradesConfig(MailConfig):
    """Options of MAIL-TRADES."""

    slope: Positive = Field(2.0, description="How sharply the weight rises with the margin.")
    bias: Bias = Field(0.0, description=_BIAS)
    beta: NotNegative = Field(5.0, description="Weight of the KL term.")


class MailMartConfig(MailConfig):
    """Options of MAIL-MART."""

    slope: Positive = Field(
        1.0, description="How sharply the weight rises with the margin; the parser's default."
    )
    bias: Bias = Field(-1.5, description=f"{_BIAS} The parser's default.")
    beta: NotNegative = Field(5.0, description="Weight of the KL term, which has no weights.")


def example_weights(
    config: MailConfig, z_adv: jax.Array, labels: jax.Array, epoch: jax.Array
) -> jax.Array:
    """Weights of a batch, float32 [B], a constant: see the module's docstring.

    Args:
      config: slope, bias, variant, first epoch.
      z_adv: [B,K] float, logits at x'.
      labels: [B] int.
      epoch: int scalar, from 1.
    """
    margin = jax.lax.stop_gradient(losses.probability_margin(z_adv, labels))
    argument = config.slope * (margin + config.bias)
    if config.variant == "released":
        weights = 3.0 * jax.nn.sigmoid(argument)
    else:  # w~ / mean w~, also where every sigmoid is 0 in float32
        weights = labels.size * jax.nn.softmax(jax.nn.log_sigmoid(argument))
    return jnp.where(epoch >= config.begin_epoch, weights, 1.0)


def _weighted(config: MailConfig, z: base.Views, batch: base.Batch):
    weights = example_weights(config, z.adv, batch["label"], batch["epoch"])
    return weights, {"weight_mean": jnp.mean(weights), "weight_max": jnp.max(weights)}


def at_loss(config: MailConfig, z: base.Views, soft: base.Views, batch: base.Batch):
    """Returns (mean_B w CE(S(x'), y), metrics)."""
    weights, values = _weighted(config, z, batch)
    return jnp.mean(weights * losses.cross_entropy(z.adv, base.targets(batch))), values


def trades_loss(config: MailTradesConfig, z: base.Views, soft: base.Views, batch: base.Batch):
    """Returns (mean_B [CE(S(x), y) + beta w KL(p(x) || p(x'))], metrics)."""
    weights, values = _weighted(config, z, batch)
    ce = jnp.mean(losses.cross_entropy(z.nat, base.targets(batch)))
    kl = jnp.mean(weights * losses.trades_kl(z.nat, z.adv))
    return ce + config.beta * kl, values | {"loss_ce": ce, "loss_kl": kl}


def mart_loss(config: MailMartConfig, z: base.Views, soft: base.Views, batch: base.Batch):
    """Returns (mean_B [w BCE(S(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x))], metrics)."""
    weights, values = _weighted(config, z, batch)
    bce = jnp.mean(weights * losses.boosted_cross_entropy(z.adv, batch["label"]))
    kl = jnp.mean(losses.mart_kl(z.nat, z.adv, batch["label"]))
    return bce + config.beta * kl, values | {"loss_bce": bce, "loss_kl": kl}


def make(config: MailConfig, parts: base.Parts) -> base.Method:
    """MAIL-AT: L = mean_B w CE(S(x'), y).

    Attack: PGD on CE, start x + 0.001 N(0, I), eval mode, nothing updated. Then the train-mode pass S(x'):
    one update of the running statistics.
    """
    return base.from_loss(parts, functools.partial(at_loss, config), passes=("adv",))


def make_trades(config: MailTradesConfig, parts: base.Parts) -> base.Method:
    """MAIL-TRADES: L = mean_B [ CE(S(x), y) + beta w KL(p(x) || p(x')) ]; the target p(x) is NOT detached.

    Attack: PGD on KL(p(x) || p(x')), start x + 0.001 N(0, I), eval mode, nothing updated. Then the train-mode
    passes S(x), S(x'), in this order: two updates of the running statistics.
    """
    return base.from_loss(parts, functools.partial(trades_loss, config), passes=("nat", "adv"))


def make_mart(config: MailMartConfig, parts: base.Parts) -> base.Method:
    """MAIL-MART: L = mean_B [ w BCE(S(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)) ].

    BCE and the gradients through p(x) are those of MART. Attack and passes: PGD on CE, start
    x + 0.001 N(0, I), eval mode, nothing updated; then S(x), S(x') in train mode, two updates.
    """
    return base.from_loss(parts, functools.partial(mart_loss, config), passes=("nat", "adv"))


def _margin(config: MailConfig) -> str:
    return "weighs by the margin to the other classes"


REGISTRATION = (
    base.Registration(
        "mail",
        MailConfig,
        make,
        attack="mart_train",
        cross_entropy=lambda _: True,
        needs_labels=_margin,
    ),
    base.Registration(
        "mail_trades",
        MailTradesConfig,
        make_trades,
        attack="trades_train",
        cross_entropy=lambda _: True,
        needs_labels=_margin,
    ),
    base.Registration(
        "mail_mart", MailMartConfig, make_mart, attack="mart_train", needs_labels=_margin
    ),
)
