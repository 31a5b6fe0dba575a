"""AWP: adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884), for any method's student.

After the adversarial images are made, the weights are moved uphill, w + gamma v, the gradient is taken
there, the optimiser steps, and the move is undone. For every tensor of two or more dimensions
v = ||w|| / (||g|| + 1e-20) g, with g the gradient of the method's own loss.

Source: csdongxian/AWP. There the direction is one SGD step of a copy of the network; its learning rate
cancels in v. As there, weight decay acts on the perturbed weights, and the running statistics are those
of the pass at the perturbed weights (the copy's are thrown away). The code uses cross-entropy or the
TRADES loss for the direction; for every other method its own loss is the natural continuation.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ard_jax.losses import checks


@dataclasses.dataclass(frozen=True)
class Awp:
    """Size and start of the perturbation.

    Attributes:
      gamma: size of the move relative to the weights; 0.01 (adversarial training) or 0.005 (TRADES).
      start: first epoch, from 1, with a perturbation.

    Raises:
      ValueError: on construction, for a value out of its range.
    """

    gamma: float
    start: int = 1

    def __post_init__(self):
        """Raises ValueError for a value out of its range."""
        checks.number(self.gamma, "gamma of AWP", 0.0, 1.0)
        checks.count(self.start, "start of AWP", 1)


def offset(config: Awp, params: Any, grads: Any, epoch: jax.Array) -> Any:
    """Returns gamma v, a tree like `params`; zero for vectors, and everywhere before `config.start`."""
    gamma = jnp.where(jnp.asarray(epoch) >= config.start, config.gamma, 0.0)

    def move(w: jax.Array, g: jax.Array):
        if w.ndim < 2:
            return jnp.zeros_like(w)
        return gamma * jnp.linalg.norm(w.ravel()) / (jnp.linalg.norm(g.ravel()) + 1e-20) * g

    return jax.tree.map(move, params, grads)
