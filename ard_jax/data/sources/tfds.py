"""Directories that TensorFlow Datasets prepared, without TensorFlow: CIFAR-10, CIFAR-100 and any other.

TFDS reads array_record files without TensorFlow, but prepares (downloads and converts) with it. The
order is not TFDS's shuffled one but that of the original archives, which TFDS stores as `id`
(train_00000, ...), so example i here is example i of torchvision.
"""

import dataclasses
import importlib.util
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from ard_jax.data import image_decoding
from ard_jax.data.base import ArrayDataset, DataError, Splits
from ard_jax.data.lazy_dataset import LazyDataset, Reading
from ard_jax.data.sources.tfds_records import Records, open_split
from ard_jax.io import cache_folder

_MEMORY = Reading()
NAMES = ("cifar10", "cifar100")


def load(name: str, data_dir: str | Path | None = None, reading: Reading = _MEMORY) -> Splits:
    """CIFAR-10 or CIFAR-100 (fine labels). Directories with fewer examples are fine.

    The decoded arrays are cached (see `cache_folder.cache_dir`), as decoding takes some seconds.

    Args:
      name: "cifar10" or "cifar100".
      data_dir: TFDS data directory, the one that contains `<name>/<version>/`. None: TFDS's own
        ($TFDS_DATA_DIR or ~/tensorflow_datasets).
      reading: into memory or from disk as needed.

    Returns:
      Splits of uint8 [N,32,32,3] images; no validation split.

    Raises:
      DataError: not prepared while TensorFlow is not installed (the message has the command), or a
        file is missing or damaged.
    """
    directory = _prepared_directory(name, root_of(data_dir))
    return _load(directory, {"train": "train", "test": "test"}, reading)


def load_directory(data_dir: str | Path, reading: Reading = _MEMORY) -> Splits:
    """Any prepared data set with the features image and label, for example imagenet_resized/64x64.

    Examples are in the order of their `id`, or as stored where they have none.

    Args:
      data_dir: the directory of one version, which contains dataset_info.json.
      reading: into memory or from disk as needed; image_size where images have several sizes.

    Returns:
      Splits of uint8 [N,H,W,C]: train; test, or where there is none validation; no validation split.

    Raises:
      DataError: no such directory, no array_record files, a split or feature is missing, images of
        several sizes without an image size, or a file is damaged.
    """
    directory = Path(data_dir).expanduser()
    info = directory / "dataset_info.json"
    if not info.is_file():
        raise DataError(
            f"{info} does not exist; data_dir must be the directory of one prepared version, for example "
            "~/tensorflow_datasets/imagenet_resized/64x64/0.1.0"
        )
    if (kind := _format(info, "prepare it again")) != "array_record":
        raise DataError(
            f"{directory} is prepared as {kind or 'tfrecord'}, which cannot be read without TensorFlow; "
            "prepare it again with file_format='array_record'"
        )
    names = {split["name"] for split in json.loads(info.read_text()).get("splits", ())}
    test = next((name for name in ("test", "validation") if name in names), None)
    if "train" not in names or test is None:
        raise DataError(f"{directory} has the splits {sorted(names)}; it must have train and test")
    return _load(directory, {"train": "train", "test": test}, reading)


def _load(directory: Path, wanted: dict[str, str], reading: Reading) -> Splits:
    """`wanted`: our split -> TFDS's."""
    import tensorflow_datasets as tfds

    again = f"delete {directory} and prepare it again"
    try:
        builder = tfds.builder_from_directory(directory)
        infos = {split: builder.info.splits[name] for split, name in wanted.items()}
        features = cast(Any, builder.info.features)
        class_names = tuple(features["label"].names)
        shape = features["image"].shape
        if builder.name in NAMES:
            again += f":\n  {prepare_command(builder.name, directory.parents[1])}"
    except Exception as error:
        raise DataError(
            f"{directory}: dataset_info.json or features.json cannot be used, or lacks the features image "
            f"and label ({error}); {again}"
        ) from error
    if size := reading.image_size:
        shape = (size, size, shape[-1])
    elif None in shape:
        raise DataError(
            f"{directory}: its images have no one size; give one by config.data.image_size"
        )
    made = {}
    for split, info in infos.items():
        opened = _Split(builder, directory, info, shape, bool(size), reading.resize, again)
        what = f"{builder.name} in {directory}"
        rest = (class_names, what, split)
        if reading.loader == "grain":
            made[split] = LazyDataset(*opened.listed(), *rest, reading)
        else:
            made[split] = ArrayDataset(*opened.arrays(), *rest)
    return Splits(made["train"], None, made["test"])


def root_of(data_dir: str | Path | None) -> Path:
    """The TFDS data directory: the one given, else TFDS's own."""
    if data_dir is not None:
        return Path(data_dir).expanduser()
    from tensorflow_datasets.core import constants

    return Path(constants.DATA_DIR).expanduser()


def prepare_command(name: str, root: Path) -> str:
    """The shell command that prepares the data set."""
    call = (
        f"tfds.builder({name!r}, data_dir={str(root)!r}, file_format='array_record')"
        ".download_and_prepare()"
    )
    return (
        f"pip install 'ard_jax[tfds]' && python -c \"import tensorflow_datasets as tfds; {call}\""
    )


