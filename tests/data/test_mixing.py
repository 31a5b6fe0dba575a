"""Mixup and CutMix: labels in proportion to the images, whatever the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ard_jax.data import mixing
from ard_jax.runtime import sharding

COUNT, SIZE = 8, 10
LABELS = jax.nn.one_hot(jnp.arange(COUNT), COUNT)
# Each of one grey level, which tells where a pixel comes from.
GREY = jnp.arange(1, COUNT + 1, dtype=jnp.float32)[:, None, None, None] / 10
IMAGES = jnp.broadcast_to(GREY, (COUNT, SIZE, SIZE, 1))


mix = jax.jit(mixing.mix, static_argnames=("mixup", "cutmix", "probability"))


def mixed(seed, **options):
    return map(np.asarray, mix(jax.random.key(seed), IMAGES, LABELS, **options))


@pytest.mark.multidevice
def test_mixing_is_one_of_no_device_count():
    given = jax.random.uniform(jax.random.key(1), (8, 6, 6, 1))
    split = jax.device_put((given, LABELS), sharding.split_batch(sharding.make_mesh(4)))
    one, other = (
        mix(jax.random.key(0), *both, mixup=0.8, cutmix=1) for both in ((given, LABELS), split)
    )
    assert (np.asarray(one[1]) == np.asarray(other[1])).all()
    np.testing.assert_allclose(one[0], other[0], atol=1e-7)


def test_cutmix_labels_count_pixels():
    """The share of an image that comes from each of the two is the share of its label."""
    shares = []
    for seed in range(5):
        images, soft = mixed(seed, cutmix=1)
        for i in range(COUNT):
            found = np.bincount(np.round(images[i] * 10).astype(int).ravel() - 1, minlength=COUNT)
            np.testing.assert_allclose(soft[i], found / SIZE**2, atol=1e-6)
            rectangle = np.round(images[i, ..., 0] * 10).astype(int) != i + 1
            assert rectangle.sum() == rectangle.any(1).sum() * rectangle.any(0).sum()
            shares.append(rectangle.mean())
    assert min(shares) < 0.1 and max(shares) > 0.5


@pytest.mark.parametrize("alpha", [0.8, 1])
def test_mixup_is_one_weighted_mean_of_images_and_labels(alpha):
    kept = []
    for seed in range(40):
        images, soft = mixed(seed, mixup=alpha)
        np.testing.assert_allclose(
            images[:, 0, 0, 0], soft @ np.asarray(GREY)[:, 0, 0, 0], atol=1e-6
        )
        assert np.ptp(images, axis=(1, 2)).max() == 0 and images.max() <= 1
        alone = np.sort(soft, axis=1)[:, -2] == 0  # mixed with itself
        kept += np.diagonal(soft)[~alone].tolist()
    assert stats.kstest(kept, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_with_both_each_image_gets_one_of_them_with_the_probability():
    cut, unmixed = 0, 0
    for seed in range(40):
        images, soft = mixed(seed, mixup=1, cutmix=1, probability=0.5)
        whole = np.diagonal(soft) == 1
        np.testing.assert_allclose(images[whole], np.asarray(IMAGES)[whole], atol=1e-6)
        unmixed += whole.sum()
        several = np.ptp(images, axis=(1, 2))[:, 0] > 0
        cut += several.sum()
        own = np.mean(np.isclose(images, IMAGES)[..., 0], axis=(1, 2))
        np.testing.assert_allclose(np.diagonal(soft)[several], own[several], atol=1e-6)
    # Of 320 images half are mixed, an eighth of these with themselves, and a window may be empty.
    assert 140 < unmixed < 220 and 40 < cut < 95


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "mixup=0 and cutmix=0: give an alpha"),
        ({"mixup": -1}, "mixup=-1: must be a finite number >= 0"),
        ({"cutmix": 1, "probability": 2}, "probability=2: must be a finite number in"),
    ],
)
def test_bad_numbers_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        mixing.mix(jax.random.key(0), IMAGES, LABELS, **options)
