"""Reading image files: decode, check, resize, stack; every complaint names the file."""

import io
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ard_jax.data import geometry
from ard_jax.data.base import DataError
from ard_jax.runtime import threads

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".tif",
    ".tiff",
)  # fmt: skip
# PIL's modes that have a meaning as 8-bit gray or RGB -> channels.
_CHANNELS = dict.fromkeys(("1", "L", "LA"), 1) | dict.fromkeys(
    ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr"), 3
)
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "GIF": b"\x3b"}
_END = 64  # bytes in which it is looked for: some writers add a few of their own
_ORIENTED = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where PIL finds it


def entries(directory: Path) -> list[os.DirEntry]:
    """What is in a folder, by name.

    Raises:
      DataError: it cannot be read, or has a link that leads nowhere.
    """
    try:
        with os.scandir(directory) as found:
            listed = sorted(found, key=lambda entry: entry.name)
        for entry in listed:
            if entry.is_symlink() and not entry.name.startswith("."):
                os.stat(entry.path)
    except OSError as error:
        raise _unreadable(error.filename, error) from error
    return listed


def is_image_name(name: str) -> bool:
    """Whether it ends like an image's and is not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def list_images(directory: Path) -> tuple[list[Path], list[os.DirEntry]]:
    """The image files directly inside `directory`, and what else is there; both by name.

    Raises:
      DataError: there is no image; or what has an image's name is no file that can be read.
    """
    files, others = [], []
    for entry in entries(directory):
        if not is_image_name(entry.name):
            others.append(entry)
            continue
        if entry.is_dir():
            raise DataError(f"{entry.path} is a folder with an image's name: rename or remove it")
        if not entry.is_file():
            raise DataError(f"{entry.path} is no regular file: remove it")
        files.append(directory / entry.name)
    if not files:
        if any(entry.name.lower() in ("train", "training") for entry in others):
            raise DataError(
                f"{directory} is no class, but holds splits; give data_dir={directory} to read them"
            )
        inner = f", only {', '.join(entry.name for entry in others[:3])}" if others else ""
        raise DataError(
            f"{directory} contains no images{inner}{', ...' if others[3:] else ''}; put the images of this "
            f"class ({', '.join(SUFFIXES)}) directly into it, or remove the class"
        )
    return files, others


def _is_cut(file: BinaryIO, format_: str) -> bool:
    """Whether a file lacks the end that its format has; most files that are whole are known by it."""
    if format_ not in _ENDS:
        return False
    file.seek(-min(_END, file.seek(0, os.SEEK_END)), os.SEEK_END)
    return _ENDS[format_] not in file.read(_END)


def headers(items: Sequence[bytes | Path], names: Sequence[str]) -> np.ndarray:
    """Sizes of many images, as `decode` gives them: int32 [N,3] of height, width and channels.

    Only images that may be transparent, or that seem to be cut off, are decoded for it.

    Raises:
      DataError: a file is not an image, is truncated, or is one that `decode` refuses. Damage inside of it
        shows when it is decoded.
    """
    from PIL import Image

    def work(i: int) -> tuple[int, int, int]:
        data, name = items[i], names[i]
        try:
            with _file(data) as file, Image.open(file) as image:
                channels = _channels(image, name)
                if image.has_transparency_data:
                    _check_opaque(image, name)
                width, height = image.size
                if _orientation(image) in (5, 6, 7, 8) and image.format != "TIFF":  # PIL turns that
                    width, height = height, width
                if _is_cut(file, image.format or ""):
                    decode(data, name)
                return height, width, channels
        except DataError:
            raise
        except Exception as error:
            raise _refusal(name, error) from error

    def block(start: int) -> list[tuple[int, int, int]]:
        return [work(i) for i in range(start, min(start + 256, len(items)))]

    with ThreadPoolExecutor(threads.count()) as pool:
        blocks = list(pool.map(block, range(0, len(items), 256)))
    return np.array([row for rows in blocks for row in rows], np.int32)


def decode(
    data: bytes | Path,
    name: str,
    rgb: bool = False,
    size: int = 0,
    resize: int = 0,
    crop: geometry.RandomCrop | None = None,
) -> np.ndarray:
    """One image, upright by its orientation tag.

    What has no meaning as 8-bit gray or RGB is refused: see docs/data_on_disk.md.

    Args:
      data: the encoded file's bytes, or its path.
      name: what to call it in messages.
      rgb: True converts every image to RGB; otherwise gray stays gray.
      size: side of the square that the image is made into, see `geometry.fit`; 0: as it is.
      resize: likewise.
      crop: a random part that is made into the square instead.

    Returns:
      uint8 [H,W,1] or [H,W,3].

    Raises:
      DataError: not an image, truncated, of several frames, transparent, or of an unusable mode.
    """
    from PIL import Image, ImageOps

    try:
        with _file(data) as file, Image.open(file) as image:
            mode = "RGB" if _channels(image, name) == 3 or rgb else "L"
            if image.has_transparency_data:
                _check_opaque(image, name)
            image.load()
            if _orientation(image) != 1:
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 0..65535 to 0..255, rounded
                whole = (np.asarray(image, np.uint32) + 128) // 257
                image = Image.fromarray(whole.astype(np.uint8))
            if image.mode != mode:
                image = image.convert(mode)
            if size:
                image = crop.apply(image, size) if crop else geometry.fit(image, size, resize)
            pixels = np.asarray(image)
    except DataError:
        raise
    except Exception as error:
        raise _refusal(name, error) from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _file(data: bytes | Path) -> BinaryIO:
    # Never the path to PIL: it maps the file into memory, and then scrambles a TIFF that it turns.
    return io.BytesIO(data) if isinstance(data, bytes) else open(data, "rb")


def _channels(image: Any, name: str) -> int:
    """1 for gray, 3 for color. Raises DataError for several frames and for modes without a meaning."""
    # The further pictures of a photo (MPO) are previews and depth.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise DataError(
            f"{name} has {image.n_frames} frames; save the one that is meant as an image of its own"
        )
    if (channels := _CHANNELS.get(image.mode)) or _is_16_bit(image):
        return channels or 1
    raise DataError(
        f"{name} ({image.format}, mode {image.mode}) has values without a fixed meaning as 8 bits; convert "
        "it to 8-bit RGB or grayscale"
    )


def _orientation(image: Any) -> int:
    """EXIF's number of how the image is to be turned; 1: not at all."""
    if _ORIENTED.isdisjoint(image.info):  # getexif would decode a PNG that has none
        return 1
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a damaged block says nothing
        return 1


