"""Reading image files: decode, check, stack; every complaint names the file."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ard_jax.data.base import DataError

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


def decode(data: bytes | Path, name: str, rgb: bool = False) -> np.ndarray:
    """One image.

    Args:
      data: the encoded file's bytes, or its path.
      name: what to call it in messages.
      rgb: True converts every image to RGB; otherwise gray stays gray and what is neither gray nor
        RGB (nor a palette of RGB) is refused.

    Returns:
      uint8 [H,W,1] or [H,W,3].

    Raises:
      DataError: not an image, truncated, or of an unusable mode.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            image.load()
            mode = image.mode
            if rgb or mode in _RGB:
                image = image.convert("RGB")
            elif mode in _GRAY:
                image = image.convert("L")
            pixels = np.asarray(image)
    except Exception as error:  # PIL raises many types for damaged files
        raise DataError(
            f"{name} cannot be decoded as an image ({type(error).__name__}: {error}); it is "
            "truncated or not an image: replace or remove it"
        ) from error
    if not rgb and mode not in _GRAY + _RGB:
        raise DataError(f"{name} has mode {mode}; convert it to 8-bit RGB or grayscale")
    return pixels if pixels.ndim == 3 else pixels[..., None]


def decode_all(
    items: Sequence[bytes | Path], names: Sequence[str], rgb: bool = False
) -> np.ndarray:
    """Many images of one size, decoded in several threads.

    Args:
      items: bytes or path of each, at least one.
      names: what to call each in messages.
      rgb: as in `decode`.

    Returns:
      uint8 [N,H,W,C], in the order given.

    Raises:
      DataError: as `decode`, or an image has another size or number of channels than the first.
    """
    first = decode(items[0], names[0], rgb)
    images = np.empty((len(items), *first.shape), np.uint8)

    def work(i: int) -> None:
        image = decode(items[i], names[i], rgb)
        if image.shape != first.shape:
            raise DataError(
                f"{names[i]} is {_size(image)} but {names[0]} is {_size(first)}; all images must "
                "have one size and number of channels: resize or convert them"
            )
        images[i] = image

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for _ in pool.map(work, range(len(items))):  # raises the first error, by order of items
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def _size(image: np.ndarray) -> str:
    height, width, channels = image.shape
    return f"{width}x{height} with {channels} channel{'s' if channels > 1 else ''}"
