"""Images and labels out of one .npz file, for example the MedMNIST files.

Keys: train_images, train_labels, test_images, test_labels; optionally val_images and val_labels
(the validation split) and class_names (strings). Or images and labels alone: then 20 % of each
class is held out as the test split, always the same images. Other keys are ignored.
"""

from pathlib import Path

import numpy as np

from ard_jax.data.base import ArrayDataset, DataError, Splits
from ard_jax.data.split import hold_out_test

_PARTS = {"train": "train", "val": "validation", "test": "test"}  # prefix of the key -> split


def load(data_dir: str | Path) -> Splits:
    """The arrays of an .npz file.

    Images: [N,H,W,C] with C = 1 or 3, or [N,H,W]; uint8, or floating point in [0,1], which becomes
    round(255 v). Labels: integers [N] or [N,1], 0 to K-1, each with at least one training image.

    Args:
      data_dir: path of the .npz file.

    Returns:
      Splits of uint8 [N,H,W,C]; validation only where the file has val_images.

    Raises:
      DataError: no such file, not an .npz, a key is missing, or an array has an unusable type,
        shape or value.
    """
    path = Path(data_dir).expanduser()
    arrays = _read(path)
    if {"images", "labels"} & set(arrays):
        if len(set(arrays) - {"class_names"}) > 2:
            raise DataError(
                f"{path} has {sorted(set(arrays) - {'class_names'})}: it is either images and labels alone, "
                "or train_images, train_labels, test_images and test_labels; rename or remove arrays"
            )
        if "images" not in arrays:
            raise DataError(f"{path} has no array 'images', only 'labels'; add it")
        names = _class_names(path, arrays, "labels")
        return hold_out_test(_dataset(path, arrays, "", "train", names))
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        if key not in arrays:
            raise DataError(
                f"{path} has no array {key!r}, only {sorted(arrays)}; give train_images, "
                "train_labels, test_images and test_labels, or images and labels"
            )
    names = _class_names(path, arrays, "train_labels")
    made = {
        split: _dataset(path, arrays, f"{prefix}_", split, names)
        for prefix, split in _PARTS.items()
        if {f"{prefix}_images", f"{prefix}_labels"} & set(arrays)
    }
    return Splits(made["train"], made.get("validation"), made["test"])


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"data_dir {path} is not a file; give the path of an .npz file")
    wanted = {
        f"{p}{kind}" for p in ("", "train_", "val_", "test_") for kind in ("images", "labels")
    }
    arrays, key = {}, "its directory"
    try:
        with path.open("rb") as file:
            begin = file.read(6)
        if begin == b"\x93NUMPY":
            raise DataError(f"{path} is one array; save images and labels together by np.savez")
        if begin[:2] != b"PK":
            raise DataError(
                f"{path} is not an .npz file (it begins with {begin!r}); save the arrays by np.savez"
            )
        with np.load(path, allow_pickle=False) as stored:
            if not wanted.intersection(stored.files):
                raise DataError(
                    f"{path} has none of the arrays train_images, train_labels, test_images, test_labels, or "
                    f"images and labels; it has {', '.join(stored.files[:5]) or 'nothing'}; rename them"
                )
            for key in (wanted | {"class_names"}).intersection(stored.files):
                arrays[key] = stored[key]
        return arrays
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}); correct its permissions or write it again"
        ) from error
    except Exception as error:  # zipfile, zlib, struct, pickle refusal: many types
        raise DataError(
            f"{path}, {key}: cannot be read as an .npz file ({type(error).__name__}: {error}); it "
            "is truncated or holds objects: write it again by np.savez with plain arrays"
        ) from error


