"""BatchNorm's running statistics where a code runs equal passes several times."""

from typing import Any

import jax
import jax.numpy as jnp

from ard_jax.models.bundle import ModelBundle

_KEPT = 0.9  # share of the old running value in every update, m


def of_batch(bundle: ModelBundle, variables: Any, images: jax.Array) -> Any:
    """Mean and unbiased variance of a batch of images [B,H,W,C] in every layer, a tree like "batch_stats".

    By a train-mode pass whose running statistics begin at 0, so that they become (1 - m) b.
    """
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    after = bundle.apply({"params": variables["params"], "batch_stats": zeros}, images, True)[1]
    return jax.tree.map(lambda r: r / (1 - _KEPT), after)


def repeat(before: Any, after_first: Any, current: Any) -> Any:
    """Applies the first pass's running-statistics update once more, to `current`.

    With r' = m r + (1 - m) b, the batch's contribution is (1 - m) b = r' - m r.
    """
    return jax.tree.map(
        lambda r, first, now: _KEPT * now + (first - _KEPT * r), before, after_first, current
    )


def select(active: jax.Array, first: Any, second: Any) -> Any:
    """`first` where the scalar `active`, otherwise `second`; trees of equal structure."""
    return jax.tree.map(lambda a, b: jnp.where(active, a, b), first, second)
