"""What image files mean: one reference by PIL, which both loaders follow or all refuse."""

import io
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ard_jax import data

LOADERS = ("memory", "grain")
# Suffix -> PIL modes that it is written from.
WRITTEN = {
    "png": "1 L LA P RGB RGBA I;16",
    "tif": "1 L LA P RGB RGBA CMYK YCbCr LAB I;16 I;16B I F",
    "jpg": "L RGB CMYK YCbCr",
    "webp": "L RGB RGBA",
    "gif": "1 L P RGB",
    "bmp": "1 L P RGB",
    "ppm": "1 L RGB I;16 F",
}
GRAY16, GRAY, COLOR = (
    ("I;16", "I;16B", "I"),
    ("1", "L", "LA"),
    ("P", "RGB", "RGBA", "CMYK", "YCbCr"),
)


def encoded(image, suffix, **options):
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[f".{suffix}"], **options)
    return file.getvalue()


def drawn(mode, seed, shape=(6, 8)):
    rng = np.random.default_rng(seed)
    if mode in GRAY16:
        kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
        return Image.fromarray(rng.integers(0, 2**16, shape).astype(kind))
    if mode == "F":
        return Image.fromarray(rng.random(shape, np.float32))
    if mode in ("LAB", "LA", "RGBA", "CMYK"):
        bands = len(Image.new(mode, (1, 1)).getbands())
        return Image.frombytes(mode, shape[::-1], rng.bytes(bands * shape[0] * shape[1]))
    return Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).convert(mode)


@st.composite
def files(draw):
    """(suffix, bytes) of an image of any kind."""
    suffix = draw(st.sampled_from(sorted(WRITTEN)))
    mode = draw(st.sampled_from(WRITTEN[suffix].split()))
    image, options = drawn(mode, draw(st.integers(0, 9))), {}
    if mode in ("LA", "RGBA") and draw(st.booleans()):
        image.putalpha(255)
    if draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(1, 8))
        options |= {"exif": exif} if suffix in ("png", "jpg", "webp", "tif") else {}
    if suffix in ("png", "gif") and mode in ("1", "L", "P") and draw(st.booleans()):
        alphas = [b"\xff\xff"] if (suffix, mode) == ("png", "P") else []
        options["transparency"] = draw(st.sampled_from([0, 7, 255, *alphas]))
    if suffix in ("gif", "tif", "webp", "png") and mode == "RGB" and draw(st.booleans()):
        options |= {"save_all": True, "append_images": [ImageOps.invert(image)]}
    return suffix, encoded(image, suffix, **options)


def reference(suffix, content, size):
    """uint8 [H,W,C], or None where there is no one meaning."""
    image = Image.open(io.BytesIO(content))
    if getattr(image, "n_frames", 1) > 1:
        return None
    image = ImageOps.exif_transpose(image)
    if image.mode in GRAY16 and not (image.mode == "I" and suffix == "tif"):
        scaled = np.round(np.asarray(image).astype(np.float64) / 257)
        image = Image.fromarray(scaled.astype(np.uint8))
    if image.mode not in GRAY + COLOR or np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        return None
    image.info.pop("transparency", None)
    image = image.convert("L" if image.mode in GRAY else "RGB")
    if size:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(*image.size[::-1], -1)


def load(root, loader="memory", size=0):
    """The training images, or the message of the DataError."""
    try:
        images = data.load("folder", root, reading=data.Reading(loader, size)).train.images
        return np.asarray(images)
    except data.DataError as error:
        return str(error)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(files(), st.sampled_from([0, 4]))
def test_each_kind_is_read_by_its_meaning_or_refused(file, size):
    suffix, content = file
    want = reference(suffix, content, size)
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARD_CACHE_DIR", f"{root}/.cache")
        for part in ("train/a", "train/b", "test/a", "test/b"):
            Path(root, part).mkdir(parents=True)
            Path(root, part, f"x.{suffix}").write_bytes(content)
        for loader in LOADERS:
            found = load(root, loader, size)
            if want is None:
                assert f"/x.{suffix}" in found and ("convert" in found or "frames" in found)
            else:
                np.testing.assert_array_equal(found, [want, want])


@pytest.fixture
def spoil(tmp_path, folder):
    """spoil(image or bytes, suffix, **options): makes it a file of the folder; returns its path."""

    def write(image, suffix="png", **options):
        path = folder / "train" / "cat" / f"spoilt.{suffix}"
        content = image if isinstance(image, bytes) else encoded(image, suffix, **options)
        path.write_bytes(content)
        return path

    return write


def refused(folder, path, words, sizes=(0, 4)):
    for loader in LOADERS:
        for size in sizes:
            found = load(folder, loader, size)
            assert isinstance(found, str) and str(path) in found and words in found
            assert "cannot be decoded" not in found


def test_photos_of_one_camera_stand_upright(folder, spoil):
    upright = np.asarray(Image.open(folder / "train/cat/00.png"))
    for value, turn in ((6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)):
        exif = Image.Exif()
        exif[0x0112] = value
        spoil(Image.fromarray(upright).transpose(turn), exif=exif)
        for loader in LOADERS:  # the last image of the first class
            np.testing.assert_array_equal(load(folder, loader)[20], upright)


