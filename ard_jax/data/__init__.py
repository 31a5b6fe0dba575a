"""Data: `load` gives the splits of a data set, in host memory or (`Reading`) read from disk as needed.

`batching` makes batches of them, as a pure function of (seed, step); `augment` works on device.
"""

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ard_jax.data.base import ArrayDataset, DataError, Splits
from ard_jax.data.lazy_dataset import MAX_SIDE, LazyDataset, Reading
from ard_jax.data.sources import digits, image_folder, npz, tfds, tiny_imagenet
from ard_jax.data.split import check_seed, holdout_count, validation_indices

__all__ = [
    "MAX_SIDE", "ArrayDataset", "DataError", "LazyDataset", "Reading", "Splits", "known_shape", "load",
    "names", "reading_problems",
]  # fmt: skip

_MEMORY = Reading()
_DARK = 32  # of 255: a brightest pixel below it is rather one of another scale
_SEVERAL_CLASSES = 0.01  # share of the training images; real datasets have a few
_SMALL = ("digits", "npz")  # arrays already: nothing to decode
_FOLDERS = ("folder", "imagenet")
# name -> (loader of data_dir and reading, what data_dir must be; None where it may be left out)
_SOURCES: dict[str, tuple[Callable[..., Splits], str | None]] = {
    "digits": (lambda data_dir, reading: digits.load(), None),
    "cifar10": (functools.partial(tfds.load, "cifar10"), None),
    "cifar100": (functools.partial(tfds.load, "cifar100"), None),
    "tiny_imagenet": (tiny_imagenet.load, "the folder that contains wnids.txt, train/ and val/"),
    "imagenet": (image_folder.load, "the folder that contains train/ and val/, with class folders"),
    "folder": (image_folder.load, "a folder of class subfolders, or of train/ and test/"),
    "tfds": (tfds.load_directory, "the directory of a version that TFDS prepared"),
    "npz": (lambda data_dir, reading: npz.load(data_dir), "the path of an .npz file"),
}


def names() -> list[str]:
    """The data sets that `load` knows."""
    return list(_SOURCES)


_SHAPES = {
    "digits": (8, 8, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "tiny_imagenet": (64, 64, 3),
}


def known_shape(name: str, image_size: int = 0) -> tuple[int, int, int] | None:
    """(H, W, C at most) of the data set's images; None where only reading it tells.

    Raises:
      DataError: unknown name.
    """
    _check_name(name)
    return _SHAPES.get(name) or ((image_size, image_size, 3) if image_size else None)


def _check_name(name: str) -> None:
    if name not in names():
        raise DataError(f"data set {name!r} is unknown; choose one of {', '.join(names())}")


def reading_problems(name: str, reading: Reading) -> list[str]:
    """Why this data set cannot be read like this, one sentence each."""
    found = reading.problems()
    if reading.loader == "grain" and name in _SMALL:
        found.append(
            f"config.data.loader='grain': {name} is in memory at once; use config.data.loader=memory"
        )
    if reading.image_size and name not in (*_FOLDERS, "tfds"):
        found.append(
            f"config.data.image_size={reading.image_size}: {name} has images of one size; only those of "
            "a folder, imagenet or tfds are resized, use 0"
        )
    found += [
        f"config.data.{list_}={file} is for folders of images; leave it out"
        for list_, file in (("classes", reading.classes), ("test_files", reading.test_files))
        if file and name not in _FOLDERS
    ]
    if reading.class_order == "natural" and name not in _FOLDERS:
        found.append(
            f"config.data.class_order='natural': {name} brings the order of its classes; use 'text'"
        )
    return found


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    holdout: int | float = 0,
    seed: int = 0,
    reading: Reading = _MEMORY,
) -> Splits:
    """Loads a data set and checks all of it.

    With the loader "grain" it checks what it can without decoding: the list of files, their headers, and
    labels. A file that is damaged further in is named when it is first decoded.

    Of data of the user's own that are in memory it logs a warning where all training images are equal, or
    images of another split are training images too.

    Args:
      name: one of `names()`.
      data_dir: where it is. None for digits; CIFAR: the TFDS data directory (None: TFDS's own);
        tiny_imagenet, imagenet, folder: the folder; tfds: the directory of one prepared version; npz: the
        file.
      holdout: how many training images become the validation split: a number (int) or a fraction
        (float in (0, 1)), stratified by class; 0: no validation split. Where the data brings a
        validation split (folder with val/ and test/; npz with val_images) any other `holdout` than
        0 means that one, and nothing is taken out of train.
      seed: chooses the held-out images; integer in [0, 2**64). It never changes the test split.
      reading: into memory or as needed, and the size of a folder's images.

    Returns:
      Splits of uint8 NHWC images and int32 labels, in a fixed order (training batches are shuffled
      by `batching`); the same images in the same order whatever the loader.

    Raises:
      DataError: unknown name, missing data_dir, or data that cannot be used; one error, which names
        the file, the value and the fix.
      ValueError: `seed` is no such integer.
    """
    _check_name(name)
    source, needed = _SOURCES[name]
    if not isinstance(data_dir, str | os.PathLike | None):
        raise DataError(
            f"data_dir={data_dir!r} is {type(data_dir).__name__}; give a path as a string"
        )
    if not isinstance(reading, Reading):
        raise DataError(
            f"reading={reading!r} is {type(reading).__name__}; give a data.Reading(...)"
        )
    if name == "digits" and data_dir:
        raise DataError(f"data_dir={str(data_dir)!r}: digits come with a package; leave it out")
    if needed and not data_dir:
        raise DataError(f"data set {name!r} needs data_dir: {needed}")
    check_seed(seed)
    if problems := reading_problems(name, reading):
        raise DataError("; ".join(problems))
    splits = _divided(source(data_dir or None, reading), holdout, seed)
    if needed:
        _tell_of_odd_images(splits)
    return splits


