"""Natural training: cross-entropy on clean images. The recipe of clean teachers, and a baseline."""

import jax.numpy as jnp

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import Options


class NaturalConfig(Options):
    """Natural training has no options of its own."""


def make(config: NaturalConfig, parts: base.Parts) -> base.Method:
    """L = mean_B CE(S(x), y). No attack; one train-mode forward pass and one statistics update a step."""

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        return jnp.mean(losses.cross_entropy(z.nat, base.targets(batch))), {}

    return base.from_loss(parts, loss, passes=("nat",))


REGISTRATION = base.Registration(
    "natural", NaturalConfig, make, attack="", cross_entropy=lambda _: True
)
