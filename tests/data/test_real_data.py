"""The real data sets, where they are at hand."""

import numpy as np
import pytest

from ard_jax import data

pytestmark = pytest.mark.data


@pytest.mark.slow  # decodes 60,000 images
def test_cifar10(shared_data):
    splits = data.load("cifar10", shared_data / "tfds", holdout=1000)
    both = np.concatenate([splits.train.images, splits.validation.images])
    assert both.shape == (50000, 32, 32, 3) and splits.test.images.shape == (10000, 32, 32, 3)
    # Exact: from counts of the 256 values, as a mean over float32 would round.
    counts = np.stack([np.bincount(both[..., c].ravel(), minlength=256) for c in range(3)])
    values = np.arange(256) / 255
    mean = counts @ values / counts[0].sum()
    std = np.sqrt(counts @ values**2 / counts[0].sum() - mean**2)
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)
    np.testing.assert_allclose(std, [0.2470, 0.2435, 0.2616], atol=5e-5)
    assert np.bincount(splits.train.labels).tolist() == [4900] * 10
    assert np.bincount(splits.validation.labels).tolist() == [100] * 10
    assert np.bincount(splits.test.labels).tolist() == [1000] * 10
    # The first images of the official archive's data_batch_1 and test_batch.
    assert splits.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert splits.train.class_names[:3] == ("airplane", "automobile", "bird")


@pytest.mark.slow
def test_cifar100_has_fine_labels(shared_data):
    splits = data.load("cifar100", shared_data / "tfds")
    assert np.bincount(splits.train.labels).tolist() == [40] * 100
    assert np.bincount(splits.test.labels).tolist() == [10] * 100
    assert splits.train.class_names[:2] == ("apple", "aquarium_fish")


def test_tiny_imagenet(shared_data):
    splits = data.load("tiny_imagenet", shared_data / "tiny-imagenet-200")
    assert splits.train.images.shape == (1600, 64, 64, 3)
    assert splits.test.images.shape == (400, 64, 64, 3)
    assert np.bincount(splits.train.labels).tolist() == [8] * 200
    assert np.bincount(splits.test.labels).tolist() == [2] * 200
    assert splits.train.class_names[0] == "goldfish"
    assert len(set(splits.train.class_names)) == 200
