"""Data that stays on disk is the data that would be in memory."""

import numpy as np
import pytest
from PIL import Image
from test_data_tfds import write_prepared

from ard_jax import data
from ard_jax.config import parse
from ard_jax.configs import ciard_digits

GRAIN = data.Reading("grain")


def both(*args, **kwargs):
    size = kwargs.pop("image_size", 0)
    readings = data.Reading(image_size=size), data.Reading("grain", size, prefetch=2)
    return [data.load(*args, reading=reading, **kwargs) for reading in readings]


def assert_same(one, other):
    for split in ("train", "validation", "test"):
        a, b = getattr(one, split), getattr(other, split)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(np.asarray(b.images), a.images)
            np.testing.assert_array_equal(b.labels, a.labels)
            assert b.images.shape == a.images.shape and b.image_shape == a.image_shape
            assert (b.class_names, b.split, len(b)) == (a.class_names, a.split, len(a))


def test_same_images_as_in_memory(folder):
    memory, lazy = both("folder", folder, holdout=0.2, seed=3)
    assert_same(memory, lazy)
    assert len(lazy.validation) == 8
    np.testing.assert_array_equal(lazy.train.images[3], memory.train.images[3])
    np.testing.assert_array_equal(lazy.train.images[[5, 1]], memory.train.images[[5, 1]])
    assert lazy.train.images[np.array([], int)].shape == (0, 8, 6, 3)
    few = lazy.train.subset(np.array([4, 2]))
    np.testing.assert_array_equal(np.asarray(few.images, np.float32), memory.train.images[[4, 2]])


def test_what_is_all_black_is_told_when_it_is_read(folder, caplog):
    name = sorted((folder / "train" / "dog").iterdir())[1]
    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(name)
    train = data.load("folder", folder, reading=GRAIN).train
    assert not caplog.text
    for _ in range(2):
        np.asarray(train.images)
    assert caplog.text.count(f"{name} is all black") == 1


def test_held_out_test_split_and_gray_images_of_any_size(tmp_path, write_image):
    for name in "ab":
        for i in range(10):
            write_image(tmp_path / "set" / name / f"{i}.png", (5, 5, 1), i)
    memory, lazy = both("folder", tmp_path / "set")
    assert_same(memory, lazy)
    assert lazy.train.image_shape == (5, 5, 1) and len(lazy.test) == 4
    write_image(tmp_path / "set" / "a" / "0.png", (9, 6, 1))
    memory, lazy = both("folder", tmp_path / "set", image_size=4)
    assert_same(memory, lazy)
    assert lazy.train.image_shape == (4, 4, 1)


def test_same_images_of_tiny_imagenet(tmp_path, write_image):
    (tmp_path / "wnids.txt").write_text("n2\nn1\n")
    for wnid in ("n1", "n2"):
        for i in range(3):
            gray = (64, 64, 1 if i == 1 else 3)
            write_image(tmp_path / "train" / wnid / "images" / f"{i}.JPEG", gray, i)
        write_image(tmp_path / "val" / wnid / "0.JPEG", (64, 64, 3), 9)
    assert_same(*both("tiny_imagenet", tmp_path))


def test_same_images_of_tfds(tmp_path):
    pixels = write_prepared(tmp_path)
    memory, lazy = both("cifar10", tmp_path)
    assert_same(memory, lazy)
    np.testing.assert_array_equal(np.asarray(lazy.train.images), pixels["train"])
    assert_same(*both("tfds", tmp_path / "cifar10" / "3.0.2"))
    resized = both("tfds", tmp_path / "cifar10" / "3.0.2", image_size=8)
    assert_same(*resized)
    assert resized[1].train.image_shape == (8, 8, 3)


def test_damaged_tfds_record_is_named_when_it_is_read(tmp_path):
    write_prepared(tmp_path, damage_image=("train", 4))
    lazy = data.load("cifar10", tmp_path, reading=GRAIN).train
    assert lazy.images[[3, 5]].shape == (2, 32, 32, 3)
    with pytest.raises(data.DataError, match="the train split in .*3.0.2 cannot be decoded"):
        lazy.images[[3, 4]]


def test_tfds_directory_errors(tmp_path):
    with pytest.raises(data.DataError, match="dataset_info.json does not exist"):
        data.load("tfds", tmp_path)
    write_prepared(tmp_path)
    info = tmp_path / "cifar10" / "3.0.2" / "dataset_info.json"
    good = info.read_text()
    info.write_text(good.replace("array_record", "tfrecord"))
    with pytest.raises(data.DataError, match="prepared as tfrecord"):
        data.load("tfds", info.parent)
    info.write_text(good.replace('"test"', '"other"'))
    with pytest.raises(data.DataError, match="must have train and test"):
        data.load("tfds", info.parent)


def test_no_image_and_changed_image(folder, write_image):
    lazy = data.load("folder", folder, reading=GRAIN).train
    write_image(folder / "train" / "cat" / "00.png", (9, 6, 3))
    with pytest.raises(data.DataError, match="cat/00.png has changed"):
        lazy.images[0]
    with pytest.raises(data.DataError, match="cat/0[01].png is 6x[89] .* image_size"):
        data.load("folder", folder, reading=GRAIN)
    (folder / "train" / "cat" / "00.png").write_bytes(b"")
    with pytest.raises(data.DataError, match="cat/00.png cannot be decoded"):
        data.load("folder", folder, reading=GRAIN)


def test_image_size_cuts_the_centred_square_and_scales_it(tmp_path, write_image):
    shapes = {
        "a0": (8, 8, 3),
        "a1": (8, 12, 3),
        "a2": (16, 16, 3),
        "b0": (9, 9, 1),
        "b1": (30, 20, 3),
    }
    pixels = {
        name: write_image(tmp_path / part / name[0] / f"{name}.png", shape, i)
        for part in ("train", "test")
        for i, (name, shape) in enumerate(shapes.items())
    }
    memory, lazy = both("folder", tmp_path, image_size=8)
    assert_same(memory, lazy)
    assert lazy.train.image_shape == (8, 8, 3)  # RGB, as not all are gray
    np.testing.assert_array_equal(lazy.train.images[0], pixels["a0"])  # of the size: untouched
    np.testing.assert_array_equal(lazy.train.images[1], pixels["a1"][:, 2:10])  # only cut
    half = Image.fromarray(pixels["a2"]).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(lazy.train.images[2], np.asarray(half))
    with pytest.raises(data.DataError, match="one size"):
        data.load("folder", tmp_path, reading=GRAIN)


def test_checksum_is_of_the_files(folder, write_image):
    def checksum(**options):
        reading = data.Reading("grain", **options)
        return data.load("folder", folder, reading=reading).train.checksum()

    before = checksum()
    assert checksum(workers=3, prefetch=9) == before
    assert checksum(image_size=4) != before
    write_image(folder / "train" / "cat" / "00.png", (8, 6, 3), 77, mode="P")
    assert checksum() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loader": "grain"}, "digits is in memory at once"),
        ({"loader": "disk"}, "loader='disk': choose one of 'memory', 'grain'"),
        ({"image_size": 32}, "digits has images of one size"),
        ({"workers": -1}, "workers=-1: must be at least 0"),
        ({"prefetch": 0}, "prefetch=0: must be at least 1"),
    ],
)
def test_configurations_that_cannot_run(options, message):
    raw = ciard_digits.get_config()
    raw.data.update(options)
    with pytest.raises(parse.ConfigError, match=message):
        parse.to_experiment(raw)
    with pytest.raises(data.DataError, match=message):
        data.load("digits", reading=data.Reading(**options))
