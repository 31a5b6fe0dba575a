"""Random parts of images for training, the centre for evaluation, and lists of classes and files."""

import math

import numpy as np
import pytest
from PIL import Image

from ard_jax import data
from ard_jax.config import parse
from ard_jax.configs import digits, protocol
from ard_jax.data import geometry
from ard_jax.data.train_batches import TrainBatches

# Draws of a crop: a resumed run must see the same ones on other versions of NumPy.
GOLDEN = [0.848324, 0.054601, 0.744778]


@pytest.fixture
def photos(tmp_path):
    """Train 3 x 8, val 3 x 2 smooth images of several sizes, every one another."""
    for part, count in (("train", 8), ("val", 2)):
        for c, name in enumerate(("bee", "ant", "cow")):
            for i in range(count):
                rng = np.random.default_rng([len(part), c, i])
                size = tuple(int(n) for n in rng.integers(20, 40, 2))
                coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
                path = tmp_path / "photos" / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return tmp_path / "photos"


def crop(row, area=(0.08, 1.0), epoch=0, seed=0):
    return geometry.RandomCrops(seed, area).of(epoch, row)


@pytest.mark.parametrize("size", [(500, 375), (64, 64), (30, 300), (1, 7)])
def test_boxes_lie_inside_and_have_such_areas_and_ratios(size):
    boxes = np.array([crop(row).box(*size) for row in range(400)])
    assert boxes.min() >= 0 and (boxes[:, 2:] <= size).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    if min(size) < 64:
        return
    wide, high = (boxes[:, 2:] - boxes[:, :2]).T
    rounding = 1 / wide + 1 / high
    assert (wide / high >= 3 / 4 * (1 - rounding)).all()
    assert (wide / high <= 4 / 3 * (1 + rounding)).all()
    share = wide * high / math.prod(size)
    assert (share >= 0.08 * (1 - rounding)).all() and len(set(map(tuple, boxes))) > 390
    # Uniform in [0.08, 1] but for large boxes, some of which do not fit.
    assert 0.4 < share.mean() < 0.56 and share.max() > 0.9 and (boxes[:, 0] > 0).mean() > 0.5


def test_an_image_too_long_for_any_box_gives_its_centre():
    assert crop(0, area=(1.0, 1.0)).box(30, 300) == (0, 130, 30, 170)
    assert crop(0, area=(1.0, 1.0)).box(300, 30) == (130, 0, 170, 30)


def test_a_crop_is_a_function_of_seed_epoch_image_and_view():
    crops = geometry.RandomCrops(5, (0.1, 1.0), views=2)
    draws = [crops.of(e, r, v).draws for e in range(2) for r in range(3) for v in range(2)]
    draws.append(geometry.RandomCrops(6, (0.1, 1.0)).of(0, 0).draws)
    assert len({tuple(d) for d in draws}) == len(draws)
    np.testing.assert_array_equal(crops.of(1, 2, 1).draws, draws[11])
    assert np.round(crops.of(1, 2).draws[:3], 6).tolist() == GOLDEN
    assert 0.4 < np.mean([crops.of(0, row).draws[-1] < 0.5 for row in range(1000)]) < 0.6


def test_a_crop_is_that_part_of_the_image_scaled_and_mirrored():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8))
    seen = set()
    for row in range(8):
        one = crop(row)
        part = image.resize((16, 16), Image.Resampling.BILINEAR, box=one.box(40, 50))
        found, plain = np.asarray(one.apply(image, 16)), np.asarray(part)
        mirrored = one.draws[-1] < 0.5
        np.testing.assert_array_equal(found, plain[:, ::-1] if mirrored else plain)
        seen.add(bool(mirrored))
    assert seen == {True, False}


