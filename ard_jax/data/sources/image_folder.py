"""Any folder of class subfolders of images that PIL reads, of one size or made so.

    <dir>/train/<class>/*  and  <dir>/test/<class>/*  (or val/ in place of test/)
    <dir>/train/, val/ and test/: val/ is the validation split
    <dir>/<class>/*: 20 % of each class is held out as the test split, always the same images

The splits may also be called training, testing, and valid, validation or dev. Labels are the positions of
the class names in alphabetical order, or with `class_order="natural"` 2 comes before 10. A list of classes
makes a part of a data set, such as ImageNet-100, of its folder; a list of files a part of its test split.
"""

import collections
import logging
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ard_jax.data import image_decoding
from ard_jax.data.base import ArrayDataset, DataError, Splits
from ard_jax.data.lazy_dataset import Reading
from ard_jax.data.sources.image_files import (
    Groups,
    file_splits,
    is_visible_folder,
    passed_over,
    survey,
)
from ard_jax.data.split import hold_out_test

_MEMORY = Reading()
# Lists of classes that have a name. That of ImageNet-100 is Tian et al.'s (2020, ECCV, arXiv 1906.05849), by
# name; other papers have other hundreds of ImageNet's classes.
_LISTS = {"imagenet100": Path(__file__).with_name("imagenet100.txt")}
# split -> what its folder may be called, in either case.
_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation", "dev"),
}


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
        class folder, an image that is damaged or that `image_decoding.decode` refuses, or without an
        image size images of several sizes or numbers of channels.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise DataError(f"data_dir {root} is not a directory; give a folder of class subfolders")
    parts = _split_folders(root)
    wanted = _lines(reading.classes, "classes") if reading.classes else None
    if reading.test_files and not set(parts) - {"train"}:
        raise DataError(
            f"test_files={reading.test_files}: {root} has no test/ or val/ that they could be of"
        )
    if "train" not in parts and parts:
        raise DataError(
            f"{root} contains {' and '.join(sorted(f.name for f in parts.values()))}/ but no train/; add "
            "train/<class>/*"
        )
    if set(parts) == {"train"}:
        raise DataError(
            f"{root} contains {parts['train'].name}/ but neither test/ nor val/; add one, or give "
            f"data_dir={parts['train']} to have 20 % of it held out as the test split"
        )
    if not parts:
        classes = _class_folders(root, reading.class_order, wanted)
        whole = _read(
            root, {"train": _list(root, classes, "train and test", bool(wanted))}, classes, reading
        )
        return hold_out_test(whole["train"])
    classes = _class_folders(parts["train"], reading.class_order, wanted)
    for part in set(parts) - {"train"}:
        _compare(parts["train"], parts[part], classes, wanted)
    if "test" not in parts:
        parts["test"] = parts.pop("validation")
    groups = {split: _list(folder, classes, split, bool(wanted)) for split, folder in parts.items()}
    if reading.test_files:
        groups["test"] = _chosen(reading.test_files, parts["test"], *groups["test"])
    made = _read(root, groups, classes, reading)
    return Splits(made["train"], made.get("validation"), made["test"])


def _split_folders(root: Path) -> dict[str, Path]:
    """Returns split -> its folder; {} where there is none."""
    folders = [e for e in image_decoding.entries(root) if is_visible_folder(e)]
    found = {}
    for split, names in _SPLITS.items():
        if here := [e.name for e in folders if e.name.lower() in names]:
            if here[1:]:
                raise DataError(
                    f"{root} contains {' and '.join(here)}, which all mean the {split} split; keep one"
                )
            found[split] = root / here[0]
    strays = {e.name for e in folders} - {folder.name for folder in found.values()}
    if strays and found:
        logging.warning("%s: passed over the folder(s) %s", root, ", ".join(sorted(strays)))
    return found


def _lines(path: str, what: str) -> list[str]:
    """The lines of a list that are not empty.

    Raises:
      DataError: the file cannot be read, is empty, or says something twice.
    """
    file = _LISTS.get(path) or Path(path).expanduser()
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{what}={path} cannot be read ({error}); give a text file") from error
    found = [line for line in lines if line]
    if not found:
        raise DataError(f"{what}={path} is empty; write one a line")
    if twice := [line for line, count in collections.Counter(found).items() if count > 1]:
        raise DataError(f"{what}={path} has {twice[0]!r} twice; remove one")
    return found


def _chosen(
    path: str, folder: Path, files: list[Path], labels: np.ndarray
) -> tuple[list[Path], np.ndarray]:
    """The files and labels of a list, in its order.

    Raises:
      DataError: it names a file that is not there.
    """
    known = {file.relative_to(folder).as_posix(): i for i, file in enumerate(files)}
    wanted = _lines(path, "test_files")
    if missing := [name for name in wanted if name not in known]:
        raise DataError(
            f"test_files={path} names {missing[0]!r}{_and_others(missing)}, which {folder} does not "
            f"have; its files are such as {next(iter(known))!r}"
        )
    rows = [known[name] for name in wanted]
    return [files[i] for i in rows], labels[rows]


