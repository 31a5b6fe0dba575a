"""Image files read as needed: what their headers say, and datasets over them."""

import collections
import dataclasses
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ard_jax.data import image_decoding
from ard_jax.data.base import DataError
from ard_jax.data.geometry import RandomCrop, shape_of
from ard_jax.data.lazy_dataset import LazyDataset, Reading
from ard_jax.io import cache_folder

Groups = dict[str, tuple[list[Path], np.ndarray]]  # split -> files, and the class of each, int32


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files.

    Attributes:
      root: the folder.
      names: bytes [M], the files' paths in it.
      sizes: int64 [M], of the files in bytes.
      shape: (H, W, C) of the decoded images.
      resized: to H = W; see `image_decoding.decode`.
      rgb: everything is converted to RGB.
      resize: see `geometry.fit`.
    """

    root: Path
    names: np.ndarray
    sizes: np.ndarray
    shape: tuple[int, int, int]
    resized: bool
    rgb: bool
    resize: int = 0

    def title(self, row: int) -> str:
        """See `Source`."""
        return str(self.root / os.fsdecode(bytes(self.names[row])))

    def read(self, row: int, crop: RandomCrop | None = None) -> np.ndarray:
        """See `Source`."""
        path, size = self.title(row), self.shape[0] if self.resized else 0
        image = image_decoding.decode(Path(path), path, self.rgb, size, self.resize, crop)
        if image.shape != (shape := shape_of(self.shape, crop)):
            raise DataError(
                f"{path} has changed since its header was read, from shape {shape} to {image.shape} (or "
                "tells its orientation after its pixels: write it again)"
            )
        return image

    def identity(self, rows: np.ndarray) -> int:
        """Names and sizes of the files, and what they are made into."""
        made = (self.shape, self.resized, self.rgb, *([self.resize] if self.resize else ()))
        kind = repr(made).encode()
        return zlib.crc32(
            self.sizes[rows].data, zlib.crc32(self.names[rows].data, zlib.crc32(kind))
        )


def file_splits(
    root: Path,
    groups: Groups,
    class_names: Iterable[str],
    name: str,
    reading: Reading,
    rgb: bool = False,
) -> dict[str, Any]:
    """A dataset for each split of image files, none of which is decoded here.

    Args:
      root: the folder in which all files lie.
      groups: split -> (files, labels int32).
      class_names: in the order of the labels.
      name: of the data set.
      reading: image size, and how to read ahead.
      rgb: all images are converted to RGB, as in `image_decoding.decode`.

    Raises:
      DataError: as `survey`.
    """
    files = [file for listed, _ in groups.values() for file in listed]
    shape, rgb = survey(root, files, reading.image_size, rgb)
    source = Files(
        root=root,
        names=np.array([os.fsencode(file.relative_to(root)) for file in files]),
        sizes=np.array([file.stat().st_size for file in files], np.int64),
        shape=shape,
        resized=bool(reading.image_size),
        rgb=rgb,
        resize=reading.resize,
    )
    made, start = {}, 0
    for split, (listed, labels) in groups.items():
        rows = np.arange(start, start + len(listed))
        made[split] = LazyDataset(source, rows, labels, tuple(class_names), name, split, reading)
        start += len(listed)
    return made


def survey(
    root: Path, files: list[Path], image_size: int = 0, rgb: bool = False
) -> tuple[tuple[int, int, int], bool]:
    """Shape of the images once decoded, and whether they are converted to RGB; from the headers.

    The headers are read once and then kept in the cache.

    Raises:
      DataError: a file is no image that can be used; or, without an image size, the images differ in size
        or (unless `rgb`) in channels.
    """
    found = cache_folder.cached(
        "image-headers",
        root,
        files,
        {"headers"},
        lambda: {"headers": image_decoding.headers(files, [str(file) for file in files])},
    )["headers"]
    if image_size:
        rgb = rgb or bool((found[:, 2] != 1).any())
        return (image_size, image_size, 3 if rgb else 1), rgb
    if rgb:
        found[:, 2] = 3
    if (other := np.flatnonzero((found != found[0]).any(axis=1))).size:
        image_decoding.check_shape(found[other[0]], str(files[other[0]]), found[0], str(files[0]))
    height, width, channels = (int(n) for n in found[0])
    return (height, width, channels), rgb


def is_hidden(entry: os.DirEntry) -> bool:
    """Whether people did not put it there: .name or __MACOSX."""
    return entry.name.startswith(".") or entry.name == "__MACOSX"


def is_visible_folder(entry: os.DirEntry) -> bool:
    """Whether it may be a class or a split."""
    return not is_hidden(entry) and entry.is_dir()


def passed_over(beside: Iterable[os.DirEntry], inside: Iterable[os.DirEntry]) -> list[str]:
    """Says by kind what of a split is not read; [] for nothing.

    Args:
      beside: what lies beside the class folders.
      inside: what lies in them beside the images.
    """
    counts = collections.Counter(_kind(entry) for entry in beside)
    for entry in inside:
        images = _images_below(entry) if is_visible_folder(entry) else 0
        counts["image(s) in subfolders" if images else _kind(entry)] += images or 1
    parts = [f"{number} {kind}" for kind, number in sorted(counts.items())]
    return [f"passed over {', '.join(parts)}"] if parts else []


def _kind(entry: os.DirEntry) -> str:
    """What a file or folder is that is not read."""
    if is_hidden(entry):
        return "hidden folder(s)" if os.path.isdir(entry) else "hidden file(s)"
    if entry.is_dir():
        return "folder(s) without images"
    if image_decoding.is_image_name(entry.name):
        return "image(s) outside class folders"
    return os.path.splitext(entry.name)[1].lower() or "file(s) without suffix"


def _images_below(folder: os.DirEntry) -> int:
    names = (name for _, _, names in os.walk(folder.path) for name in names)
    return sum(map(image_decoding.is_image_name, names))
