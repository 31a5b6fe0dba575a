"""Named random streams: key = fold_in(fold_in(root, crc32(name)), step). Nothing random is stored.

A run has one constant root key. Every use of randomness has a name, so that adding a stream never
shifts another one, and resuming needs nothing but the step.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp


def stream(root_key: jax.Array, name: str, step: int | jax.Array | None = None) -> jax.Array:
    """The key of one named stream, at one step of it.

    Args:
      root_key: a typed scalar PRNG key, `jax.random.key(seed)`.
      name: the stream's name, for example "augment". Hashed by `zlib.crc32`, which (unlike `hash`)
        is the same in every process.
      step: an integer in [0, 2**32), possibly traced; None for a stream that is used only once.

    Returns:
      A typed scalar key, the same on every host and device for the same arguments.

    Raises:
      ValueError: `root_key` is not a typed key.
    """
    if not jnp.issubdtype(getattr(root_key, "dtype", float), jax.dtypes.prng_key):
        raise ValueError(
            f"root_key must be a typed key, made by jax.random.key(seed); got {root_key!r}"
        )
    key = jax.random.fold_in(root_key, zlib.crc32(name.encode()))
    return key if step is None else jax.random.fold_in(key, step)


def of_rows(key: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns one key for each row number, [B]; [B] keys are returned as they are."""
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def fold_in(key: jax.Array, number: int | jax.Array) -> jax.Array:
    """`jax.random.fold_in` of one key, or of the keys [B] of several images."""
    fold = jax.random.fold_in
    return jax.vmap(fold, (0, None))(key, number) if key.ndim else fold(key, number)


def draw(
    sampler: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    key: jax.Array,
    shape: tuple[int, ...],
) -> jax.Array:
    """Random numbers [B,...] of `shape` from one key for all of it, or from keys [B], one for each row."""
    return jax.vmap(lambda k: sampler(k, shape[1:]))(key) if key.ndim else sampler(key, shape)
