"""FGSM-RS (Wong et al. 2020, arXiv 2001.03994): adversarial training with one step from a random start."""

import jax.numpy as jnp

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import Options


class FgsmRsConfig(Options):
    """FGSM-RS has no options beyond its attack."""


def make(config: FgsmRsConfig, parts: base.Parts) -> base.Method:
    """L = mean_B CE(S(x'), y), with one forward and backward pass for x' and one for the update.

    Attack: start x + U(-eps, eps) clipped to [0,1], one step of 1.25 eps on CE, cut to the ball and to [0,1].
    BatchNorm: the code never leaves train mode, that is `attack_bn="train"`, `attack_bn_stats="keep"`, which
    the configs set: the pass at the start and S(x'), in this order, two updates of the running statistics.
    Schedule: 15 epochs, `cyclic` to 0.2, weight decay 5e-4; its momentum goes from 0.9 to 0.8 and back, and
    the first update has rate 0. Source: locuslab/fast_adversarial, train_fgsm.py. There inputs are normalised
    and eps and step divided by the same numbers, which is this attack; half precision is
    `config.precision`. Its stop when the training accuracy under PGD falls is not offered: read the
    robust accuracy of every epoch, which drops to 0 where one step no longer suffices (catastrophic
    overfitting).
    """

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        return jnp.mean(losses.cross_entropy(z.adv, base.targets(batch))), {}

    return base.from_loss(parts, loss, passes=("adv",))


REGISTRATION = base.Registration(
    "fgsm_rs", FgsmRsConfig, make, attack="fgsm_rs_train", cross_entropy=lambda _: True
)