@pytest.mark.parametrize("size", [(300, 400), (401, 299), (256, 256), (224, 224), (256, 700)])
def test_centre_is_that_of_torchvision(size):
    # Resize(256): the shorter side, and the longer one rounded down; CenterCrop(224).
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    width, height = image.size
    wide = int(256 * width / height) if height <= width else 256
    high = int(256 * height / width) if width <= height else 256
    whole = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - 224) / 2.0), round((high - 224) / 2.0)
    expected = whole.crop((left, top, left + 224, top + 224))
    np.testing.assert_array_equal(geometry.fit(image, 224, 256), expected)


def test_both_loaders_take_the_centre_alike(photos):
    memory, lazy = (
        data.load("folder", photos, reading=data.Reading(loader, 14, resize=16))
        for loader in ("memory", "grain")
    )
    for split in ("train", "test"):
        images = getattr(memory, split).images
        np.testing.assert_array_equal(np.asarray(getattr(lazy, split).images), images)
    plain = data.load("folder", photos, reading=data.Reading(image_size=14))
    assert not np.array_equal(memory.test.images, plain.test.images)
    sums = [
        data.load("folder", photos, reading=data.Reading("grain", 14, resize=n)).train.checksum()
        for n in (0, 16, 18)
    ]
    assert len(set(sums)) == 3


def batches(photos, steps, process=(0, 1), workers=0, start=0, views=1):
    train = data.load("folder", photos, reading=data.Reading("grain", 12, workers)).train
    source = TrainBatches(
        train, batch_size=8, seed=3, last_batch="drop", total=6, process=process,
        crops=geometry.RandomCrops(3, (0.08, 1.0), views),
    )  # fmt: skip
    source.restore(start, None)
    found = [source.next(step) for step in range(start, steps)]
    source.close()
    return found


def test_crops_do_not_depend_on_who_reads_them_or_from_where(photos):
    whole = batches(photos, 6, views=2)
    assert {name: whole[0][name].shape for name in ("image", "view")} == dict.fromkeys(
        ("image", "view"), (8, 12, 12, 3)
    )
    assert whole[0]["image"].dtype == np.uint8
    assert not np.array_equal(whole[0]["image"], whole[0]["view"])
    for got in (batches(photos, 6, start=4), batches(photos, 6, workers=1, start=4)):
        for one, other in zip(whole[4:], got, strict=True):
            for name in other:
                np.testing.assert_array_equal(one[name], other[name])
    halves = [batches(photos, 1, process=(i, 2))[0] for i in range(2)]
    joined = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
    for name, values in joined.items():
        np.testing.assert_array_equal(values, whole[0][name])
    # Another epoch crops an image otherwise.
    first = {
        int(i): image for b in whole[:3] for i, image in zip(b["index"], b["image"], strict=True)
    }
    second = {
        int(i): image for b in whole[3:] for i, image in zip(b["index"], b["image"], strict=True)
    }
    assert set(first) == set(second) == set(range(24))
    assert not any(np.array_equal(first[i], second[i]) for i in first)


@pytest.mark.parametrize("loader", ["memory", "grain"])
def test_listed_classes_in_their_order(photos, tmp_path, loader, caplog):
    file = tmp_path / "classes.txt"
    file.write_bytes(b"\xef\xbb\xbfcow\r\n\r\nbee\r\n")  # as Windows' editors save it
    found = data.load("folder", photos, reading=data.Reading(loader, 8, classes=str(file)))
    assert found.train.class_names == ("cow", "bee") and len(found.train) == 16
    whole = data.load("folder", photos, reading=data.Reading(loader, 8))
    assert whole.train.class_names == ("ant", "bee", "cow")
    np.testing.assert_array_equal(found.test.images[:2], whole.test.images[4:])
    np.testing.assert_array_equal(found.test.images[2:], whole.test.images[2:4])
    assert found.test.labels.tolist() == [0, 0, 1, 1] and "passed over" not in caplog.text


