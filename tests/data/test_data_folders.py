import shutil
import zlib

import numpy as np
import pytest

from ard_jax import data


def write_folder(root, write_image, parts, classes=("cat", "dog"), n=5, **kwargs):
    """root/<part>/<class>/<i>.png; returns {(part, class): [pixels]}."""
    return {
        (part, name): [
            write_image(
                root / part / name / f"{i}.png",
                seed=zlib.crc32(f"{part}{name}{i}".encode()),
                **kwargs,
            )
            for i in range(n)
        ]
        for part in parts
        for name in classes
    }


def test_train_and_test_folders(tmp_path, write_image):
    pixels = write_folder(tmp_path, write_image, ("train", "test"))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("passed over")
    (tmp_path / "train" / ".hidden").mkdir()
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


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "jpeg", "webp", "PNG"])
def test_formats(tmp_path, write_image, suffix):
    for name in ("a", "b"):
        for i in range(3):
            pixels = write_image(tmp_path / name / f"{i}.{suffix}", shape=(6, 5, 3))
    splits = data.load("folder", tmp_path)
    assert splits.train.image_shape == (6, 5, 3)
    if suffix not in ("jpeg", "webp"):
        assert (splits.train.images == pixels).all()


@pytest.mark.parametrize(
    ("shape", "mode", "channels"), [((6, 6, 1), None, 1), ((6, 6, 1), "1", 1), ((6, 6, 3), "P", 3)]
)
def test_gray_bilevel_and_palette(tmp_path, write_image, shape, mode, channels):
    write_folder(tmp_path, write_image, ("",), shape=shape, mode=mode)
    splits = data.load("folder", tmp_path)
    assert splits.train.image_shape == (6, 6, channels) and len(np.unique(splits.train.images)) > 1


def bad_folder(case, root, write_image):
    """Spoils a good folder; returns what the message must name and say."""
    victim = root / "train" / "cat" / "2.png"
    if case == "wrong path":
        return root / "nowhere", ["nowhere", "is not a directory"]
    if case == "no classes":
        (root / "empty").mkdir()
        return root / "empty", ["0 class folders"]
    if case == "only train":
        shutil.rmtree(root / "test")
        return root, ["neither test/ nor val/", str(root / "train")]
    if case == "only test":
        shutil.rmtree(root / "train")
        return root, ["no train/"]
    if case == "class of test not in train":
        write_image(root / "test" / "eel" / "0.png")
        return root, [str(root / "test" / "eel"), "does not have"]
    if case == "class of train not in test":
        write_image(root / "train" / "eel" / "0.png")
        return root, [str(root / "test" / "eel"), "does not exist"]
    if case == "empty class":
        shutil.rmtree(root / "train" / "dog")
        (root / "train" / "dog").mkdir()
        return root, [str(root / "train" / "dog"), "no images"]
    if case == "truncated":
        victim.write_bytes(victim.read_bytes()[:-60])
        return root, [str(victim), "truncated"]
    if case == "empty file":
        victim.write_bytes(b"")
        return root, [str(victim), "cannot be decoded"]
    if case == "not an image":
        victim.write_bytes(b"<html>404</html>")
        return root, [str(victim), "cannot be decoded"]
    if case == "other size":
        write_image(victim, shape=(8, 9, 3))
        return root, [str(victim), "9x8 with 3 channels", "8x8 with 3 channels", "resize"]
    if case == "other size in test":
        for file in (root / "test").glob("*/*.png"):
            write_image(file, shape=(4, 4, 3))
        return root, [str(root), "(4, 4, 3)", "(8, 8, 3)"]
    if case == "other channels":
        write_image(victim, shape=(8, 8, 1))
        return root, [str(victim), "8x8 with 1 channel ", "8x8 with 3 channels"]
    if case == "alpha":
        write_image(victim, mode="RGBA")
        return root, [str(victim), "mode RGBA", "convert"]
    raise AssertionError(case)


