import itertools
import os
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from ard_jax import data


def write_folder(root, write_image, parts, classes=("cat", "dog"), n=5, **kwargs):
    """root/<part>/<class>/<i>.png; returns {(part, class): [pixels]}."""
    pixels, seeds = {}, itertools.count(zlib.crc32(str(parts).encode()))
    for part, name in itertools.product(parts, classes):
        files = [root / part / name / f"{i}.png" for i in range(n)]
        pixels[part, name] = [write_image(f, seed=next(seeds), **kwargs) for f in files]
    return pixels


def test_train_and_test_folders(tmp_path, write_image):
    pixels = write_folder(tmp_path, write_image, ("train", "test"))
    splits = data.load("folder", tmp_path)
    assert splits.train.class_names == ("cat", "dog") and splits.validation is None
    for split in (splits.train, splits.test):
        want = [*pixels[split.split, "cat"], *pixels[split.split, "dog"]]
        assert (split.images == np.stack(want)).all()
        assert split.labels.tolist() == [0] * 5 + [1] * 5


def test_val_is_the_test_split_or_with_test_the_validation_split(tmp_path, write_image):
    pixels = write_folder(tmp_path, write_image, ("train", "val"))
    assert (data.load("folder", tmp_path).test.images[0] == pixels["val", "cat"][0]).all()
    write_folder(tmp_path, write_image, ("test",))
    splits = data.load("folder", str(tmp_path), holdout=5000)
    assert (splits.validation.images[0] == pixels["val", "cat"][0]).all()
    assert len(splits.train) == 10 and len(splits.validation) == 10
    assert data.load("folder", tmp_path).validation is None


def test_without_parts_a_fixed_fifth_is_the_test_split(tmp_path, write_image):
    pixels = write_folder(tmp_path, write_image, ("",), n=10)
    splits = data.load("folder", tmp_path, seed=1)
    assert np.bincount(splits.test.labels).tolist() == [2, 2] and len(splits.train) == 16
    assert (splits.test.images == data.load("folder", tmp_path, seed=2).test.images).all()
    got = [i.tobytes() for i in np.concatenate([splits.train.images, splits.test.images])]
    assert sorted(got) == sorted(i.tobytes() for group in pixels.values() for i in group)


@pytest.mark.parametrize("names", [("training", "testing", "dev"), ("Train", "TEST", "Validation")])
def test_other_names_of_the_splits(tmp_path, write_image, names):
    pixels = write_folder(tmp_path, write_image, names)
    splits = data.load("folder", tmp_path, holdout=0.5)
    for split, name in zip((splits.train, splits.test, splits.validation), names, strict=True):
        assert (split.images == np.stack([*pixels[name, "cat"], *pixels[name, "dog"]])).all()


def test_what_is_not_read_is_told(tmp_path, write_image, caplog):
    write_folder(tmp_path, write_image, ("train", "test"))
    assert len(data.load("folder", tmp_path).train) == 10 and not caplog.records
    train = tmp_path / "train"
    for path in ("cat/sub/0.png", "cat/sub/b/0.JPG", "0.png", "__MACOSX/cat/0.png", ".x/0.png"):
        write_image(train / path)
    for path in "cat/a.txt dog/a.TXT dog/a.heic dog/Makefile dog/.DS_Store dog/x/a.txt".split():
        (train / path).parent.mkdir(exist_ok=True)
        (train / path).write_text("passed over")
    (train / "dog/.#a.png").symlink_to("an editor's lock")
    write_image(train / "cat" / "1.PNG")
    write_image(tmp_path / "extra" / "cat" / "0.png")
    assert len(data.load("folder", tmp_path).train) == 11
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: passed over the folder(s) extra",
        f"{train} (train): read 11 images in 2 classes; passed over 1 .heic, 2 .txt, 1 file(s) without "
        "suffix, 1 folder(s) without images, 2 hidden file(s), 2 hidden folder(s), 2 image(s) in subfolders, "
        "1 image(s) outside class folders; file names differ only by case: 1.PNG, 1.png",
    ]


