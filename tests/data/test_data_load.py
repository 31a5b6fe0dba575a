import zlib

import numpy as np
import pytest

from ard_jax import data
from ard_jax.data import split


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_names():
    assert data.names() == "digits cifar10 cifar100 tiny_imagenet imagenet folder tfds npz".split()


def test_digits_are_sklearns_pixel_for_pixel(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    want = {}
    for image, label in zip(raw.images.astype(int), raw.target, strict=True):
        pixels = bytes(round(v * 255 / 16) for v in image.ravel())
        want[pixels, int(label)] = want.get((pixels, int(label)), 0) + 1
    for part in (digits.train, digits.test):
        for image, label in zip(part.images, part.labels, strict=True):
            want[image.tobytes(), int(label)] -= 1
    assert set(want.values()) == {0}
    assert digits.train.image_shape == (8, 8, 1) and digits.train.num_classes == 10


def test_digits_test_split_never_changes(digits):
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    # A golden sum: reported accuracies are of exactly these images, whatever the versions or seed.
    assert zlib.crc32(digits.test.images.tobytes()) == 530439186
    other = data.load("digits", seed=5, holdout=100)
    assert (other.test.images == digits.test.images).all()
    test, train = np.bincount(digits.test.labels), np.bincount(digits.train.labels)
    assert np.abs(test / (test + train) - 0.2).max() < 0.01
    assert digits.validation is None and data.load("digits", holdout=0.0).validation is None


@pytest.mark.parametrize(("holdout", "count"), [(0.1, 144), (1, 1), (0.5, 719)])
def test_holdout_is_exact_stratified_and_disjoint(digits, holdout, count):
    splits = data.load("digits", holdout=holdout, seed=3)
    assert len(splits.validation) == count and splits.validation.split == "validation"
    assert len(splits.train) + count == len(digits.train)
    wanted = np.bincount(digits.train.labels) * count / len(digits.train)
    assert np.abs(np.bincount(splits.validation.labels, minlength=10) - wanted).max() < 1
    both = np.concatenate([splits.train.images, splits.validation.images])
    assert sorted(i.tobytes() for i in both) == sorted(i.tobytes() for i in digits.train.images)


def test_holdout_follows_the_seed():
    a, b, c = (data.load("digits", holdout=100, seed=s).validation.images for s in (0, 0, 1))
    assert (a == b).all() and (a != c).any()


def test_every_class_keeps_a_training_image():
    labels = np.array([0] * 20 + [1] * 2, np.int32)
    held = split.validation_indices(labels, 20, 0, "toy")
    assert len(held) == 20 and np.bincount(np.delete(labels, held)).tolist() == [1, 1]
    with pytest.raises(data.DataError, match="toy: holdout=21 takes 21 of 22 .* at most 20"):
        split.validation_indices(labels, 21, 0, "toy")


@pytest.mark.parametrize("holdout", [-1, 1.0, -0.1, float("nan"), "0.1", True, None, 1e-6])
def test_bad_holdout(holdout):
    with pytest.raises(data.DataError, match=r"digits: holdout=.*give a number of images"):
        data.load("digits", holdout=holdout)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {"seed": -1}, "seed=-1: give an integer"),
        ("cifar", {}, "'cifar' is unknown; choose one of digits, cifar10"),
        ("tiny_imagenet", {}, "'tiny_imagenet' needs data_dir"),
        ("folder", {}, "'folder' needs data_dir"),
        ("npz", {}, "'npz' needs data_dir"),
        ("folder", {"data_dir": b"x"}, "data_dir=b'x' is bytes; give a path"),
        ("folder", {"data_dir": ["x"]}, r"data_dir=\['x'\] is list; give a path"),
        ("folder", {"data_dir": "x", "reading": {"image_size": 8}}, "is dict; give a data.Reading"),
        (
            "folder",
            {"data_dir": "x", "reading": data.Reading(image_size=8.5)},
            "image_size=8.5: expected an",
        ),
        (
            "folder",
            {"data_dir": "x", "reading": data.Reading(image_size=(8, 8))},
            "expected an integer",
        ),
        (
            "folder",
            {"data_dir": "x", "reading": data.Reading(image_size=10**5)},
            "must be at most 4096",
        ),
        ("digits", {"reading": data.Reading(workers=2)}, "workers=2 is of loader='grain'"),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, **options)


def test_permutation_is_a_permutation_and_stays_the_same():
    assert sorted(split.permutation(1000, 5, 7)) == list(range(1000))
    # Golden: a resumed run must see the same batches on other versions of NumPy.
    assert split.permutation(10, 0, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert split.permutation(10, 2**64 - 1, 2**64 - 1).tolist() != list(range(10))
