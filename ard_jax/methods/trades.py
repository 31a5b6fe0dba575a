"""TRADES (Zhang et al. 2019, arXiv 1901.08573): accuracy and robustness traded by a KL term."""

import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base, batch_statistics
from ard_jax.methods.options import NotNegative, Options


class TradesConfig(Options):
    """Options of TRADES."""

    beta: NotNegative = Field(
        6.0, description="Weight of the KL term; the authors' CIFAR-10 script uses 6."
    )


def make(config: TradesConfig, parts: base.Parts) -> base.Method:
    """L = mean_B [ CE(S(x), y) + beta KL(p(x) || p(x')) ]; the target p(x) is NOT detached.

    Attack: PGD on KL(p(x) || p(x')), start x + 0.001 N(0, I), eval mode. BatchNorm as in
    yaodongyu/TRADES, trades.py: the attack changes nothing; then the train-mode passes S(x), S(x'),
    S(x) each update the running statistics (the second clean pass serves the KL). In
    train mode both clean passes give the same logits, so their forward pass is computed once here and
    its statistics update is applied twice; the numbers are those of three passes.
    Schedule: 76 epochs, rate 0.1, times 0.1 at 75, weight decay 2e-4.
    """

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        ce = jnp.mean(losses.cross_entropy(z.nat, base.targets(batch)))
        kl = jnp.mean(losses.trades_kl(z.nat, z.adv))
        return ce + config.beta * kl, {"loss_ce": ce, "loss_kl": kl}

    return base.from_loss(
        parts, loss, passes=("nat", "adv"),
        merge_stats=lambda before, after, _: batch_statistics.repeat(before, *after),
    )  # fmt: skip


REGISTRATION = base.Registration(
    "trades", TradesConfig, make, attack="trades_train", cross_entropy=lambda _: True
)