def test_what_is_all_black_is_told(tmp_path, write_image, caplog):
    write_folder(tmp_path, write_image, ("train", "test"))
    for i in (1, 3):
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / "dog" / f"{i}.png")
    data.load("folder", tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"2 of 10 images are all black, the first is {tmp_path}/train/dog/1.png: are they whole?"
    ]


def test_orders_of_the_classes(tmp_path, write_image, caplog):
    names = ["a10", "a2", "A2", "b", "2", "10", "02"]
    pixels = write_folder(tmp_path / "set", write_image, ("",), names, n=2)
    for loader in ("memory", "grain"):
        text, natural = (
            data.load(
                "folder", tmp_path / "set", reading=data.Reading(loader, class_order=order)
            ).train
            for order in ("text", "natural")
        )
        assert text.class_names == ("02", "10", "2", "A2", "a10", "a2", "b")
        assert natural.class_names == ("02", "2", "10", "A2", "a2", "a10", "b")
        for split in (text, natural):
            for image, label in zip(split.images, split.labels, strict=True):
                assert any((image == p).all() for p in pixels["", split.class_names[label]])
    assert "class names differ only by case: A2, a2" in caplog.text


@pytest.mark.parametrize(
    ("suffix", "shape", "mode", "channels"),
    [
        *((s, (6, 5, 3), None, 3) for s in "png bmp ppm jpeg jfif webp PNG TIF tiff".split()),
        ("png", (6, 5, 1), None, 1),
        ("gif", (6, 5, 3), "P", 3),
        ("png", (6, 5, 1), "1", 1),  # bilevel
        ("png", (6, 5, 3), "P", 3),  # palette
    ],
)
def test_formats(tmp_path, write_image, suffix, shape, mode, channels):
    for name in ("a", "b"):
        for i in range(3):
            pixels = write_image(tmp_path / name / f"{i}.{suffix}", shape, mode=mode)
    train = data.load("folder", tmp_path).train
    assert train.image_shape == (6, 5, channels) and len(np.unique(train.images)) > 1
    if suffix not in ("jpeg", "jfif", "webp") and mode is None:
        assert (train.images == pixels).all()


def assert_refused(name, root, path, words):
    """The message begins with, or names, the path under the root, and says all the words."""
    with pytest.raises(data.DataError) as error:
        data.load(name, root)
    for word in (str(root / path), *words):
        assert word in str(error.value)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def shorten(path, end):
    path.write_bytes(path.read_bytes()[:end])