def _prepared_directory(name: str, root: Path) -> Path:
    """The newest prepared version below `root`, prepared now if it can be."""
    if (found := find(name, root)) is not None:
        return found
    command = prepare_command(name, root)
    if (root / "dataset_info.json").exists():
        raise DataError(
            f"data_dir {root} is one prepared data set; give the directory that contains {name}/, "
            f"here probably {root.parent.parent}"
        )
    if importlib.util.find_spec("tensorflow") is None:
        state = f"{name} is not prepared in it" if root.is_dir() else "there is no such directory"
        raise DataError(
            f"data_dir {root}: {state}. Correct the path, or prepare it once, which needs "
            f"TensorFlow, by\n  {command}"
        )
    if not root.is_dir() and root != root_of(None):  # a mistyped path must not start a download
        raise DataError(
            f"data_dir {root}: there is no such directory. Correct the path, or make it "
            f"(mkdir -p {root}) to have {name} downloaded into it"
        )
    _prepare(name, root, command)
    if (found := find(name, root)) is None:
        raise DataError(
            f"data_dir {root}: preparing {name} left no array_record files; try\n  {command}"
        )
    return found


def find(name: str, root: Path) -> Path | None:
    """The newest prepared version of `name` below a TFDS data directory; None where there is none."""
    found, other = [], {}
    for info in root.glob(f"{name}/*/dataset_info.json"):
        kind = _format(info, f"prepare it again:\n  {prepare_command(name, root)}")
        if kind == "array_record":
            found.append(info.parent)
        else:
            other[info.parent] = kind or "tfrecord"
    if other and not found:
        directory, kind = other.popitem()
        raise DataError(
            f"{directory} is prepared as {kind}, which cannot be read without TensorFlow; give "
            f"another data_dir, or delete that directory and run\n  {prepare_command(name, root)}"
        )

    def version(path: Path) -> list[int]:
        return [int(number) for number in path.name.split(".") if number.isdigit()]

    return max(found, key=version, default=None)


def _format(info: Path, again: str) -> str:
    try:
        return json.loads(info.read_text()).get("fileFormat")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{info} cannot be read ({error}); delete {info.parent} and {again}"
        ) from error


def _prepare(name: str, root: Path, command: str) -> None:
    import tensorflow_datasets as tfds

    logging.info("preparing %s in %s (once)", name, root)
    try:
        builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:
        raise DataError(
            f"data_dir {root}: {name} could not be prepared ({type(error).__name__}: {error}); "
            f"the command, to try it apart, is\n  {command}"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Split:
    """One split of a prepared directory, from which either kind of dataset is made."""

    builder: Any
    directory: Path
    info: Any
    shape: tuple[int, int, int]
    resized: bool
    resize: int
    again: str

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels."""
        size = f"-{self.shape[0]}px" if self.resized else ""
        size += f"-of-{self.resize}px" if self.resize else ""
        found = self._cached(size, {"images", "labels"}, lambda: _decode_split(self))
        return found["images"], found["labels"]

    def listed(self) -> tuple[Records, np.ndarray, np.ndarray]:
        """Source, rows and labels; all records are read once, to know the order and the labels."""
        found = self._cached("-index", {"order", "labels"}, lambda: _index_split(self))
        order = found["order"]
        source = Records(
            self.directory, self.info.name, order, self.shape, self.resized, tuple(self.files()),
            self.resize,
        )  # fmt: skip
        return source, np.arange(len(order)), found["labels"]

    def files(self) -> list[Path]:
        """The split's shards."""
        return [self.directory / file for file in self.info.filenames]

    def _cached(self, suffix: str, keys: set[str], build: Callable[[], cache_folder.Arrays]):
        for file in self.files():
            if not file.is_file():
                raise DataError(f"{file} is missing; {self.again}")
        name = f"{self.builder.name}-{self.info.name}{suffix}"
        return cache_folder.cached(name, self.directory, self.files(), keys, build)


def _decode_split(split: _Split) -> cache_folder.Arrays:
    examples = list(_read_shards(split))
    examples = [examples[i] for i in _order([example.get("id") for example in examples])]
    ids = [e["id"].decode() if "id" in e else f"number {i}" for i, e in enumerate(examples)]
    where = f"of the {split.info.name} split in {split.directory}"
    return {
        "images": image_decoding.decode_all(
            [e["image"] for e in examples],
            [f"example {name} {where}" for name in ids],
            split.shape[-1] == 3,
            split.shape[0] if split.resized else 0,
            split.resize,
        ),
        "labels": np.array([e["label"] for e in examples], np.int32),
    }


def _index_split(split: _Split) -> cache_folder.Arrays:
    found = [(example.get("id"), example["label"]) for example in _read_shards(split)]
    order = _order([identifier for identifier, _ in found])
    return {
        "order": np.array(order, np.int64),
        "labels": np.array([found[i][1] for i in order], np.int32),
    }


def _order(ids: list[bytes | None]) -> list[int]:
    """By id; as stored where there are none."""
    return (
        list(range(len(ids)))
        if None in ids
        else sorted(range(len(ids)), key=lambda i: ids[i] or b"")
    )


def _read_shards(split: _Split) -> Iterator[dict[str, Any]]:
    from array_record.python.array_record_module import ArrayRecordReader

    source, start = open_split(split.builder, split.info.name), 0
    for file, length in zip(split.files(), split.info.shard_lengths, strict=True):
        try:
            # array_record reads a truncated file as one of 0 records, and those as empty ones.
            if (stored := ArrayRecordReader(str(file)).num_records()) != length:
                raise EOFError(f"it has {stored} records in place of {length}")
            for first in range(start, start + length, 1024):
                yield from source.__getitems__(range(first, min(first + 1024, start + length)))
        except Exception as error:  # array_record's own errors do not name the file
            raise DataError(f"{file} is truncated or damaged ({error}); {split.again}") from error
        start += length
    if not start:
        raise DataError(f"{split.directory}: the {split.info.name} split is empty; {split.again}")
