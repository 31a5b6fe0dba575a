"""The records of one split of a prepared TFDS data set, read as needed."""

import dataclasses
import functools
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ard_jax.data import image_decoding
from ard_jax.data.base import DataError
from ard_jax.data.geometry import RandomCrop, shape_of


def open_split(builder: Any, split: str) -> Any:
    """Random access to a split's examples, images as stored (bytes): so we name the damaged one."""
    import tensorflow_datasets as tfds

    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Examples with a feature "image"; a `lazy_dataset.Source`.

    Attributes:
      directory: of the prepared version.
      split: TFDS's name of it.
      order: int64 [M], the number of the record that is image i.
      shape: (H, W, C) of the decoded images.
      resized: to H = W; see `image_decoding.decode`.
      files: the split's files.
      resize: see `geometry.fit`.
    """

    directory: Path
    split: str
    order: np.ndarray
    shape: tuple[int, int, int]
    resized: bool
    files: tuple[Path, ...]
    resize: int = 0

    @functools.cached_property
    def _examples(self) -> Any:
        import tensorflow_datasets as tfds

        return open_split(tfds.builder_from_directory(self.directory), self.split)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files, which every process opens for itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def title(self, row: int) -> str:
        """See `lazy_dataset.Source`."""
        return f"example number {self.order[row]} of the {self.split} split in {self.directory}"

    def read(self, row: int, crop: RandomCrop | None = None) -> np.ndarray:
        """See `lazy_dataset.Source`."""
        number, name = int(self.order[row]), self.title(row)
        try:
            stored = self._examples[number]["image"]
        except Exception as error:  # array_record's own errors do not name the file
            raise DataError(f"{name} cannot be read ({error}); prepare the data again") from error
        size = self.shape[0] if self.resized else 0
        rgb = self.shape[2] == 3
        image = image_decoding.decode(stored, name, rgb, size, self.resize, crop)
        shape = shape_of(self.shape, crop)
        image_decoding.check_shape(image.shape, name, shape, "the data set's images")
        return image

    def identity(self, rows: np.ndarray) -> int:
        """Names and sizes of the files, which records, and what they are made into."""
        files = [(file.name, file.stat().st_size) for file in self.files]
        made = (self.shape, self.resized, *([self.resize] if self.resize else ()))
        kind = repr((files, self.split, *made)).encode()
        return zlib.crc32(self.order[rows].data, zlib.crc32(kind))
