"""The run of version 0.1.0 that the tests of this folder read."""

import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of one's own with the run, its teachers and an imported network."""
    folder = tmp_path_factory.mktemp("saved")
    with zipfile.ZipFile(Path(__file__).with_name("run_0_1_0.zip")) as archive:
        archive.extractall(folder)
    return folder
