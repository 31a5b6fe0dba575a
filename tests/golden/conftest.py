"""Parity is shown for the programs that users run: fully optimised ones."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def as_users_compile(optimised_programs):
    """For every test of this folder."""