@pytest.mark.parametrize("loader", ["memory", "grain"])
def test_listed_test_images_in_their_order(photos, tmp_path, loader):
    file = tmp_path / "files.txt"
    file.write_text("cow/1.png\nant/0.png\n")
    found = data.load("folder", photos, reading=data.Reading(loader, 8, test_files=str(file)))
    whole = data.load("folder", photos, reading=data.Reading(loader, 8))
    np.testing.assert_array_equal(found.test.images[:2], whole.test.images[[5, 0]])
    assert found.test.labels.tolist() == [2, 0] and len(found.train) == 24


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        (
            "classes",
            "cow\ndog\n",
            "names 'dog', but .*train has no such folder; its folders are ant",
        ),
        ("classes", "cow\ncow\n", "has 'cow' twice"),
        ("classes", "cow\n", "the list of classes has 1"),
        ("classes", " \n", "is empty; write one a line"),
        ("classes", None, "cannot be read .* give a text file"),
        ("test_files", "ant/0.png\nant/7.png\n", "names 'ant/7.png', which .*val does not have"),
        ("test_files", "0.png\n", "its files are such as 'ant/0.png'"),
    ],
)
def test_lists_that_fit_not(photos, tmp_path, field, text, message):
    file = tmp_path / "list.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(data.DataError, match=message):
        data.load("folder", photos, reading=data.Reading("grain", 8, **{field: str(file)}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "resized_crop"}, "it needs config.data.loader='grain'"),
        ({"augment": "resized_crop", "loader": "grain"}, "it needs config.data.image_size=224"),
        ({"crop_area": (0.5, 0.2)}, r"crop_area=\(0.5, 0.2\): parts of the area"),
        ({"crop_area": (0.5, 2.0)}, r"crop_area\[1\]=2.0: must be at most 1"),
        ({"resize": 256}, "resize=256: the shorter side from which image_size=0"),
        ({"resize": 200, "image_size": 224}, "resize=200: the shorter side"),
        ({"classes": "x.txt", "name": "cifar10"}, "classes=x.txt is for folders of images"),
        (
            {"classes": "x.txt", "class_order": "natural"},
            "the order is that of config.data.classes",
        ),
    ],
)
def test_configurations_that_cannot_run(options, message):
    raw = digits.get_config("sat")
    raw.data.update({"name": "folder", "dir": "/data", "holdout": 0.0} | options)
    with pytest.raises(parse.ConfigError, match=message):
        parse.to_experiment(raw)


def test_labels_of_whole_images_are_refused():
    raw = protocol.experiment("imagenet", "dard")
    raw.method.labels = "offline"
    with pytest.raises(parse.ConfigError, match="labels='offline': soft labels of whole images"):
        parse.to_experiment(raw)


def test_sizes_change_at_their_epochs(photos):
    splits = data.load("folder", photos, reading=data.Reading("grain", image_size=16))
    crops = geometry.RandomCrops(0, (0.3, 1.0), sizes=(8, 16, 24), boundaries=(2, 4))
    batches = TrainBatches(
        splits.train, batch_size=24, seed=0, last_batch="drop", total=5, crops=crops
    )
    shapes = [batches.next(step)["image"].shape for step in range(5)]
    batches.close()
    assert [shape[1:] for shape in shapes] == [(n, n, 3) for n in (8, 16, 16, 24, 24)]
    assert crops.of(0, 3).box(40, 30) == geometry.RandomCrops(0, (0.3, 1.0)).of(0, 3).box(40, 30)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"crop_sizes": (8, 16)}, "crop_boundaries=.*needs 1, the first epoch"),
        ({"crop_sizes": (8, 16), "crop_boundaries": (1,)}, "epochs must increase, from 2 on"),
        ({"crop_sizes": (8, 16), "crop_boundaries": (99,)}, "crop_boundaries=99: must be at most"),
        ({"crop_sizes": (8,), "augment": "crop"}, "is of config.data.augment='resized_crop'"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, message):
    raw = protocol.experiment("imagenet", "sat")
    raw.data.update(dir="x", **changes)
    with pytest.raises(parse.ConfigError, match=message):
        parse.to_experiment(raw)
