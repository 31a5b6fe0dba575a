"""Parity is shown for the programs that users run: fully optimised ones."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def optimised_programs():
    """Compiles as outside the tests; what other tests compiled is not reused."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
