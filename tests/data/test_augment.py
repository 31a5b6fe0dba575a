import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax.data import augment as aug
from ard_jax.runtime import sharding

EVERY_VALUE = np.arange(256, dtype=np.uint8)
JITTED = jax.jit(aug.augment, static_argnames=("kind", "pad"))


@pytest.fixture(scope="module")
def images():
    # No zeros inside, so that the padding is told from the image.
    return np.random.default_rng(0).integers(1, 256, (64, 12, 10, 3), np.uint8)


def test_conversion_is_exact_for_every_value():
    want = EVERY_VALUE.astype(np.float32) / np.float32(255)
    for convert in (aug.to_float, jax.jit(aug.to_float)):
        got = np.asarray(convert(EVERY_VALUE))
        assert got.dtype == np.float32 and (got == want).all()
    got = aug.augment(jax.random.key(0), EVERY_VALUE.reshape(1, 16, 16, 1), kind="none")
    assert (np.asarray(got).ravel() == want).all()


def reference_crops(image, pad):
    """All crops of one image, plain: (top, left) -> crop."""
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    h, w, _ = image.shape
    return {
        (i, j): padded[i : i + h, j : j + w] for i in range(2 * pad + 1) for j in range(2 * pad + 1)
    }


@pytest.mark.parametrize(("kind", "pad"), [("crop", 1), ("crop_flip", 0), ("crop_flip", 4)])
def test_each_result_is_a_crop_of_its_own_image(images, kind, pad):
    out = np.asarray(JITTED(jax.random.key(1), images, kind=kind, pad=pad))
    assert out.shape == images.shape and out.dtype == np.float32
    places, flips = set(), set()
    for image, got in zip(images, np.round(out * 255).astype(np.uint8), strict=True):
        found = [
            (place, flip)
            for place, crop in reference_crops(image, pad).items()
            for flip in (False, True)
            if ((crop[:, ::-1] if flip else crop) == got).all()
        ]
        assert len(found) == 1
        places.add(found[0][0])
        flips.add(found[0][1])
    assert flips == ({False, True} if kind == "crop_flip" else {False})
    assert len(places) >= min(25, (2 * pad + 1) ** 2)


def test_frequencies():
    """Offsets are uniform and flips are fair: 4,000 images, five standard deviations."""
    ramp = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
    n = 4000
    out = np.asarray(JITTED(jax.random.key(0), np.repeat(ramp, n, 0), pad=1)) * 255
    out = np.round(out).astype(int).reshape(n, 9)
    patterns, counts = np.unique(out, axis=0, return_counts=True)
    assert len(patterns) == 18
    assert np.abs(counts - n / 18).max() < 5 * np.sqrt(n / 18)


@pytest.mark.multidevice
def test_the_key_decides_also_inside_jit_and_on_several_devices(images):
    want, other = (np.asarray(JITTED(jax.random.key(k), images)) for k in (0, 1))
    assert (want != other).any()
    split = jax.device_put(images, sharding.split_batch(sharding.make_mesh(4)))
    for augment, batch in ((aug.augment, images), (JITTED, split)):
        assert (np.asarray(augment(jax.random.key(0), batch)) == want).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kind="flip"), "'flip' is unknown; choose one of none, crop_flip, crop"),
        (dict(pad=-1), "pad=-1"),
        (dict(images=jnp.zeros((2, 4, 4, 3))), "images are float32"),
        (dict(images=jnp.zeros((4, 4, 3), jnp.uint8)), r"shape \(4, 4, 3\)"),
    ],
)
def test_bad_input(images, change, message):
    with pytest.raises(ValueError, match=message):
        aug.augment(jax.random.key(0), **({"images": images} | change))