def _is_16_bit(image: Any) -> bool:
    """Whether it is gray whose values are 0..65535, black to white."""
    if image.format == "TIFF":  # PIL takes 12 bits and white-is-zero as they are
        bits, photometric = (image.tag_v2.get(tag) for tag in (258, 262))
        return image.mode.startswith("I;16") and (bits, photometric) == ((16,), 1)
    return image.mode.startswith("I") and image.format in ("PNG", "PPM")


def _check_opaque(image: Any, name: str) -> None:
    """Raises DataError if a pixel is not opaque; forgets a transparent color that no pixel has."""
    color = image.info.get("transparency")
    # PIL scales the pixels of other depths, but not this color.
    scaled = image.mode in ("L", "RGB") and image.tile and image.tile[0][3] not in ("L", "RGB")
    image.load()
    if color is not None and image.format == "PNG" and scaled:
        clear = True
    elif image.mode.startswith("I"):
        clear = bool((np.asarray(image) == color).any())
    else:
        clear = image.convert("RGBA").getchannel("A").getextrema()[0] < 255
    if clear:
        raise DataError(
            f"{name} has transparent pixels; flatten it onto a background, e.g. by ImageMagick: "
            "convert IN -background white -flatten OUT"
        )
    image.info.pop("transparency", None)


def decode_all(
    items: Sequence[bytes | Path],
    names: Sequence[str],
    rgb: bool = False,
    size: int = 0,
    resize: int = 0,
) -> np.ndarray:
    """Many images of one size, decoded in several threads.

    Args:
      items: bytes or path of each, at least one.
      names: what to call each in messages.
      rgb: as in `decode`.
      size: as in `decode`.
      resize: as in `decode`.

    Returns:
      uint8 [N,H,W,C], in the order given.

    Raises:
      DataError: as `decode`, or an image has another size or number of channels than the first.
    """
    first = decode(items[0], names[0], rgb, size, resize)
    images = np.empty((len(items), *first.shape), np.uint8)

    def work(i: int) -> None:
        image = decode(items[i], names[i], rgb, size, resize)
        check_shape(image.shape, names[i], first.shape, names[0])
        images[i] = image

    pool = ThreadPoolExecutor(threads.count())
    try:
        for _ in pool.map(work, range(len(items))):  # raises the first error, by order of items
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    if (black := np.flatnonzero(~images.any(axis=(1, 2, 3)))).size:
        logging.warning(
            "%d of %d images are all black, the first is %s: are they whole?",
            black.size, len(items), names[black[0]],
        )  # fmt: skip
    return images


def check_shape(shape: Iterable[int], name: str, first: Iterable[int], first_name: str) -> None:
    """Raises DataError unless both images have one height, width and number of channels."""
    if tuple(shape) != tuple(first):
        raise DataError(
            f"{name} is {_size(shape)} but {first_name} is {_size(first)}; all images must "
            "have one size and number of channels: resize or convert them, or give image_size for a folder"
        )


def _refusal(name: str, error: Exception) -> DataError:
    """What to say of an error on opening or decoding; PIL raises many types for damaged files."""
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return DataError(
            f"{name} is larger than any image should be ({error}); make it smaller, or if it is meant, raise "
            "PIL.Image.MAX_IMAGE_PIXELS"
        )
    if isinstance(error, OSError) and error.errno:
        return _unreadable(name, error)
    return DataError(
        f"{name} cannot be decoded as an image ({type(error).__name__}: {error}); it is "
        "truncated or not an image: replace or remove it"
    )


def _unreadable(name: str, error: OSError) -> DataError:
    return DataError(
        f"{name} cannot be read ({error.strerror}); correct its permissions or its link, or remove it"
    )


def _size(shape: Iterable[int]) -> str:
    height, width, channels = shape
    return f"{width}x{height} with {channels} channel{'s' if channels > 1 else ''}"
