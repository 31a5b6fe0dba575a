"""Data that stays on disk: with the interface of `ArrayDataset`, but images are decoded when asked for.

File names (or record numbers), sizes and labels are in memory, some tens of bytes an image.
"""

import dataclasses
import numbers
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ard_jax.data.base import check_classes, check_labels, check_split, positions
from ard_jax.data.geometry import RandomCrop, RandomCrops
from ard_jax.runtime import once, threads

LOADERS = ("memory", "grain")
CLASS_ORDERS = ("text", "natural")
MAX_SIDE = 4096  # pixels that images may be scaled to: one of that size takes 48 MiB


@dataclasses.dataclass(frozen=True)
class Reading:
    """How images are read; all but `image_size` and `class_order` leave what is read as it is.

    Attributes:
      loader: "memory": all decoded at the start; "grain": decoded again whenever they are needed, ahead
        of the step that needs them.
      image_size: side in pixels of the squares that a folder's images are made into (see
        `image_decoding.decode`), which then are RGB unless all are gray; 0: as they are, all of one size.
      workers: processes that read ahead for training; 0: threads of this process.
      prefetch: batches that are read ahead; by each worker where there are any.
      class_order: of a folder's class names, and so which label each gets: "text", as torchvision's
        ImageFolder sorts them ("10" before "2"), or "natural" ("2" before "10").
      resize: with `image_size`: the shorter side in pixels before the centre is cut out, see `geometry.fit`;
        0: the largest square is scaled.
      classes: a text file with the class folders that a folder's data are read from, one a line; their order
        is that of the labels; "imagenet100" is the list of that data set. "" for all.
      test_files: a text file with the images of a folder's test split, one a line as CLASS/NAME; "" for all.
    """

    loader: str = "memory"
    image_size: int = 0
    workers: int = 0
    prefetch: int = 4
    class_order: str = "text"
    resize: int = 0
    classes: str = ""
    test_files: str = ""

    def problems(self, where: str = "config.data") -> list[str]:
        """What is wrong, one sentence each."""
        found = []
        for name, known in (("loader", LOADERS), ("class_order", CLASS_ORDERS)):
            if (value := getattr(self, name)) not in known:
                found.append(
                    f"{where}.{name}={value!r}: choose one of {', '.join(map(repr, known))}"
                )
        for name, least in (("image_size", 0), ("resize", 0), ("workers", 0), ("prefetch", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                found.append(f"{where}.{name}={value!r}: expected an integer")
            elif value < least:
                found.append(f"{where}.{name}={value}: must be at least {least}")
            elif name in ("image_size", "resize") and int(value) > MAX_SIDE:
                found.append(f"{where}.{name}={value}: must be at most {MAX_SIDE} pixels")
        if self.resize and not found and not 0 < self.image_size <= self.resize:
            found.append(
                f"{where}.resize={self.resize}: the shorter side from which image_size={self.image_size} is "
                "cut out; give an image_size from 1 to it, or resize=0"
            )
        if self.classes and self.class_order != "text":
            found.append(
                f"{where}.class_order={self.class_order!r}: the order is that of {where}.classes; use 'text'"
            )
        if self.loader == "memory" and self.workers and not found:
            found.append(f"{where}.workers={self.workers} is of loader='grain': set that, or use 0")
        return found


class Source(Protocol):
    """Random access to stored images; cheap to pickle, as worker processes get copies."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        ...

    def read(self, row: int, crop: RandomCrop | None = None) -> np.ndarray:
        """Image number `row`, or a part of it: uint8, of `shape` unless the part has a size of its own.

        Raises:
          DataError: the file, which it names, cannot be used.
        """
        ...

    def title(self, row: int) -> str:
        """What to call image number `row` in messages."""
        ...

    def identity(self, rows: np.ndarray) -> int:
        """A checksum of what is stored at these rows, without decoding it."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class LazyDataset:
    """One split of a data set that is read from disk as needed.

    Attributes:
      source: where images come from.
      rows: int64 [N], which of the source's images.
      labels: int32 [N], each in [0, num_classes).
      class_names: the name of each class, in the order of the labels.
      name: of the data set; used in messages.
      split: "train", "validation" or "test".
      reading: how much is read ahead, and by whom.

    Raises:
      DataError: on construction, a label is out of range.
    """

    source: Source
    rows: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    name: str
    split: str
    reading: Reading

    def __post_init__(self) -> None:
        """Checks the labels and makes them read-only."""
        object.__setattr__(self, "class_names", tuple(self.class_names))
        check_split(self.split, self.name)
        check_classes(self.class_names, self.name)
        check_labels(self.labels, self.class_names, f"{self.name} ({self.split}) labels")
        view = self.labels.view()
        view.flags.writeable = False
        object.__setattr__(self, "labels", view)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.rows)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.source.shape

    @property
    def num_classes(self) -> int:
        """The number of classes, whether or not each of them has an example."""
        return len(self.class_names)

    @property
    def images(self) -> "LazyImages":
        """The images, decoded by indexing; np.asarray decodes all."""
        return LazyImages(self.source, self.rows, f"{self.name} ({self.split})")

    def checksum(self) -> int:
        """CRC-32 of the labels and of the files' names and sizes, not of the pixels."""
        return zlib.crc32(self.labels.data, self.source.identity(self.rows))

    def subset(self, indices: np.ndarray, split: str | None = None) -> "LazyDataset":
        """The examples at `indices` (int [M]), in that order, as a new dataset."""
        at = positions(indices, len(self), self.name)
        return dataclasses.replace(
            self, rows=self.rows[at], labels=self.labels[at], split=split or self.split
        )


@dataclasses.dataclass(frozen=True, eq=False)
class LazyImages:
    """Stands for an array uint8 [N,H,W,C] whose images are decoded when they are taken out."""

    source: Source
    rows: np.ndarray
    name: str
    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self.rows), *self.source.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        """One image [H,W,C] for an int, else [M,H,W,C]; several threads decode."""
        rows = self.rows[index]
        if rows.ndim == 0:
            return self.source.read(int(rows))
        return self._decoded(rows, lambda i: None)

    def cropped(self, index: np.ndarray, crops: RandomCrops, epoch: int, view: int = 0):
        """A random part of each image at `index` int [M], as its number in the split decides: [M,H,W,C]."""
        size = crops.size(epoch)
        one = lambda i: crops.of(epoch, int(index[i]), view)  # noqa: E731
        return self._decoded(self.rows[index], one, (size, size) if size else None)

    def _decoded(
        self,
        rows: np.ndarray,
        crop: Callable[[int], RandomCrop | None],
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        *whole, channels = self.source.shape
        out = np.empty((len(rows), *(size or whole), channels), np.uint8)

        def fill(part: range) -> None:
            for i in part:
                out[i] = self.source.read(int(rows[i]), crop(i))

        count = min(threads.count(), len(rows))
        if count <= 1:
            fill(range(len(rows)))
        else:
            list(threads.pool().map(fill, [range(t, len(rows), count) for t in range(count)]))
        if (black := np.flatnonzero(~out.any(axis=(1, 2, 3)))).size:
            text = f"{self.source.title(int(rows[black[0]]))} is all black, perhaps like others; is it whole?"
            once.warn(f"black {self.name}", f"{self.name}: {text}")
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them in memory."""
        return np.asarray(self[:], dtype)
