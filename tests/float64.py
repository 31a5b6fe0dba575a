"""Our own code in float64: what it computes without rounding, the same on every processor."""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp


@contextlib.contextmanager
def in_float64():
    """ard_jax computes in float64, also where it names float32."""
    with jax.enable_x64(True), mock.patch.object(jnp, "float32", jnp.float64):
        yield
