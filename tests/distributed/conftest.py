"""One folder for the compiled programs of all processes of a test session."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """$ARD_CACHE_DIR of the processes that these tests start; one that is set already stays."""
    if "ARD_CACHE_DIR" in os.environ:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARD_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
