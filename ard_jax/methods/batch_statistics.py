"""BatchNorm's running statistics where a code runs equal passes several times."""

from typing import Any

import jax
import jax.numpy as jnp


def repeat(before: Any, after_first: Any, current: Any) -> Any:
    """Applies the first pass's running-statistics update once more, to `current`.

    With r' = m r + (1 - m) b, the batch's contribution is (1 - m) b = r' - m r, and m = 0.9.
    """
    return jax.tree.map(
        lambda r, first, now: 0.9 * now + (first - 0.9 * r), before, after_first, current
    )


def select(active: jax.Array, first: Any, second: Any) -> Any:
    """`first` where the scalar `active`, otherwise `second`; trees of equal structure."""
    return jax.tree.map(lambda a, b: jnp.where(active, a, b), first, second)
