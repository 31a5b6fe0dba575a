"""Reading image files: decode, check, resize, stack; every complaint names the file."""

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ard_jax.data.base import DataError
from ard_jax.runtime import threads

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
_GRAY, _RGB = ("L", "1"), ("RGB", "P")  # PIL modes that convert to 1 and 3 channels without loss


def list_images(directory: Path) -> list[Path]:
    """The image files directly inside `directory`, by name; hidden and other files are passed over.

    Raises:
      DataError: there is none.
    """
    files = [
        entry
        for entry in sorted(directory.iterdir())
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".")
    ]
    if not files:
        raise DataError(
            f"{directory} contains no images ({', '.join(SUFFIXES)}); put the images of this class "
            "directly into it, or remove the class"
        )
    return files


def headers(items: Sequence[bytes | Path], names: Sequence[str]) -> np.ndarray:
    """Sizes of many images without decoding them: int32 [N,3] of height, width and channels.

    Channels are 1 for gray, 3 for RGB or a palette, and 4 for every other mode.

    Raises:
      DataError: a file is empty or not an image. That the rest of it is whole only decoding can tell.
    """
    from PIL import Image

    def work(i: int) -> tuple[int, int, int]:
        data = items[i]
        try:
            with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
                channels = 1 if image.mode in _GRAY else 3 if image.mode in _RGB else 4
                return image.height, image.width, channels
        except Exception as error:
            raise _undecodable(names[i], error) from error

    def block(start: int) -> list[tuple[int, int, int]]:
        return [work(i) for i in range(start, min(start + 256, len(items)))]

    with ThreadPoolExecutor(threads.count()) as pool:
        blocks = list(pool.map(block, range(0, len(items), 256)))
    return np.array([row for rows in blocks for row in rows], np.int32)


def decode(data: bytes | Path, name: str, rgb: bool = False, size: int = 0) -> np.ndarray:
    """One image.

    Args:
      data: the encoded file's bytes, or its path.
      name: what to call it in messages.
      rgb: True converts every image to RGB; otherwise gray stays gray and what is neither gray nor
        RGB (nor a palette of RGB) is refused.
      size: side of the square that the image is made into: the largest centred square of it, scaled
        by PIL's bicubic filter (with antialiasing); one that is size x size stays as it is. 0: as it is.

    Returns:
      uint8 [H,W,1] or [H,W,3].

    Raises:
      DataError: not an image, truncated, or of an unusable mode.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            image.load()
            mode = image.mode
            if rgb or mode in _RGB:
                image = image.convert("RGB")
            elif mode in _GRAY:
                image = image.convert("L")
            if size and image.size != (size, size):
                image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
            pixels = np.asarray(image)
    except Exception as error:  # PIL raises many types for damaged files
        raise _undecodable(name, error) from error
    if not rgb and mode not in _GRAY + _RGB:
        raise DataError(f"{name} has mode {mode}; convert it to 8-bit RGB or grayscale")
    return pixels if pixels.ndim == 3 else pixels[..., None]


def decode_all(
    items: Sequence[bytes | Path], names: Sequence[str], rgb: bool = False, size: int = 0
) -> np.ndarray:
    """Many images of one size, decoded in several threads.

    Args:
      items: bytes or path of each, at least one.
      names: what to call each in messages.
      rgb: as in `decode`.
      size: as in `decode`.

    Returns:
      uint8 [N,H,W,C], in the order given.

    Raises:
      DataError: as `decode`, or an image has another size or number of channels than the first.
    """
    first = decode(items[0], names[0], rgb, size)
    images = np.empty((len(items), *first.shape), np.uint8)

    def work(i: int) -> None:
        image = decode(items[i], names[i], rgb, size)
        check_shape(image.shape, names[i], first.shape, names[0])
        images[i] = image

    pool = ThreadPoolExecutor(threads.count())
    try:
        for _ in pool.map(work, range(len(items))):  # raises the first error, by order of items
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def check_shape(shape: Iterable[int], name: str, first: Iterable[int], first_name: str) -> None:
    """Raises DataError unless both images have one height, width and number of channels."""
    if tuple(shape) != tuple(first):
        raise DataError(
            f"{name} is {_size(shape)} but {first_name} is {_size(first)}; all images must "
            "have one size and number of channels: resize or convert them, or give image_size for a folder"
        )


def _undecodable(name: str, error: Exception) -> DataError:
    return DataError(
        f"{name} cannot be decoded as an image ({type(error).__name__}: {error}); it is "
        "truncated or not an image: replace or remove it"
    )


def _size(shape: Iterable[int]) -> str:
    height, width, channels = shape
    return f"{width}x{height} with {channels} channel{'s' if channels > 1 else ''}"
