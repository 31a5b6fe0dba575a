"""What a dataset is: uint8 images and int32 labels in host memory, checked when it is made."""

import dataclasses
import zlib
from collections.abc import Iterable, Sequence, Set

import numpy as np

SPLITS = ("train", "validation", "test")


class DataError(ValueError):
    """Data that cannot be used: the message names the file (or array), the value and the fix."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayDataset:
    """One split of a data set, whole in host memory. Both arrays are read-only.

    Attributes:
      images: uint8 [N,H,W,C], C = 1 or 3.
      labels: int32 [N], each in [0, num_classes).
      class_names: the name of each class, in the order of the labels.
      name: of the data set, or the path it was read from; used in messages.
      split: "train", "validation" or "test".

    Raises:
      DataError: on construction, when one of the above does not hold.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    name: str
    split: str

    def __post_init__(self) -> None:
        """Checks everything that the class promises and makes the arrays read-only."""
        names = self.class_names
        if isinstance(names, str | Set) or not isinstance(names, Iterable):
            raise DataError(
                f"{self.name}: class_names={names!r}; give a tuple of a name for each class"
            )
        object.__setattr__(self, "class_names", tuple(names))
        check_split(self.split, self.name)
        check_classes(self.class_names, self.name)
        _check_images(self.images, f"{self.name} ({self.split}) images")
        check_labels(self.labels, self.class_names, f"{self.name} ({self.split}) labels")
        if len(self.images) != len(self.labels):
            raise DataError(
                f"{self.name} ({self.split}): {len(self.images)} images but {len(self.labels)} "
                "labels; give one label per image"
            )
        for field in ("images", "labels"):  # views: the caller's own arrays stay writeable
            view = getattr(self, field).view()
            view.flags.writeable = False
            object.__setattr__(self, field, view)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.images.shape[1:]

    @property
    def num_classes(self) -> int:
        """The number of classes, whether or not each of them has an example."""
        return len(self.class_names)

    def checksum(self) -> int:
        """CRC-32 of all pixels and labels: which data this is, wherever it was read from."""
        return zlib.crc32(self.labels.data, zlib.crc32(np.ascontiguousarray(self.images).data))

    def subset(self, indices: np.ndarray, split: str | None = None) -> "ArrayDataset":
        """The examples at `indices` (int [M]), in that order, as a new dataset.

        Raises:
          DataError: `indices` are no list of positions in it.
        """
        rows = positions(indices, len(self), self.name)
        return ArrayDataset(
            self.images[rows],
            self.labels[rows],
            self.class_names,
            self.name,
            split or self.split,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """The splits of one data set; same classes and image shape in each.

    Attributes:
      train: what networks are trained on.
      validation: held out of the training images to choose a checkpoint by, or None.
      test: what is reported.

    Raises:
      DataError: on construction, for something that is no split, or when classes or image shapes differ.
    """

    train: ArrayDataset
    validation: ArrayDataset | None
    test: ArrayDataset

    def __post_init__(self) -> None:
        """Looks at what they are, and compares the other splits with train."""
        given = {"train": self.train, "validation": self.validation, "test": self.test}
        for field, one in given.items():
            if not (hasattr(one, "image_shape") or field == "validation" and one is None):
                raise DataError(
                    f"{field} is {type(one).__name__}; give an ArrayDataset(images, labels, class_names, "
                    "name, split), or a split of data.load(...)"
                )
            if one is not None and one.split != field:
                raise DataError(
                    f"{field} is the {one.split} split of {one.name}; is it meant? Then give it as "
                    f"ArrayDataset(..., split={field!r})"
                )
        for other in filter(None, (self.validation, self.test)):
            if other.image_shape != self.train.image_shape:
                raise DataError(
                    f"{other.name}: {other.split} images are {other.image_shape} (H, W, C) but "
                    f"train images are {self.train.image_shape}; resize or convert one of them"
                )
            if other.class_names != self.train.class_names:
                raise DataError(
                    f"{other.name}: {other.split} has the classes {_short(other.class_names)} but train has "
                    f"{_short(self.train.class_names)}; give both the same list in the same order"
                )


def first(dataset: ArrayDataset, limit: int) -> ArrayDataset:
    """Returns `limit` examples, all of them when it is 0.

    Takes the first ones, or evenly spaced ones where the labels are in order, as those of a folder are.
    """
    if not limit or limit >= len(dataset):
        return dataset
    labels = dataset.labels
    ordered = labels[0] < labels[-1] and bool(np.all(np.diff(labels) >= 0))
    chosen = np.arange(limit) * len(dataset) // limit if ordered else np.arange(limit)
    return dataset.subset(chosen)


def positions(indices: np.ndarray, count: int, what: str) -> np.ndarray:
    """Positions int64 [M] in `count` examples that an index of NumPy means.

    Raises:
      DataError: it means none, or a single one.
    """
    try:
        rows, problem = np.arange(count)[indices], "it is no list"
    except IndexError as error:
        rows, problem = np.array(0), str(error)
    if rows.ndim != 1:
        raise DataError(
            f"{what}: subset takes a list of positions, 0 to {count - 1}, not {indices!r:.40}: {problem}"
        )
    return rows


def _check_images(images: np.ndarray, what: str) -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{what} are {kind}; give a numpy array of uint8, values 0 to 255")
    if images.ndim != 4:
        raise DataError(f"{what} have shape {images.shape}; give [N, H, W, C]")
    if images.shape[-1] not in (1, 3):
        raise DataError(
            f"{what} have shape {images.shape}, so {images.shape[-1]} channels; give [N, H, W, C] "
            "with C = 1 (gray) or 3 (RGB)"
        )
    if 0 in images.shape:
        raise DataError(f"{what} have shape {images.shape}: there is nothing in them")


def check_split(split: str, what: str) -> None:
    """Raises DataError for a split of another name than those of `Splits`."""
    if split not in SPLITS:
        raise DataError(
            f"{what}: split={split!r} does not exist; choose one of {', '.join(SPLITS)}"
        )


def check_classes(names: tuple[str, ...], what: str) -> None:
    """Raises DataError unless there are at least two classes, and no two of one name."""
    if len(names) < 2:
        raise DataError(f"{what} has {len(names)} class; there must be at least two: add another")
    if other := [name for name in names if not isinstance(name, str)]:
        raise DataError(
            f"{what}: a class is called {other[0]!r} ({type(other[0]).__name__}); give texts, such as "
            f"{str(other[0])!r}"
        )
    if len(set(names)) < len(names):
        twin = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"{what}: {names.count(twin)} classes are called {twin!r}; give each a name of its own"
        )


