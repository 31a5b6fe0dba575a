"""What methods with class weights or class temperatures share: sums per class, the end of an epoch."""

import jax
import jax.numpy as jnp

from ard_jax.methods import base


def class_sums(values: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Sum of `values` [B] over the examples of each class; float32 [K], 0 for classes not in the batch.

    A masked sum rather than a scatter: the order of additions is fixed on every backend.
    """
    return jnp.sum(jax.nn.one_hot(labels, num_classes) * values[:, None], axis=0)


def epoch_ends(parts: base.Parts, step: jax.Array) -> jax.Array:
    """Whether the update that follows `step` finished ones is the last of its epoch; bool scalar."""
    return (step + 1) % parts.steps_per_epoch == 0


def check_epoch_length(name: str, parts: base.Parts) -> None:
    """Raises ValueError when the length of an epoch is not known."""
    if parts.steps_per_epoch < 1:
        raise ValueError(
            f"method {name!r} changes something once per epoch: "
            f"Parts.steps_per_epoch={parts.steps_per_epoch} must be at least 1"
        )
