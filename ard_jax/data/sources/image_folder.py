"""Any folder of class subfolders of PNG, JPEG, BMP, WebP or PPM images, of one size or made so.

    <dir>/train/<class>/*  and  <dir>/test/<class>/*  (or val/ in place of test/)
    <dir>/train/, val/ and test/: val/ is the validation split
    <dir>/<class>/*: 20 % of each class is held out as the test split, always the same images

Labels are the positions of the class names in alphabetical order.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ard_jax.data import image_decoding
from ard_jax.data.base import ArrayDataset, DataError, Splits
from ard_jax.data.lazy_dataset import Reading
from ard_jax.data.sources.image_files import Groups, file_splits, survey
from ard_jax.data.split import hold_out_test

_MEMORY = Reading()


def load(data_dir: str | Path, reading: Reading = _MEMORY) -> Splits:
    """The images of a folder. RGB stays RGB, gray stays gray, unless `reading.image_size` is given.

    With the loader "grain" only the headers of the files are read here (kept in the cache for the next
    start), so an image that is damaged further in is found when it is first decoded.

    Args:
      data_dir: the folder, in one of the layouts above.
      reading: into memory or from disk as needed, and the images' size.

    Returns:
      Splits of uint8 [N,H,W,C]; validation only where the folder has train/, val/ and test/.

    Raises:
      DataError: no such folder, a class of test or val that train lacks or the reverse, an empty
        class folder, a damaged image, or without an image size images of several sizes or numbers of
        channels.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise DataError(f"data_dir {root} is not a directory; give a folder of class subfolders")
    parts = {part for part in ("train", "test", "val") if (root / part).is_dir()}
    if "train" not in parts and parts:
        raise DataError(
            f"{root} contains {' and '.join(sorted(parts))}/ but no train/; add train/<class>/*"
        )
    if parts == {"train"}:
        raise DataError(
            f"{root} contains train/ but neither test/ nor val/; add one, or give "
            f"data_dir={root / 'train'} to have 20 % of it held out as the test split"
        )
    if not parts:
        classes = _class_folders(root)
        whole = _read(root, {"train": _list(root, classes)}, classes, reading)
        return hold_out_test(whole["train"])
    classes = _class_folders(root / "train")
    for part in sorted(parts - {"train"}):
        _compare(root, part, classes)
    folders = {"train": "train", "test": "test" if "test" in parts else "val"}
    if {"test", "val"} <= parts:
        folders["validation"] = "val"
    groups = {split: _list(root / folder, classes) for split, folder in folders.items()}
    made = _read(root, groups, classes, reading)
    return Splits(made["train"], made.get("validation"), made["test"])


def _class_folders(directory: Path) -> list[str]:
    classes = sorted(
        entry.name
        for entry in directory.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if len(classes) < 2:
        raise DataError(
            f"{directory} contains {len(classes)} class folders ({', '.join(classes) or 'none'}); "
            "there must be one folder per class, at least two"
        )
    return classes


def _compare(root: Path, part: str, classes: list[str]) -> None:
    """The classes of `part` must be those of train."""
    own = set(_class_folders(root / part))
    if extra := sorted(own - set(classes)):
        raise DataError(
            f"{root / part / extra[0]} is a class that {root / 'train'} does not have; add "
            "training images of it, or remove it"
        )
    if missing := sorted(set(classes) - own):
        raise DataError(
            f"{root / part / missing[0]} does not exist, but train/ has that class; add {part} "
            "images of it, or remove it from train/"
        )


def _list(directory: Path, classes: list[str]) -> tuple[list[Path], np.ndarray]:
    per_class = [image_decoding.list_images(directory / name) for name in classes]
    labels = np.repeat(np.arange(len(classes)), [len(group) for group in per_class])
    return [file for group in per_class for file in group], labels.astype(np.int32)


def _read(root: Path, groups: Groups, classes: list[str], reading: Reading) -> dict[str, Any]:
    """{split: dataset}."""
    if reading.loader == "grain":
        return file_splits(root, groups, classes, str(root), reading)
    size, rgb, made = reading.image_size, False, {}
    if size:
        _, rgb = survey(root, [file for files, _ in groups.values() for file in files], size)
    for split, (files, labels) in groups.items():
        pixels = image_decoding.decode_all(files, [str(file) for file in files], rgb, size)
        made[split] = ArrayDataset(pixels, labels, tuple(classes), str(root), split)
    return made
