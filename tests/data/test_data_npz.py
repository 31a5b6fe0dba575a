import numpy as np
import pytest

from ard_jax import data

RNG = np.random.default_rng(0)


def good(**change):
    """Three classes; change an array, or drop it by None."""
    arrays = dict(
        train_images=RNG.integers(0, 256, (12, 6, 6, 3), np.uint8),
        train_labels=np.arange(12) % 3,
        test_images=RNG.integers(0, 256, (6, 6, 6, 3), np.uint8),
        test_labels=np.arange(6) % 3,
    )
    return {key: value for key, value in (arrays | change).items() if value is not None}


@pytest.fixture
def load(tmp_path):
    def save_and_load(arrays, **kwargs):
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return data.load("npz", path, **kwargs)

    return save_and_load


def test_train_and_test(load):
    arrays = good()
    splits = load(arrays)
    assert (splits.train.images == arrays["train_images"]).all()
    assert (splits.test.labels == arrays["test_labels"]).all()
    assert splits.train.class_names == ("0", "1", "2") and splits.validation is None
    for kind in ("U", "S"):
        named = load(arrays | {"class_names": np.array(list("xyz"), kind)})
        assert named.test.class_names == tuple("xyz")


def test_medmnist_form(load, caplog):
    """Gray [N,H,W], labels [N,1] uint8, and a validation part."""
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = RNG.integers(0, 256, (6, 5, 5), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(6) % 2).astype(np.uint8)[:, None]
    splits = load(arrays, holdout=0.5)
    assert splits.train.image_shape == (5, 5, 1) and len(splits.train) == 6
    assert (splits.validation.images[..., 0] == arrays["val_images"]).all()
    assert splits.validation.split == "validation"
    assert not caplog.text
    assert load(arrays).validation is None
    assert "its own validation split of 6 images is not used with holdout=0" in caplog.text


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_floating_point_images(load, dtype):
    pixels = RNG.integers(0, 256, (12, 6, 6, 3), np.uint8)
    splits = load(good(train_images=(pixels / 255).astype(dtype)))
    assert (splits.train.images == pixels).all()


def test_images_and_labels_alone(load):
    arrays = dict(images=RNG.integers(0, 256, (20, 6, 6, 1), np.uint8), labels=np.arange(20) % 2)
    a, b = load(arrays, seed=0), load(arrays, seed=1)
    assert (a.test.images == b.test.images).all() and len(a.test) == 4 and len(a.train) == 16
    got = np.concatenate([a.train.images, a.test.images])
    assert sorted(i.tobytes() for i in got) == sorted(i.tobytes() for i in arrays["images"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        (
            {"train_images": np.full((12, 6, 6, 3), 77, np.uint8)},
            "all 12 training images are equal",
        ),
        (
            {"train_images": RNG.integers(0, 16, (12, 6, 6, 3), np.uint8)},
            "brightest pixel of the training images is 15 of 255",
        ),
        (
            {
                "train_images": np.tile(RNG.integers(0, 256, (6, 6, 6, 3), np.uint8), (2, 1, 1, 1)),
                "train_labels": np.r_[np.arange(6), np.arange(1, 7)] % 3,
                "holdout": 0,
            },
            "6 of 12 training images occur under another class too",
        ),
        ({"test_images": "train_images"}, "6 of 6 test images are training images too"),
        ({"test_labels": np.arange(6) % 2}, "no test image is of class '2' (1 such classes)"),
        ({"val_images": "test_images"}, "6 of 6 test images are validation images too"),
        ({"val_images": "train_images"}, "6 of 6 validation images are training images too"),
    ],
)
def test_images_that_occur_again_are_told(load, caplog, change, message):
    arrays = good(
        val_images=RNG.integers(0, 256, (6, 6, 6, 3), np.uint8), val_labels=np.arange(6) % 3
    )
    for key, value in change.items():
        arrays[key] = arrays[value][:6] if isinstance(value, str) else value
    load(arrays, holdout=0.5)
    assert message in caplog.text and len(caplog.records) == bool(message)