def _class_names(path: Path, arrays: dict[str, np.ndarray], key: str) -> tuple[str, ...]:
    """The given names, or the numbers; every class must have a training image."""
    labels = _labels(path, arrays, key)
    if labels.min() < 0:
        i = int(np.argmax(labels < 0))
        raise DataError(f"{path}: {key}[{i}] = {labels[i]}; labels are class numbers from 0 up")
    present = np.unique(labels)
    num = int(present[-1]) + 1
    if "class_names" in arrays:
        given = arrays["class_names"].ravel()
        names = tuple(
            map(str, np.char.decode(given, "utf-8") if given.dtype.kind == "S" else given)
        )
        if num > len(names):
            i = int(np.argmax(labels >= len(names)))
            raise DataError(
                f"{path}: {key}[{i}] = {labels[i]}, but class_names has {len(names)} names; labels "
                f"must be in 0..{len(names) - 1}"
            )
        num = len(names)
    if "class_names" in arrays and int(present[-1]) + 1 < num:
        raise DataError(
            f"{path}: class_names has {num} names but {key} runs up to {present[-1]}, so no image has class "
            f"{present[-1] + 1} ({names[present[-1] + 1]!r}); remove the names without images"
        )
    if len(present) < num:
        gap = next(i for i, c in enumerate([*present, -1]) if c != i)
        raise DataError(
            f"{path}: {key} runs up to {num - 1} but no image has class {gap} "
            f"({num - len(present)} such classes); labels must be 0..K-1 without gaps: "
            "renumber them, for example by np.unique(labels, return_inverse=True)[1]"
        )
    return names if "class_names" in arrays else tuple(str(c) for c in range(num))


def _labels(path: Path, arrays: dict[str, np.ndarray], key: str) -> np.ndarray:
    if key not in arrays:
        raise DataError(f"{path} has no array {key!r}, only {sorted(arrays)}; add it")
    labels = arrays[key]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if not labels.size:
        raise DataError(f"{path}: {key} is empty; give one integer class number per image, [N]")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: {key} is {labels.dtype} of shape {labels.shape}; give one integer class "
            "number per image, [N]"
        )
    return labels


def _dataset(
    path: Path, arrays: dict[str, np.ndarray], prefix: str, split: str, names: tuple[str, ...]
) -> ArrayDataset:
    key = f"{prefix}labels"
    labels = _labels(path, arrays, key)
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if outside.size:
        raise DataError(
            f"{path}: {key}[{outside[0]}] = {labels[outside[0]]} ({outside.size} such labels), but "
            f"train has the classes 0..{len(names) - 1}; correct the label, or add training images"
        )
    if (key := f"{prefix}images") not in arrays:
        raise DataError(f"{path} has no array {key!r}, only {sorted(arrays)}; add it")
    pixels = _images(path, arrays[key], key)
    return ArrayDataset(pixels, labels.astype(np.int32), names, str(path), split)


def _images(path: Path, images: np.ndarray, key: str) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(
            f"{path}: {key} has shape {images.shape}; give [N, H, W] or [N, H, W, C] with "
            "C = 1 or 3"
        )
    if np.issubdtype(images.dtype, np.floating):
        bad = np.flatnonzero(~((images >= 0) & (images <= 1)).reshape(len(images), -1).all(1))
        if bad.size:
            low, high = images[bad[0]].min(), images[bad[0]].max()
            raise DataError(
                f"{path}: {key}[{bad[0]}] has values from {low} to {high} ({bad.size} such "
                "images); floating-point images must be in [0, 1]: scale them, or give uint8"
            )
        scaled = np.round(images.astype(np.float32) * 255).astype(np.uint8)
        if scaled.max(initial=0) <= 1 and images.any():
            raise DataError(
                f"{path}: {key} is {images.dtype} and has no value above {images.max():.3g}, black in the "
                "range 0 to 1; give values up to 1 (pixels were divided by 255 twice), or uint8"
            )
        return scaled
    if images.dtype != np.uint8:
        raise DataError(
            f"{path}: {key} is {images.dtype}; give uint8 (.astype(np.uint8) if the values are 0 "
            "to 255) or floating point in [0, 1]"
        )
    if images.max(initial=0) == 1:
        raise DataError(
            f"{path}: {key} is uint8 and has no value above 1, black in the range 0 to 255; multiply by 255 "
            "before the cast to uint8, or give floating point in [0, 1]"
        )
    return images
