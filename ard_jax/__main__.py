"""`python -m ard_jax`: the same as `python -m ard_jax.main`."""

from ard_jax.main import console

console()