def _divided(splits: Splits, holdout: int | float, seed: int) -> Splits:
    """The splits with the validation split that `load` promises for `holdout`."""
    train = splits.train
    if holdout_count(holdout, len(train), train.name) == 0:
        if splits.validation is not None:
            logging.warning(
                "%s: its own validation split of %d images is not used with holdout=0; any other holdout "
                "takes it",
                train.name,
                len(splits.validation),
            )
        return Splits(train, None, splits.test)
    if splits.validation is not None:
        return splits
    held = validation_indices(train.labels, holdout, seed, train.name)
    keep = np.setdiff1d(np.arange(len(train)), held)
    return Splits(train.subset(keep), train.subset(held, "validation"), splits.test)


def _tell_of_odd_images(splits: Splits) -> None:
    """Warns of images in memory that are dark, all equal, of two classes, or in two splits."""
    if not isinstance(splits.train, ArrayDataset):
        return
    brightest = int(splits.train.images.max(initial=0))
    if 0 < brightest < _DARK:
        logging.warning(
            "%s: the brightest pixel of the training images is %d of 255; are they in another unit?",
            splits.train.name,
            brightest,
        )
    known, several = {}, 0
    for image, label in zip(splits.train.images, splits.train.labels.tolist(), strict=True):
        several += known.setdefault(hash(image.tobytes()), label) != label
    if len(known) == 1 < len(splits.train):
        logging.warning(
            "%s: all %d training images are equal: are they whole?",
            splits.train.name,
            len(splits.train),
        )
        return
    if several > _SEVERAL_CLASSES * len(splits.train):
        logging.warning(
            "%s: %d of %d training images occur under another class too: which is theirs?",
            splits.train.name,
            several,
            len(splits.train),
        )
    if absent := set(range(splits.test.num_classes)) - set(splits.test.labels.tolist()):
        first = splits.test.class_names[min(absent)]
        logging.warning(
            "%s: no test image is of class %r (%d such classes): its accuracy is over the others alone",
            splits.test.name, first, len(absent),
        )  # fmt: skip
    earlier = {"training": set(known)}
    for part in filter(None, (splits.validation, splits.test)):
        found = [hash(image.tobytes()) for image in part.images]
        for where, there in earlier.items():
            if twice := sum(one in there for one in found):
                logging.warning(
                    "%s: %d of %d %s images are %s images too, so that its accuracy is not of new images",
                    part.name, twice, len(part), part.split, where,
                )  # fmt: skip
        earlier[part.split] = set(found)