FOLDER_CASES = (
    "wrong path,no classes,only train,only test,class of test not in train,"
    "class of train not in test,empty class,truncated,empty file,not an image,other size,"
    "other size in test,other channels,alpha"
).split(",")


@pytest.mark.parametrize("case", FOLDER_CASES)
def test_bad_folder(case, tmp_path, write_image):
    write_folder(tmp_path, write_image, ("train", "test"))
    path, words = bad_folder(case, tmp_path, write_image)
    with pytest.raises(data.DataError) as error:
        data.load("folder", path)
    for word in words:
        assert word in str(error.value)


def test_a_class_of_one_image_cannot_be_split(tmp_path, write_image):
    write_folder(tmp_path, write_image, ("",))
    write_image(tmp_path / "eel" / "0.png")
    with pytest.raises(data.DataError, match="class 'eel' has a single image"):
        data.load("folder", tmp_path)


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
    pairs = [
        sorted(
            (int(label), image.tobytes()) for label, image in zip(s.labels, s.images, strict=True)
        )
        for s in (before, after)
    ]
    assert pairs[0] == pairs[1]


def bad_tiny(case, root, write_image):
    annotations = root / "val/val_annotations.txt"
    rows = annotations.read_text().splitlines()
    if case == "wrong path":
        (root / "wnids.txt").unlink()
        return [str(root / "wnids.txt"), "tiny-imagenet-200"]
    if case == "wnids empty":
        (root / "wnids.txt").write_text("\n")
        return [str(root / "wnids.txt"), "empty"]
    if case == "wnids twice":
        (root / "wnids.txt").write_text("n01\nn02\nn03\nn02\n")
        return [str(root / "wnids.txt"), "n02 twice"]
    if case == "missing class":
        shutil.rmtree(root / "train/n02")
        return [str(root / "train/n02"), "does not exist"]
    if case == "unknown class":
        write_image(root / "train/n09/images/a.JPEG", (64, 64, 3))
        return [str(root / "train/n09"), "does not list"]
    if case == "empty class":
        for file in (root / "train/n02/images").iterdir():
            file.unlink()
        return [str(root / "train/n02/images"), "no images"]
    if case == "no val":
        shutil.rmtree(root / "val")
        return [str(root / "val"), "does not exist"]
    if case == "no annotations":
        annotations.unlink()
        return [str(annotations), "does not exist"]
    if case == "bad annotation":
        annotations.write_text("\n".join([*rows[:2], "val_3.JPEG\tn77\t0", *rows[3:]]))
        return [str(annotations), "line 3", "n77"]
    if case == "val image missing":
        (root / "val/images/val_3.JPEG").unlink()
        return [str(root / "val/images/val_3.JPEG"), "does not exist"]
    if case == "val image without label":
        annotations.write_text("\n".join(rows[1:]))
        return [str(root / "val/images/val_5.JPEG"), "not listed"]
    if case == "class without val image":
        for name in ("val_4.JPEG", "val_5.JPEG"):
            (root / "val/images" / name).unlink()
        annotations.write_text("\n".join(rows[2:]))
        return [str(annotations), "no image of class n02"]
    if case == "truncated":
        file = root / "val/images/val_3.JPEG"
        file.write_bytes(file.read_bytes()[:900])
        return [str(file), "truncated"]
    if case == "other size":
        write_image(root / "val/images/val_3.JPEG", (64, 32, 3))
        return [str(root / "val/images/val_3.JPEG"), "32x64", "64x64"]
    raise AssertionError(case)


TINY_CASES = (
    "wrong path,wnids empty,wnids twice,missing class,unknown class,empty class,no val,"
    "no annotations,bad annotation,val image missing,val image without label,"
    "class without val image,truncated,other size"
).split(",")


@pytest.mark.parametrize("case", TINY_CASES)
def test_bad_tiny_imagenet(case, tiny, write_image):
    words = bad_tiny(case, tiny, write_image)
    with pytest.raises(data.DataError) as error:
        data.load("tiny_imagenet", tiny)
    for word in words:
        assert word in str(error.value)