def _and_others(names: list[str]) -> str:
    return f" and {len(names) - 1} others" if names[1:] else ""


def _class_folders(directory: Path, order: str, wanted: list[str] | None = None) -> list[str]:
    classes = [e.name for e in image_decoding.entries(directory) if is_visible_folder(e)]
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{directory}: the class folder {os.fsencode(name)!r} has a name that is not UTF-8; rename it"
            ) from None
    if len(classes) < 2:
        raise DataError(
            f"{directory} contains {len(classes)} class folders ({', '.join(classes) or 'none'}); "
            f"there must be one folder per class, at least two{_nested(directory, classes)}"
        )
    if order == "natural":
        classes.sort(key=_natural)
    if wanted is None:
        return classes
    if missing := [name for name in wanted if name not in set(classes)]:
        raise DataError(
            f"the list of classes names {missing[0]!r}{_and_others(missing)}, but {directory} has no such "
            f"folder; its folders are {', '.join(classes[:3])}, ..."
        )
    if len(wanted) < 2:
        raise DataError(f"the list of classes has {len(wanted)}; there must be at least two")
    return wanted


def _nested(directory: Path, folders: list[str]) -> str:
    """Says which folder to give where the only one holds the splits; "" where it does not."""
    inner = [
        f for f in folders if any((directory / f / name).is_dir() for name in _SPLITS["train"])
    ]
    return f"; give data_dir={directory / inner[0]}" if inner else ""


def _natural(name: str) -> list[str | int]:
    """A key that compares runs of digits as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def _looks_alike(name: str, others: Iterable[str]) -> str:
    """Says of which other name this one can hardly be told; "" if of none."""

    def shown(text: str) -> str:
        return unicodedata.normalize("NFKC", text).casefold().strip()

    if not (same := [other for other in others if shown(other) == shown(name)]):
        return ""
    return (
        f"; {same[0]!a} there differs from {name!a} here only by case, spaces or the form of a letter: is it "
        "the same class? Then rename it"
    )


def _compare(train: Path, other: Path, classes: list[str], wanted: list[str] | None) -> None:
    """The classes of the other split must be those of train, or those that are wanted."""
    own = set(_class_folders(other, "text", wanted))
    if extra := sorted(own - set(classes)):
        raise DataError(
            f"{other / extra[0]} is a class that {train} does not have; add "
            f"training images of it, or remove it{_looks_alike(extra[0], classes)}"
        )
    if missing := sorted(set(classes) - own):
        raise DataError(
            f"{other / missing[0]} does not exist, but {train.name}/ has that class; add {other.name} "
            f"images of it, or remove it from {train.name}/"
        )


def _list(
    directory: Path, classes: list[str], split: str, some: bool
) -> tuple[list[Path], np.ndarray]:
    """Files and labels of a split; logs what is not read, and names that differ only by case.

    `some`: whether the folder may have other classes.
    """
    listed = [image_decoding.list_images(directory / name) for name in classes]
    groups = [files for files, _ in listed]
    known = set(classes)
    strays = [
        e
        for e in image_decoding.entries(directory)
        if e.name not in known and not (some and is_visible_folder(e))
    ]
    notes = passed_over(strays, [entry for _, others in listed for entry in others])
    for what, names in (("class", classes), *(("file", [f.name for f in g]) for g in groups)):
        counts = collections.Counter(name.lower() for name in names)
        if twins := [name for name in names if counts[name.lower()] > 1]:
            notes.append(f"{what} names differ only by case: {', '.join(twins[:4])}")
    files = [file for group in groups for file in group]
    if notes:
        logging.warning(
            "%s (%s): read %d images in %d classes; %s",
            directory, split, len(files), len(classes), "; ".join(notes),
        )  # fmt: skip
    return files, np.repeat(np.arange(len(classes)), [len(g) for g in groups]).astype(np.int32)


def _read(root: Path, groups: Groups, classes: list[str], reading: Reading) -> dict[str, Any]:
    """{split: dataset}."""
    if reading.loader == "grain":
        return file_splits(root, groups, classes, str(root), reading)
    size, rgb, made = reading.image_size, False, {}
    if size:
        _, rgb = survey(root, [file for files, _ in groups.values() for file in files], size)
    for split, (files, labels) in groups.items():
        names = [str(file) for file in files]
        pixels = image_decoding.decode_all(files, names, rgb, size, reading.resize)
        made[split] = ArrayDataset(pixels, labels, tuple(classes), str(root), split)
    return made
