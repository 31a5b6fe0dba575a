"""Further training images, such as generated ones, out of an .npz file that may be larger than memory.

Keys: `image` uint8 [M,H,W,C] (or [M,H,W]) and `label` integers [M], as Wang et al.'s files (2023, ICML, arXiv
2302.04638) have them, or `images` and `labels`. The file must not be compressed (np.savez, not
np.savez_compressed): then images are read from where they lie in it, those of a batch alone.
"""

import dataclasses
import logging
import math
import mmap
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ard_jax.data.base import ArrayDataset, DataError, Splits
from ard_jax.data.lazy_dataset import LazyDataset
from ard_jax.data.split import permutation

_IMAGES, _LABELS = ("image", "images"), ("label", "labels")
_CHUNK = 1 << 20  # labels that are looked at together
_LOOKED_AT = 100  # images of a file
_COMPARED = 1000  # with those that are held out
_STREAM = 1 << 63  # of numbers beside the orders of epochs, which have the key (seed, epoch)


@dataclasses.dataclass(frozen=True, eq=False)
class ExtraImages:
    """Images and labels of an uncompressed .npz file; cheap to pickle, which leaves the arrays behind.

    Attributes:
      path: of the file.
      images: uint8 [M,H,W,C], mapped into memory.
      labels: integers [M], mapped into memory.
      identity: M and the checksums that the file has of both arrays.
      per_batch: images of a batch.
    """

    path: str
    images: np.ndarray
    labels: np.ndarray
    identity: str
    per_batch: int

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        """By its path: a worker process maps the file again."""
        return _reopen, (self.path, self.identity, self.per_batch)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(images uint8 [B,H,W,C], labels int32 [B]) at `rows`."""
        return np.asarray(self.images[rows]), np.asarray(self.labels[rows], np.int32)


def open_extra(
    path: str | os.PathLike[str],
    train: ArrayDataset | LazyDataset,
    fraction: float,
    batch_size: int,
) -> ExtraImages:
    """Opens a file beside the training images that it adds to; reads the labels, and few of the images.

    Args:
      path: of the file.
      train: the training split.
      fraction: share of a batch that is taken from the file, rounded down.
      batch_size: images of a batch, over all devices.

    Raises:
      DataError: every problem of the file, together: it is missing or compressed, lacks an array, has images
        of another type or size or all black ones, labels out of range, or fewer images than a batch takes.
    """
    per_batch = int(fraction * batch_size)
    where = Path(path).expanduser()
    arrays, identity, problems = _map(where)
    problems += _problems(arrays, train)
    count = len(next(iter(arrays.values()))) if arrays else None
    if not per_batch:
        problems.append(
            f"config.data.extra_fraction={fraction} of a batch of {batch_size} is less than one image: give "
            "a larger one, or leave config.data.extra out"
        )
    elif count is not None and count < per_batch:
        problems.append(
            f"it has {count} images, fewer than the {per_batch} that config.data.extra_fraction={fraction} "
            f"takes for a batch of {batch_size}: give more, or a smaller fraction"
        )
    if problems:
        raise DataError("\n  - ".join([f"config.data.extra={path} cannot be used:", *problems]))
    images, labels = _shaped(arrays)
    if (found := len(np.unique(labels))) < train.num_classes:
        logging.warning(
            "config.data.extra=%s has images of %d of the %d classes",
            path,
            found,
            train.num_classes,
        )
    return ExtraImages(str(where), images, labels, identity, per_batch)


def tell_of_held_out(extra: ExtraImages, splits: Splits) -> None:
    """Warns of images of the validation or test split in the file, as far as 1,000 of its images tell.

    Splits that are read from disk as needed are not looked at.
    """
    some, _ = extra.take(_spread(len(extra), _COMPARED))
    for part in filter(None, (splits.validation, splits.test)):
        if not isinstance(part, ArrayDataset):
            continue
        known = {hash(image.tobytes()) for image in part.images}
        if twice := sum(hash(image.tobytes()) in known for image in some):
            logging.warning(
                "config.data.extra=%s: %d of %d of its images that were looked at are %s images, so that the "
                "accuracy there is not of new images",
                extra.path, twice, len(some), part.split,
            )  # fmt: skip


def batch_rows(
    extra: ExtraImages, real: np.ndarray, batch_size: int, seed: int, step: int
) -> np.ndarray:
    """Which images a batch has: those of the training split, and others of the file up to its size.

    Args:
      extra: the file.
      real: [R] positions in the training split.
      batch_size: global batch size.
      seed: of the run.
      step: training step, from 0.

    Returns:
      int64 [batch_size] in random order: positions in the training split, and -1 - row for rows of the file,
      which are drawn with replacement.
    """
    key = np.array([seed, _STREAM | step], np.uint64)
    numbers = np.random.Philox(key=key).random_raw(2 * batch_size - len(real))
    drawn = numbers[batch_size:] % np.uint64(len(extra))
    rows = np.concatenate([real, -1 - drawn.astype(np.int64)])
    return rows[np.argsort(numbers[:batch_size], kind="stable")]


def real_rows(count: int, per_batch: int, seed: int, epoch: int, index: int) -> np.ndarray:
    """Positions in a training split of `count` images that are in batch number `index` of an epoch.

    [per_batch] of them, fewer where they come to an end. Each epoch begins another order of all images, and
    ends before all have been seen: it has as many batches as without further images (Wang et al. 2023).
    """
    return permutation(count, seed, epoch)[index * per_batch : (index + 1) * per_batch].copy()


def _reopen(path: str, identity: str, per_batch: int) -> ExtraImages:
    arrays, now, problems = _map(Path(path))
    if problems or now != identity:
        raise DataError(f"config.data.extra={path} changed while it was read; put it back")
    return ExtraImages(path, *_shaped(arrays), identity, per_batch)


def _shaped(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = arrays["image"], arrays["label"]
    return images[..., None] if images.ndim == 3 else images, labels.reshape(len(labels))


def _map(path: Path) -> tuple[dict[str, np.ndarray], str, list[str]]:
    """({"image": ..., "label": ...} as far as they can be mapped, their identity, problems)."""
    arrays: dict[str, np.ndarray] = {}
    sums: list[str] = []
    problems: list[str] = []
    try:
        with zipfile.ZipFile(path) as file:
            members = {i.filename.removesuffix(".npy"): i for i in file.infolist()}
            for name, choices in (("image", _IMAGES), ("label", _LABELS)):
                key = next((c for c in choices if c in members), None)
                if all(c in members for c in choices):
                    problems.append(f"it has both {choices[0]!r} and {choices[1]!r}: leave one out")
                if key is None:
                    problems.append(
                        f"it has no array {choices[0]!r} (or {choices[1]!r}), only {sorted(members)}: add it"
                    )
                elif members[key].compress_type != zipfile.ZIP_STORED:
                    problems.append(
                        f"{key} is compressed, so that its rows cannot be read one by one: write the file "
                        "again by np.savez in place of np.savez_compressed"
                    )
                else:
                    arrays[name] = _map_member(path, file, members[key])
                    sums.append(f"{members[key].CRC:08x}")
    except FileNotFoundError:
        problems.append("there is no such file: correct the path, or leave it empty for none")
    except IsADirectoryError:
        problems.append("it is a folder: give an .npz file in it")
    except OSError as error:
        problems.append(f"it cannot be read ({error.strerror or error}): correct its permissions")
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        problems.append(
            f"it is no .npz file, or a part of one ({error}): write it again by np.savez"
        )
    count = len(arrays["label"]) if "label" in arrays and arrays["label"].ndim else 0
    return arrays, f"{count} images, {' '.join(sums)}", problems


def _map_member(path: Path, file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """The array of a stored member as a map of the file.

    Raises:
      ValueError: it is no array of numbers.
    """
    with file.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in read:
            raise ValueError(f"{member.filename} has version {version} of the format .npy")
        shape, by_columns, dtype = read[version](stream)
        header = stream.tell()
    if dtype.hasobject or 0 in shape:
        raise ValueError(f"{member.filename} holds {'objects' if dtype.hasobject else 'nothing'}")
    # The member's name and further fields stand before its bytes, perhaps others than in the directory.
    with path.open("rb") as raw:
        raw.seek(member.header_offset + 26)
        name, more = np.frombuffer(raw.read(4), "<u2")
        mapped = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
    if len(shape) > 2 and hasattr(mmap, "MADV_RANDOM"):  # of images only those that are read
        mapped.madvise(mmap.MADV_RANDOM)
    offset = member.header_offset + 30 + int(name) + int(more) + header
    if offset + dtype.itemsize * math.prod(shape) > len(mapped):
        raise ValueError(f"{member.filename} ends early")
    return np.ndarray(shape, dtype, mapped, offset, order="F" if by_columns else "C")


def _problems(arrays: dict[str, np.ndarray], train: ArrayDataset | LazyDataset) -> list[str]:
    """What is wrong with the arrays that are there."""
    images, labels = arrays.get("image"), arrays.get("label")
    found = []
    if images is not None:
        if images.dtype != np.uint8:
            found.append(
                f"its images are {images.dtype}: give uint8, of values in [0, 1] "
                "(255 * images).round().astype(np.uint8)"
            )
        shape = (*images.shape[1:], 1) if images.ndim == 3 else images.shape[1:]
        if shape != train.image_shape:
            found.append(
                f"its images are {shape} (H, W, C), those of {train.name} {train.image_shape}: resize or "
                "convert them"
            )
        if not found and (top := images[_spread(len(images))].max()) <= 1:
            found.append(
                f"its images have no value above {top}, black in the range 0 to 255, as far as {_LOOKED_AT} "
                "of them tell: give (255 * images).round().astype(np.uint8) of those in [0, 1]"
            )
    if labels is not None:
        if labels.ndim not in (1, 2) or labels.size != len(labels) or labels.dtype.kind not in "iu":
            found.append(
                f"its labels are {labels.dtype} of shape {labels.shape}: give one integer class number per "
                "image, [M]"
            )
        elif problem := _out_of_range(labels.reshape(-1), train.num_classes):
            found.append(problem)
    if images is not None and labels is not None and len(images) != len(labels):
        found.append(
            f"it has {len(images)} images but {len(labels)} labels: give one for each image"
        )
    return found


def _spread(count: int, some: int = _LOOKED_AT) -> np.ndarray:
    """Rows of the images that are looked at, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, some).astype(int))


def _out_of_range(labels: np.ndarray, classes: int) -> str:
    for first in range(0, len(labels), _CHUNK):
        part = np.asarray(labels[first : first + _CHUNK])
        wrong = np.flatnonzero((part < 0) | (part >= classes))
        if wrong.size:
            return (
                f"its label number {first + wrong[0]} is {part[wrong[0]]}: labels must be in "
                f"0..{classes - 1}, as there are {classes} classes"
            )
    return ""
