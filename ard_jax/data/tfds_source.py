"""CIFAR-10 and CIFAR-100 from a directory that TensorFlow Datasets prepared, without TensorFlow.

TFDS reads array_record files without TensorFlow, but prepares (downloads and converts) with it. The
order is not TFDS's shuffled one but that of the original archives, which TFDS stores as `id`
(train_00000, ...), so example i here is example i of torchvision.
"""

import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ard_jax.data import cache, images
from ard_jax.data.base import ArrayDataset, DataError, Splits

NAMES = ("cifar10", "cifar100")


def load(name: str, data_dir: str | Path | None = None) -> Splits:
    """CIFAR-10 or CIFAR-100 (fine labels). Directories with fewer examples are fine.

    The decoded arrays are cached (see `cache.cache_dir`), as decoding takes some seconds.

    Args:
      name: "cifar10" or "cifar100".
      data_dir: TFDS data directory, the one that contains `<name>/<version>/`. None: TFDS's own
        ($TFDS_DATA_DIR or ~/tensorflow_datasets).

    Returns:
      Splits of uint8 [N,32,32,3] images; no validation split.

    Raises:
      DataError: not prepared while TensorFlow is not installed (the message has the command), or a
        file is missing or damaged.
    """
    directory = _prepared_directory(name, _root(data_dir))
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
        splits = {split: builder.info.splits[split] for split in ("train", "test")}
        class_names = tuple(builder.info.features["label"].names)
    except Exception as error:
        raise DataError(
            f"{directory}: dataset_info.json or features.json cannot be used ({error}); "
            f"delete the directory and prepare it again:\n  {_command(name, directory.parents[1])}"
        ) from error
    return Splits(
        train=_load_split(name, directory, builder, splits["train"], class_names),
        validation=None,
        test=_load_split(name, directory, builder, splits["test"], class_names),
    )


def _root(data_dir: str | Path | None) -> Path:
    if data_dir is not None:
        return Path(data_dir).expanduser()
    from tensorflow_datasets.core import constants

    return Path(constants.DATA_DIR).expanduser()


def _command(name: str, root: Path) -> str:
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
    if (found := _find(name, root)) is not None:
        return found
    command = _command(name, root)
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
    if not root.is_dir() and root != _root(None):  # a mistyped path must not start a download
        raise DataError(
            f"data_dir {root}: there is no such directory. Correct the path, or make it "
            f"(mkdir -p {root}) to have {name} downloaded into it"
        )
    _prepare(name, root, command)
    if (found := _find(name, root)) is None:
        raise DataError(
            f"data_dir {root}: preparing {name} left no array_record files; try\n  {command}"
        )
    return found


def _find(name: str, root: Path) -> Path | None:
    found, other = [], {}
    for info in root.glob(f"{name}/*/dataset_info.json"):
        try:
            kind = json.loads(info.read_text()).get("fileFormat")
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(
                f"{info} cannot be read ({error}); delete {info.parent} and prepare it again:\n"
                f"  {_command(name, root)}"
            ) from error
        if kind == "array_record":
            found.append(info.parent)
        else:
            other[info.parent] = kind or "tfrecord"
    if other and not found:
        directory, kind = other.popitem()
        raise DataError(
            f"{directory} is prepared as {kind}, which cannot be read without TensorFlow; give "
            f"another data_dir, or delete that directory and run\n  {_command(name, root)}"
        )

    def version(path: Path) -> list[int]:
        return [int(number) for number in path.name.split(".") if number.isdigit()]

    return max(found, key=version, default=None)


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


def _load_split(
    name: str, directory: Path, builder: Any, info: Any, class_names: tuple[str, ...]
) -> ArrayDataset:
    files = [directory / file for file in info.filenames]
    again = f"delete {directory} and prepare it again:\n  {_command(name, directory.parents[1])}"
    for file in files:
        if not file.is_file():
            raise DataError(f"{file} is missing; {again}")
    arrays = cache.cached(
        f"{name}-{info.name}",
        directory,
        files,
        {"images", "labels"},
        lambda: _decode_split(builder, info, files, again),
    )
    what = f"{name} in {directory}"
    return ArrayDataset(arrays["images"], arrays["labels"], class_names, what, info.name)


def _decode_split(builder: Any, info: Any, files: list[Path], again: str) -> cache.Arrays:
    import tensorflow_datasets as tfds

    skip = {"image": tfds.decode.SkipDecoding()}  # as PNG bytes: we name the damaged one
    source = builder.as_data_source(info.name, decoders=skip)
    examples = list(_read_shards(source, files, info.shard_lengths, again))
    if not examples:
        raise DataError(f"{files[0].parent}: the {info.name} split is empty; {again}")
    if "id" in examples[0]:
        examples.sort(key=lambda example: example["id"])
    ids = [e["id"].decode() if "id" in e else f"number {i}" for i, e in enumerate(examples)]
    names = [f"example {name} of the {info.name} split in {files[0].parent}" for name in ids]
    return {
        "images": images.decode_all([e["image"] for e in examples], names),
        "labels": np.array([e["label"] for e in examples], np.int32),
    }


def _read_shards(
    source: Any, files: list[Path], lengths: list[int], again: str
) -> Iterator[dict[str, Any]]:
    from array_record.python.array_record_module import ArrayRecordReader

    start = 0
    for file, length in zip(files, lengths, strict=True):
        try:
            # array_record reads a truncated file as one of 0 records, and those as empty ones.
            if (stored := ArrayRecordReader(str(file)).num_records()) != length:
                raise EOFError(f"it has {stored} records in place of {length}")
            yield from source.__getitems__(list(range(start, start + length)))
        except Exception as error:  # array_record's own errors do not name the file
            raise DataError(f"{file} is truncated or damaged ({error}); {again}") from error
        start += length
