"""Which examples a limit chooses."""

import numpy as np
import pytest

from ard_jax.data import base


@pytest.mark.parametrize(
    ("labels", "chosen"),
    [
        ([1, 0, 1, 0, 2, 2], [0, 1, 2]),
        ([0, 0, 0, 1, 1, 2], [0, 2, 4]),  # in the order of the classes
        ([0, 0, 0, 0, 0, 0], [0, 1, 2]),
    ],
)
def test_the_first_or_evenly_spaced_ones(labels, chosen):
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    data = base.ArrayDataset(images, np.array(labels, np.int32), ("a", "b", "c"), "six", "test")
    assert base.first(data, 3).images.ravel().tolist() == chosen
    assert base.first(data, 0) is data and base.first(data, 6) is data