def class_mismatch(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """How a network's class names differ from the data's, and what to do; "" if they agree.

    Classes that one of the two only numbers agree with any names.
    """
    theirs, ours = list(theirs), list(ours)
    reordered = sorted(theirs) == sorted(ours)
    numbers = [str(i) for i in range(len(ours))]
    unnamed = len(theirs) != len(ours) or numbers in (theirs, ours) and not reordered
    if theirs == ours or unnamed:
        return ""
    i = next(i for i, (one, other) in enumerate(zip(theirs, ours, strict=True)) if one != other)
    text = f"class {i} is {theirs[i]!r} in the network and {ours[i]!r} in the data"
    if reordered:
        text += (
            ", the same classes in another order: sort them as for its training, by config.data.class_order "
            "or the data's own list"
        )
        return text + ", or import it again with --config" if theirs == numbers else text
    return f"{text}: rename the data's classes, or give a network that was trained on these"


def check_labels(labels: np.ndarray, class_names: tuple[str, ...], what: str) -> None:
    """Raises DataError unless the labels are int32 [N] in 0..K-1; `what` names them."""
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int32:
        kind = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise DataError(f"{what} are {kind}; give a numpy array of int32 (.astype(np.int32))")
    if labels.ndim != 1:
        raise DataError(f"{what} have shape {labels.shape}; give one class number per image, [N]")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if wrong.size:
        raise DataError(
            f"{what}[{wrong[0]}] = {labels[wrong[0]]} ({wrong.size} such labels); labels must be "
            f"in 0..{len(class_names) - 1}, as there are {len(class_names)} classes"
        )


def _short(names: tuple[str, ...]) -> str:
    return f"{len(names)} [{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}]"