VICTIM = "train/cat/2.png"
# What spoils a good folder (of its root and write_image) -> the path and words of the message.
BAD_FOLDERS = {
    "no classes": (lambda r, w: [empty(r / "train"), empty(r / "test")], "train", ["0 class folders"]),
    "only train": (lambda r, w: shutil.rmtree(r / "test"), "train", ["neither test/ nor val/"]),
    "only test": (lambda r, w: shutil.rmtree(r / "train"), "", ["no train/"]),
    "class of test not in train": (lambda r, w: w(r / "test/eel/0.png"), "test/eel", ["does not have"]),
    "class of train not in test": (lambda r, w: w(r / "train/eel/0.png"), "test/eel", ["does not exist"]),
    "empty class": (lambda r, w: empty(r / "train/dog"), "train/dog", ["no images"]),
    "truncated": (lambda r, w: shorten(r / VICTIM, -60), VICTIM, ["truncated"]),
    "empty file": (lambda r, w: shorten(r / VICTIM, 0), VICTIM, ["cannot be decoded"]),
    "not an image": (lambda r, w: (r / VICTIM).write_text("<html>"), VICTIM, ["cannot be decoded"]),
    "other size": (lambda r, w: w(r / VICTIM, (8, 9, 3)), VICTIM,
                   ["9x8 with 3 channels", "8x8 with 3 channels", "resize"]),
    "other size in test": (lambda r, w: [w(f, (4, 4, 3)) for f in (r / "test").glob("*/*.png")], "",
                           ["(4, 4, 3)", "(8, 8, 3)"]),
    "other channels": (lambda r, w: w(r / VICTIM, (8, 8, 1)), VICTIM,
                       ["8x8 with 1 channel ", "8x8 with 3 channels"]),
    "two names of a split": (lambda r, w: w(r / "Testing/cat/0.png"), "", ["Testing and test", "keep one"]),
    "only in subfolders": (lambda r, w: [empty(r / "train/dog"), w(r / "train/dog/in/0.png")], "train/dog",
                           ["no images, only in;"]),
    "splits in a class": (
        lambda r, w: [shutil.rmtree(r / "train/dog"), w(r / "train/dog/train/0.png")],
        "train/dog", ["data_dir=", "train/dog to read them"]),
    "class of another case": (lambda r, w: w(r / "test/Dog/0.png"), "test/Dog",
                              ["'dog' there differs from 'Dog' here only by case"]),
    "class with a decomposed letter": (
        lambda r, w: [w(r / part / f"k{a}se/0.png") for part, a in (("train", "\xe4"), ("test", "a\u0308"))],
        "test/k", ["'k\\xe4se' there differs from 'ka\\u0308se' here"]),
    "one class": (lambda r, w: shutil.rmtree(r / "train/dog"), "train", ["1 class folders (cat)"]),
    "link to nowhere": (lambda r, w: (r / "train/eel").symlink_to("gone"), "train/eel", ["No such file"]),
    "not UTF-8": (lambda r, w: w(r / "train" / os.fsdecode(b"\xe9") / "0.png"), "train",
                  ["the class folder b'\\xe9' has a name that is not UTF-8; rename it"]),
    "locked": (lambda r, w: (r / "train/eel").symlink_to("eel"), "train/eel", ["symbolic links"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folder(case, tmp_path, write_image):
    write_folder(tmp_path, write_image, ("train", "test"))
    spoil, path, words = BAD_FOLDERS[case]
    spoil(tmp_path, write_image)
    assert_refused("folder", tmp_path, path, words)


def test_a_class_of_one_image_cannot_be_split(tmp_path, write_image):
    write_folder(tmp_path, write_image, ("",))
    write_image(tmp_path / "eel" / "0.png")
    assert_refused("folder", tmp_path, "", ["class 'eel' has a single image"])
    assert_refused("folder", tmp_path / "nowhere", "", ["is not a directory"])


def test_a_folder_that_holds_that_of_the_data(tmp_path, write_image):
    write_folder(tmp_path / "set", write_image, ("train", "test"))
    assert_refused("folder", tmp_path, "", [f"give data_dir={tmp_path / 'set'}"])


WNIDS = ("n03", "n01", "n02")  # not in alphabetical order, like the original


@pytest.fixture
def tiny(tmp_path, write_image):
    """A Tiny-ImageNet of three classes, four train and two val images each."""
    root = tmp_path / "tiny"
    rows = []
    for k, wnid in enumerate(WNIDS):
        for i in range(4):
            write_image(root / f"train/{wnid}/images/{wnid}_{i}.JPEG", (64, 64, 3), seed=10 * k + i)
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text("")
        for i in range(2):
            name = f"val_{2 * k + i}.JPEG"
            write_image(root / "val/images" / name, (64, 64, 3), seed=100 + 10 * k + i)
            rows.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
    write_image(root / "train/n02/images/n02_1.JPEG", (64, 64, 1), seed=7)  # a grayscale one
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text(
        "n00\tentity\nn01\tgoldfish, Carassius\nn02\tcrane\nn03\tcrane\n"
    )
    (root / "val/val_annotations.txt").write_text("".join(reversed(rows)))
    return root


def test_tiny_imagenet(tiny):
    from PIL import Image

    splits = data.load("tiny_imagenet", tiny)
    assert splits.train.images.shape == (12, 64, 64, 3) and len(splits.test) == 6
    assert splits.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert splits.train.class_names == ("goldfish", "crane (n02)", "crane (n03)")
    first = np.asarray(Image.open(tiny / "train/n01/images/n01_0.JPEG"))
    assert (splits.train.images[0] == first).all()
    gray = splits.train.images[5]
    assert (gray == gray[..., :1]).all()  # converted to RGB
    # val_5 is the first line and of n03; val_2 is of n01.
    assert splits.test.labels.tolist() == [1, 1, 0, 0, 2, 2]
    assert (splits.test.images[0] == np.asarray(Image.open(tiny / "val/images/val_5.JPEG"))).all()


def test_images_of_tiny_imagenet_that_are_not_read_are_told(tiny, write_image, caplog):
    assert len(data.load("tiny_imagenet", tiny).train) == 12 and not caplog.records
    write_image(tiny / "train/n01/n01_9.JPEG")
    (tiny / "train/n01/images/notes.txt").write_text("")
    (tiny / "train/__MACOSX").mkdir()
    assert len(data.load("tiny_imagenet", tiny).train) == 12
    assert "read 12 images; passed over 1 .txt, 1 image(s) outside class folders" in caplog.text


@pytest.mark.parametrize("inner", ["images", "."])
def test_tiny_imagenet_with_reorganised_val(tiny, inner):
    before = data.load("tiny_imagenet", tiny).test
    for line in (tiny / "val/val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        (tiny / "val" / wnid / inner).mkdir(parents=True, exist_ok=True)
        shutil.move(tiny / "val/images" / name, tiny / "val" / wnid / inner / name)
    after = data.load("tiny_imagenet", tiny).test  # with the empty val/images left behind
    (tiny / "val/images").rmdir()
    assert (data.load("tiny_imagenet", tiny).test.images == after.images).all()
    one, other = (
        sorted((int(y), x.tobytes()) for y, x in zip(s.labels, s.images, strict=True))
        for s in (before, after)
    )
    assert one == other


NOTES, IMAGE = "val/val_annotations.txt", "val/images/val_3.JPEG"


def rewrite(change):
    """Applies it to the list of lines of the annotations."""

    def spoil(root, _):
        (root / NOTES).write_text("\n".join(change((root / NOTES).read_text().splitlines())))

    return spoil


def no_image_of_n02(root, _):
    for name in ("val_4.JPEG", "val_5.JPEG"):
        (root / "val/images" / name).unlink()
    rewrite(lambda rows: rows[2:])(root, _)


BAD_TINY = {
    "wrong path": (lambda r, w: (r / "wnids.txt").unlink(), "wnids.txt", ["tiny-imagenet-200"]),
    "wnids empty": (lambda r, w: (r / "wnids.txt").write_text("\n"), "wnids.txt", ["empty"]),
    "wnids twice": (lambda r, w: (r / "wnids.txt").write_text("n01\nn02\nn03\nn02\n"), "wnids.txt",
                    ["n02 twice"]),
    "missing class": (lambda r, w: shutil.rmtree(r / "train/n02"), "train/n02", ["does not exist"]),
    "unknown class": (lambda r, w: w(r / "train/n09/images/a.JPEG"), "train/n09", ["does not list"]),
    "empty class": (lambda r, w: empty(r / "train/n02/images"), "train/n02/images", ["no images"]),
    "no val": (lambda r, w: shutil.rmtree(r / "val"), "val", ["does not exist"]),
    "no annotations": (lambda r, w: (r / NOTES).unlink(), NOTES, ["does not exist"]),
    "bad annotation": (rewrite(lambda rows: [*rows[:2], "val_3.JPEG\tn77\t0", *rows[3:]]), NOTES,
                       ["line 3", "n77"]),
    "val image missing": (lambda r, w: (r / IMAGE).unlink(), IMAGE, ["does not exist"]),
    "val image without label": (rewrite(lambda rows: rows[1:]), "val/images/val_5.JPEG", ["not listed"]),
    "class without val image": (no_image_of_n02, NOTES, ["no image of class n02"]),
    "truncated": (lambda r, w: shorten(r / IMAGE, 900), IMAGE, ["truncated"]),
    "other size": (lambda r, w: w(r / IMAGE, (64, 32, 3)), IMAGE, ["32x64", "64x64"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TINY)
def test_bad_tiny_imagenet(case, tiny, write_image):
    spoil, path, words = BAD_TINY[case]
    spoil(tiny, write_image)
    assert_refused("tiny_imagenet", tiny, path, words)
