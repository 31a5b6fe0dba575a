import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax.data import augment as aug
from ard_jax.runtime import sharding

EVERY_VALUE = np.arange(256, dtype=np.uint8)
JITTED = jax.jit(aug.augment, static_argnames=("kind", "pad", "flip"))


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
        (dict(kind="flip"), "'flip' is unknown; choose one of none, crop_flip, crop, "),
        (dict(pad=-1), "pad=-1"),
        (dict(images=jnp.zeros((2, 4, 4, 3))), "images are float32"),
        (dict(images=jnp.zeros((4, 4, 3), jnp.uint8)), r"shape \(4, 4, 3\)"),
    ],
)
def test_bad_input(images, change, message):
    with pytest.raises(ValueError, match=message):
        aug.augment(jax.random.key(0), **({"images": images} | change))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("cropshift", (8, 8, 1)), ("idbh_weak", (8, 8, 1)), ("idbh_strong", (12, 10, 3)),
     ("autoaugment", (12, 10, 3))],
)  # fmt: skip
def test_stronger_kinds_take_every_size_and_the_key_decides(kind, shape):
    given = np.random.default_rng(1).integers(1, 256, (6, *shape), np.uint8)
    one, again, other = (np.asarray(JITTED(jax.random.key(k), given, kind=kind)) for k in (0, 0, 1))
    assert one.shape == given.shape and one.dtype == np.float32
    assert (one == again).all() and (one != other).any()
    levels = one * 255
    assert (np.abs(levels - np.round(levels)) < 1e-3).all() and (0 <= one).all()


@pytest.mark.parametrize("flip", [False, True])
def test_cropshift_is_a_part_of_the_image_elsewhere_on_black(flip):
    size, count = 16, 400  # so that at most 5 pixels go
    rng = np.random.default_rng(0)
    given = rng.integers(1, 256, (count, size, size, 1), np.uint8)
    found = np.asarray(JITTED(jax.random.key(3), given, kind="cropshift", flip=flip)) * 255
    losses, mirrored = [], 0
    for image, ours in zip(given[..., 0], np.round(found[..., 0]).astype(int), strict=True):
        rows, columns = (np.flatnonzero(ours.any(axis)) for axis in (1, 0))
        part = ours[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (part > 0).all() and part.size == (ours > 0).sum()
        windows = np.lib.stride_tricks.sliding_window_view(image, part.shape)
        plain = (windows == part).all((2, 3)).any()
        windows = np.lib.stride_tricks.sliding_window_view(image[:, ::-1], part.shape)
        mirrored += not plain
        assert plain or (windows == part).all((2, 3)).any()
        losses.append((size - part.shape[0], size - part.shape[1]))
    assert (0 < mirrored < count) == flip
    totals = np.bincount([sum(lost) for lost in losses], minlength=6)
    # r is uniform in 0 ... 5, and so is its part along the columns in 0 ... r: five standard deviations.
    assert len(totals) == 6 and np.abs(totals - count / 6).max() < 5 * np.sqrt(count / 6)
    assert {lost for lost in losses if sum(lost) == 5} == {(5 - c, c) for c in range(6)}


@pytest.mark.parametrize(("kind", "probability"), [("idbh_weak", 0.5), ("idbh_strong", 1.0)])
def test_erased_rectangles(kind, probability):
    """As often as they should be, and of the sizes that torchvision's defaults allow."""
    count, size = 300, 20
    given = jnp.full((count, size, size, 1), 9, jnp.uint8)

    @jax.jit
    @jax.vmap
    def erase(key, image):
        return aug._erased(aug._Draws(key), image, aug._ERASED[kind])

    gone = np.asarray(erase(jax.random.split(jax.random.key(0), count), given))[..., 0] == 0
    assert abs(gone.any((1, 2)).mean() - probability) <= 5 * np.sqrt(0.25 / count) * (
        probability < 1
    )
    for one in gone[gone.any((1, 2))]:
        height, width = one.any(1).sum(), one.any(0).sum()
        assert one.sum() == height * width  # a rectangle
        # Both sides are rounded to whole pixels.
        area = height * width
        assert (height - 0.5) * (width - 0.5) <= 0.33 * size**2 and area > 0
        assert (height + 0.5) * (width + 0.5) >= 0.02 * size**2
        assert (height - 0.5) / (width + 0.5) <= 3.3 and (height + 0.5) / (width - 0.5) >= 0.3


def test_the_policy_of_autoaugment_uses_magnitudes_of_torchvision():
    operation, probability, plus, minus = aug._policy_values(32, 32)
    names = np.array(list(aug.image_operations.OPERATIONS))[operation]
    assert names.shape == (25, 2) and probability[1].tolist() == [0.7, 0.3]
    assert names[1].tolist() == ["rotate", "translate_x"]
    # 30 degrees and 150/331 of the side are the largest, number 9.
    assert plus[1].tolist() == pytest.approx([30 * 2 / 9, int(150 / 331 * 32)])
    assert minus[1].tolist() == pytest.approx([-30 * 2 / 9, -int(150 / 331 * 32)])
    assert plus[2].tolist() == pytest.approx([1.1, 1.3])
    assert minus[2].tolist() == pytest.approx([0.9, 0.7])
    assert plus[5].tolist() == pytest.approx([0.3 * 7 / 9, 5.0])
    assert minus[5].tolist() == pytest.approx([-0.3 * 7 / 9, 5.0])
