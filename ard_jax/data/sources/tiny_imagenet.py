"""Tiny-ImageNet (200 classes, 64x64) from its official folder layout.

    wnids.txt                      the class ids, one a line
    words.txt                      id <tab> name, for all of WordNet; optional, only for class names
    train/<wnid>/images/*.JPEG
    val/images/*.JPEG and val/val_annotations.txt (file <tab> wnid <tab> box)
    or, as some releases have it, val/<wnid>/images/*.JPEG or val/<wnid>/*.JPEG

The labels of the official test part were never published, so the official val part is the test
split here, as in the papers; validation is held out of train. Labels are the positions of the wnids
in alphabetical order, which is what torchvision's ImageFolder gives, and so what networks trained
elsewhere predict; wnids.txt has another order. Grayscale JPEGs (a few are) become RGB.
"""

import logging
from pathlib import Path

import numpy as np

from ard_jax.data import image_decoding
from ard_jax.data.base import ArrayDataset, DataError, Splits
from ard_jax.data.lazy_dataset import Reading
from ard_jax.data.sources.image_files import file_splits, is_visible_folder, passed_over

_MEMORY = Reading()
_Listing = list[tuple[Path, str]]  # (file, wnid)


def load(data_dir: str | Path, reading: Reading = _MEMORY) -> Splits:
    """Tiny-ImageNet.

    Args:
      data_dir: the folder that contains wnids.txt, usually named tiny-imagenet-200.
      reading: into memory or from disk as needed.

    Returns:
      Splits of uint8 [N,64,64,3] images; test is the official val part; no validation split.

    Raises:
      DataError: a file or class is missing, unknown or empty, or an image is damaged or of another
        size than the others.
    """
    root = Path(data_dir).expanduser()
    wnids = _read_wnids(root)
    train = _list_folders(root / "train", wnids)
    test = _list_val(root / "val", wnids)
    names = _class_names(root, wnids)
    label = {wnid: i for i, wnid in enumerate(wnids)}
    what = f"tiny_imagenet in {root}"
    groups = {
        split: ([f for f, _ in listing], np.array([label[w] for _, w in listing], np.int32))
        for split, listing in (("train", train), ("test", test))
    }
    if reading.loader == "grain":
        made = file_splits(root, groups, names, what, reading, rgb=True)
        return Splits(made["train"], None, made["test"])
    files = [file for listed, _ in groups.values() for file in listed]
    pixels, n = (
        image_decoding.decode_all(files, [str(file) for file in files], rgb=True),
        len(train),
    )
    return Splits(
        train=ArrayDataset(pixels[:n], groups["train"][1], names, what, "train"),
        validation=None,
        test=ArrayDataset(pixels[n:], groups["test"][1], names, what, "test"),
    )


def _read_wnids(root: Path) -> list[str]:
    path = root / "wnids.txt"
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; data_dir must be the folder tiny-imagenet-200 that contains "
            "wnids.txt, train/ and val/ (http://cs231n.stanford.edu/tiny-imagenet-200.zip)"
        )
    wnids = path.read_text(errors="replace").split()
    if not wnids or len(set(wnids)) < len(wnids):
        twice = next((w for w in wnids if wnids.count(w) > 1), None)
        problem = f"names {twice} twice" if twice else "is empty"
        raise DataError(f"{path} {problem}; it must name each class id once: restore the original")
    return sorted(wnids)


def _class_names(root: Path, wnids: list[str]) -> tuple[str, ...]:
    """The first word of each class in words.txt; the wnid where it has none or shares it."""
    path = root / "words.txt"
    text = path.read_text(errors="replace") if path.is_file() else ""
    words = dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    first = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    return tuple(
        f"{word} ({wnid})" if first.count(word) > 1 else word
        for word, wnid in zip(first, wnids, strict=True)
    )


def _list_folders(directory: Path, wnids: list[str]) -> _Listing:
    """The images of a folder of class folders, by class and name."""
    if not directory.is_dir():
        raise DataError(f"{directory} does not exist; data_dir must have train/ and val/")
    folders = filter(is_visible_folder, image_decoding.entries(directory))
    present = {entry.name for entry in folders} - {"images"}
    if unknown := sorted(present - set(wnids)):
        raise DataError(
            f"{directory / unknown[0]} is a class that wnids.txt does not list ({len(unknown)} "
            "such folders); remove it, or add it to wnids.txt"
        )
    if missing := sorted(set(wnids) - present):
        raise DataError(
            f"{directory / missing[0]} does not exist, but wnids.txt lists that class "
            f"({len(missing)} such classes); restore the folder, or remove the class from wnids.txt"
        )
    listing, strays = [], []
    for wnid in wnids:
        inner = directory / wnid / "images"
        folder = inner if inner.is_dir() else directory / wnid
        files, others = image_decoding.list_images(folder)
        listing += [(file, wnid) for file in files]
        if folder == inner:  # beside it lie boxes
            others += [
                e
                for e in image_decoding.entries(directory / wnid)
                if image_decoding.is_image_name(e.name)
            ]
        strays += others
    if notes := passed_over((), strays):
        logging.warning("%s: read %d images; %s", directory, len(listing), notes[0])
    return listing


def _list_val(directory: Path, wnids: list[str]) -> _Listing:
    annotations = directory / "val_annotations.txt"
    flat = directory / "images"
    if not flat.is_dir() or not any(flat.iterdir()):
        return _list_folders(directory, wnids)
    if not annotations.is_file():
        raise DataError(f"{annotations} does not exist; it gives the class of {directory}/images/*")
    listing = []
    for number, line in enumerate(annotations.read_text(errors="replace").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in wnids:
            raise DataError(
                f"{annotations} line {number} is {line!r}; it must be 'file<tab>class id<tab>box' "
                "with a class id that wnids.txt lists: restore the original file"
            )
        listing.append((directory / "images" / fields[0], fields[1]))
    listed = {file for file, _ in listing}
    on_disk = set(image_decoding.list_images(directory / "images")[0])
    for strays, problem in (
        (listed - on_disk, f"does not exist, but {annotations.name} lists it"),
        (on_disk - listed, f"is not listed in {annotations.name}, so its class is unknown"),
    ):
        if strays:
            raise DataError(
                f"{min(strays)} {problem} ({len(strays)} such images); restore the original files"
            )
    if missing := sorted(set(wnids) - {wnid for _, wnid in listing}):
        raise DataError(
            f"{annotations} lists no image of class {missing[0]}, which wnids.txt lists "
            f"({len(missing)} such classes); restore it, or remove the class from wnids.txt"
        )
    return listing