def test_kinds_may_be_mixed(tmp_path):
    """Gray of 8 and 16 bits stays gray; with RGB among it all become RGB, if they get one size."""
    gray = drawn("L", 0)
    wide = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / part).mkdir(parents=True)
        for name, image in (("0.png", gray), ("1.png", wide), ("2.tif", wide), ("3.tif", gray)):
            image.save(tmp_path / part / name)
    for loader in LOADERS:
        np.testing.assert_array_equal(load(tmp_path, loader)[..., 0], [np.asarray(gray)] * 8)
    drawn("CMYK", 0).save(tmp_path / "train" / "b" / "4.tif")
    refused(tmp_path, tmp_path / "train/b/4.tif", "3 channels but", sizes=(0,))
    for loader in LOADERS:
        assert load(tmp_path, loader, 4).shape == (9, 4, 4, 3)


def test_of_a_photo_of_several_pictures_the_first_counts(tmp_path):
    first, preview = drawn("RGB", 0), drawn("RGB", 1)
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / part).mkdir(parents=True)
        first.save(tmp_path / part / "x.jpg", "MPO", save_all=True, append_images=[preview])
    want = np.asarray(Image.open(tmp_path / "train/a/x.jpg"))
    for loader in LOADERS:
        np.testing.assert_array_equal(load(tmp_path, loader), [want, want])


def test_a_damaged_orientation_says_nothing(folder, spoil):
    upright = Image.open(folder / "train/cat/00.png")
    spoil(upright, exif=b"Exif\0\0II*\0nonsense")
    for loader in LOADERS:
        np.testing.assert_array_equal(load(folder, loader)[20], np.asarray(upright))


def pgm(maxval, values, kind):
    return f"P5 {len(values)} 1 {maxval}\n".encode() + np.array(values, kind).tobytes()


@pytest.mark.parametrize(
    ("content", "suffix", "want"),
    [
        (pgm(65535, [0, 128, 129, 32896, 65535], ">u2"), "pgm", [0, 0, 1, 128, 255]),
        (pgm(1000, [0, 500, 1000, 0, 0], ">u2"), "pgm", [0, 128, 255, 0, 0]),
        (pgm(15, [0, 7, 15, 0, 0], "u1"), "pgm", [0, 119, 255, 0, 0]),
        (encoded(Image.fromarray(np.array([[0, 128, 129, 32896, 65535]], np.uint16)), "png"), "png",
         [0, 0, 1, 128, 255]),
    ],
)  # fmt: skip
def test_the_whole_range_of_the_file_is_the_whole_range(tmp_path, content, suffix, want):
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / part / f"x.{suffix}").write_bytes(content)
    for loader in LOADERS:
        assert load(tmp_path, loader)[0].ravel().tolist() == want


CLEAR = drawn("RGBA", 0)
CLEAR.putalpha(0)
SPOILT = {
    "transparent": (CLEAR, "png", {}, "transparent pixels; flatten"),
    "transparent tif": (CLEAR, "tif", {}, "transparent pixels; flatten"),
    "palette": (drawn("P", 0), "png", {"transparency": drawn("P", 0).getpixel((0, 0))}, "transparent"),
    "float": (drawn("F", 0), "tif", {}, "mode F"),
    "32 bits": (drawn("I", 0), "tif", {}, "mode I)"),
    "white is zero": (drawn("I;16", 0), "tif", {"tiffinfo": {262: 0}}, "mode I;16"),
    "frames": (drawn("P", 0), "gif", {"save_all": True, "append_images": [drawn("P", 1)]}, "2 frames"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_one_image_without_a_meaning_is_named(folder, spoil, case):
    image, suffix, options, words = SPOILT[case]
    refused(folder, spoil(image, suffix, **options), words)


def png(bits, color, row, transparency):
    """A PNG of one row, which PIL cannot write at these depths."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", 2, 1, bits, color, 0, 0, 0)
    parts = {
        b"IHDR": head,
        b"tRNS": transparency,
        b"IDAT": zlib.compress(b"\0" + row),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items())


@pytest.mark.parametrize(
    "content",
    [
        png(4, 0, b"\x12", b"\0\x01"),
        png(16, 2, bytes(range(12)), b"\0\x01\x02\x03\x04\x05"),
        png(16, 0, b"\0\x01\x02\x03", b"\x02\x03"),
    ],
    ids=["4-bit gray", "16-bit RGB", "16-bit gray"],
)
def test_a_transparent_color_of_another_depth_is_seen(folder, spoil, content):
    """PIL scales such pixels, but not the color."""
    refused(folder, spoil(content), "transparent pixels")


def test_files_that_cannot_be_read_say_why(folder, spoil, monkeypatch):
    path = spoil(drawn("RGB", 0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    refused(folder, "png", "larger than any image")
    monkeypatch.undo()
    path.unlink()
    path.symlink_to("nowhere")
    refused(folder, path, "No such file")
    path.unlink()
    path.symlink_to(path.name)
    refused(folder, path, "Too many levels of symbolic links")
    path.unlink()
    path.mkdir()
    refused(folder, path, "is a folder with an image's name")
    path.rmdir()
    os.mkfifo(path)
    refused(folder, path, "no regular file")