FLOAT = np.full((12, 6, 6, 3), 0.5)
BAD_FLOAT, NAN_FLOAT = FLOAT.copy(), FLOAT.copy()
BAD_FLOAT[4, 0, 0, 0] = 1.5
NAN_FLOAT[5, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(test_images=None), "no array 'test_images', only"),
        (dict(train_labels=None), "no array 'train_labels'"),
        (dict(val_images=np.zeros((2, 6, 6, 3), np.uint8)), "no array 'val_labels'"),
        (dict(train_images=np.zeros((12, 36), np.uint8)), r"train_images has shape \(12, 36\)"),
        (dict(train_images=np.zeros((12, 3, 6, 6), np.uint8)), r"train_images .*\(12, 3, 6, 6\)"),
        (dict(train_images=np.zeros((12, 6, 6, 3), np.int64)), r"train_images is int64.*uint8"),
        (dict(train_images=BAD_FLOAT), r"train_images\[4\] has values from 0.5 to 1.5"),
        (dict(train_images=NAN_FLOAT), r"train_images\[5\] has values from nan"),
        (dict(train_images=np.zeros((11, 6, 6, 3), np.uint8)), "11 images but 12 labels"),
        (dict(train_labels=np.arange(12) / 2), "train_labels is float64"),
        (dict(train_labels=np.array([])), "train_labels is empty"),
        (dict(train_labels=np.zeros(12, int), test_labels=np.zeros(6, int)), "1 class; .* two"),
        (dict(class_names=np.array(["x", "y", "x"])), "2 classes are called 'x'"),
        (dict(val_labels=np.zeros(2, int)), "no array 'val_images'"),
        (dict(images=np.zeros((2, 6, 6, 3), np.uint8)), r"images.*either images and labels alone"),
        (
            dict(train_images=np.zeros((0, 6, 6, 3), np.uint8), train_labels=np.array([], int)),
            "is empty",
        ),
        (dict(train_images=np.zeros((12, 0, 6, 3), np.uint8)), "nothing in them"),
        (dict(train_labels=np.eye(12, dtype=int)), r"train_labels is int64 of shape \(12, 12\)"),
        (dict(train_labels=np.arange(12) - 1), r"train_labels\[0\] = -1"),
        (dict(train_labels=np.arange(12) % 3 * 2), r"up to 4 but no image has class 1 \(2 such"),
        (dict(test_labels=np.array([0, 1, 3, 0, 5, 0])), r"test_labels\[2\] = 3 .*0\.\.2"),
        (dict(class_names=np.array(["x", "y"])), r"train_labels\[2\] = 2, but class_names has 2"),
        (
            dict(class_names=np.array(list("wxyz"))),
            "4 names but .* up to 2, so no image has class 3 .'z'.",
        ),
        (
            dict(train_images=np.eye(12, 36, dtype=np.uint8).reshape(12, 6, 6)),
            "no value above 1, black",
        ),
        (dict(train_images=FLOAT / 255), "float64 and has no value above 0.00196, black"),
        (dict(test_images=np.zeros((6, 5, 6, 3), np.uint8)), r"\(5, 6, 3\).*\(6, 6, 3\)"),
        (dict(test_images=np.zeros((6, 6, 6), np.uint8)), r"\(6, 6, 1\).*\(6, 6, 3\)"),
        (dict(train_images=np.array([{}] * 12)), "train_images: cannot be read.*objects"),
    ],
)
def test_bad_arrays(load, change, message):
    with pytest.raises(data.DataError, match=message) as error:
        load(good(**change))
    assert "data.npz" in str(error.value)


def test_bad_files(tmp_path):
    np.savez(tmp_path / "cut.npz", **good())
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1  # the zip's own checksum finds it
    (tmp_path / "flip.npz").write_bytes(flipped)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("<html>not found</html>")
    np.savez(tmp_path / "keys.npz", x_train=np.zeros(3))
    for name, message in (
        ("text.npz", r"text\.npz is not an \.npz file \(it begins with b'<html>'\)"),
        ("keys.npz", r"none of the arrays train_images.* it has x_train; rename"),
        ("none.npz", r"none\.npz is not a file"),
        (".", "is not a file"),
        ("cut.npz", r"cut\.npz.* truncated"),
        ("flip.npz", r"flip\.npz, train_images: cannot be read"),
        ("one.npy", r"one\.npy is one array"),
    ):
        with pytest.raises(data.DataError, match=message):
            data.load("npz", tmp_path / name)
