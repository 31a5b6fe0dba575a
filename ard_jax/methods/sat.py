"""SAT: PGD adversarial training (Madry et al. 2018, arXiv 1706.06083)."""

import jax.numpy as jnp

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import Options


class SatConfig(Options):
    """PGD adversarial training has no options beyond its attack."""


def make(config: SatConfig, parts: base.Parts) -> base.Method:
    """L = mean_B CE(S(x'), y), x' from the configured attack on CE.

    BatchNorm: the attack reads running statistics (eval mode) and changes none; then one train-mode
    forward pass on x' updates them once. The original TensorFlow code attacks in train mode
    (attack.bn="train"); its maintainers report little difference.
    Schedule (Rice et al. 2020): 200 epochs, rate 0.1, times 0.1 at 50 % and 75 %, weight decay 5e-4.
    """

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        return jnp.mean(losses.cross_entropy(z.adv, base.targets(batch))), {}

    return base.from_loss(parts, loss, passes=("adv",))


REGISTRATION = base.Registration("sat", SatConfig, make, cross_entropy=lambda _: True)
