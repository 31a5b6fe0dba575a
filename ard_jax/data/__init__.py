"""Data: `load` gives the splits of a data set as uint8 arrays in host memory.

`pipeline` makes batches of them, as a pure function of (seed, step); `augment` works on device.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ard_jax.data import digits, image_folder, npz_source, tfds_source, tiny_imagenet
from ard_jax.data.base import ArrayDataset, DataError, Splits
from ard_jax.data.split import check_seed, holdout_count, validation_indices

__all__ = ["ArrayDataset", "DataError", "Splits", "load", "names"]

# name -> (loader of data_dir, what data_dir must be; None where it may be left out)
_SOURCES: dict[str, tuple[Callable[..., Splits], str | None]] = {
    "digits": (lambda data_dir: digits.load(), None),
    "cifar10": (lambda data_dir: tfds_source.load("cifar10", data_dir), None),
    "cifar100": (lambda data_dir: tfds_source.load("cifar100", data_dir), None),
    "tiny_imagenet": (tiny_imagenet.load, "the folder that contains wnids.txt, train/ and val/"),
    "folder": (image_folder.load, "a folder of class subfolders, or of train/ and test/"),
    "npz": (npz_source.load, "the path of an .npz file"),
}


def names() -> list[str]:
    """The data sets that `load` knows."""
    return list(_SOURCES)


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    holdout: int | float = 0,
    seed: int = 0,
) -> Splits:
    """Loads a data set and checks all of it.

    Args:
      name: one of `names()`.
      data_dir: where it is. digits ignores it; CIFAR: the TFDS data directory (None: TFDS's own);
        tiny_imagenet, folder: the folder; npz: the file.
      holdout: how many training images become the validation split: a number (int) or a fraction
        (float in (0, 1)), stratified by class; 0: no validation split. Where the data brings a
        validation split (folder with val/ and test/; npz with val_images) any other `holdout` than
        0 means that one, and nothing is taken out of train.
      seed: chooses the held-out images; integer in [0, 2**64). It never changes the test split.

    Returns:
      Splits of uint8 NHWC images and int32 labels, in a fixed order (training batches are shuffled
      by `pipeline`).

    Raises:
      DataError: unknown name, missing data_dir, or data that cannot be used; one error, which names
        the file, the value and the fix.
      ValueError: `seed` is no such integer.
    """
    if name not in _SOURCES:
        raise DataError(f"data set {name!r} is unknown; choose one of {', '.join(names())}")
    source, needed = _SOURCES[name]
    if needed and not data_dir:
        raise DataError(f"data set {name!r} needs data_dir: {needed}")
    check_seed(seed)
    splits = source(data_dir or None)
    train = splits.train
    if holdout_count(holdout, len(train), train.name) == 0:
        return Splits(train, None, splits.test)
    if splits.validation is not None:
        return splits
    held = validation_indices(train.labels, holdout, seed, train.name)
    keep = np.setdiff1d(np.arange(len(train)), held)
    return Splits(train.subset(keep), train.subset(held, "validation"), splits.test)
