"""N-FGSM (de Jorge et al. 2022, NeurIPS, arXiv 2202.01181): one step from stronger noise, without a ball."""

import jax.numpy as jnp

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import Options


class NFgsmConfig(Options):
    """N-FGSM has no options beyond its attack."""


def make(config: NFgsmConfig, parts: base.Parts) -> base.Method:
    """L = mean_B CE(S(x'), y), with one forward and backward pass for x' and one for the update.

    Attack: start x + U(-k eps, k eps) clipped to [0,1], k = 2 (`config.attack.options.start_radius`), then
    one step of eps on CE, clipped to [0,1] but not to the ball: x' may be 3 eps away. So this attack trains
    and never evaluates. At large radii k = 2 hides the images: the digits' config (eps 0.2) has 1.
    BatchNorm as `fgsm_rs`: train mode throughout (`attack_bn="train"`, `attack_bn_stats="keep"`, which the
    configs set); the pass at the start and S(x'), in this order, two updates of the running statistics.
    Schedule: 30 epochs, `cyclic` to 0.2, weight decay 5e-4; its momentum goes from 0.9 to 0.8 and back, and
    the first update has rate 0. Source: pdejorge/N-FGSM, train.py.
    """

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        return jnp.mean(losses.cross_entropy(z.adv, base.targets(batch))), {}

    return base.from_loss(parts, loss, passes=("adv",))


REGISTRATION = base.Registration(
    "n_fgsm", NFgsmConfig, make, attack="n_fgsm_train", cross_entropy=lambda _: True
)
