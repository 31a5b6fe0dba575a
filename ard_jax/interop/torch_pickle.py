"""Tensors out of PyTorch's files, zip (since 1.6) and legacy, with or without PyTorch.

Both kinds are a pickle of the objects, with tensors that refer by key to storages outside of the pickle: an
entry `data/<key>` of the zip archive, or a record behind the pickles of a legacy file. The pickle is always
read here first, by `restricted_pickle` and into `TensorSpec`s, so that every size, offset and stride has been
compared with the file before anything is allocated (torch.load allocates a legacy storage at its declared
size). The values are then taken by `torch.load(weights_only=True)` or by numpy.
"""

import dataclasses
import functools
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ard_jax.interop.restricted_pickle import Budget, FileError, load
from ard_jax.interop.torch_tensors import OTHER_DTYPES, Storages, TensorSpec, torch_globals

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


@dataclasses.dataclass(frozen=True)
class Pickled:
    """The objects of a PyTorch file, with `TensorSpec`s in place of the tensors.

    Attributes:
      path: the file.
      tree: the objects; every mapping is a dict.
      block: key of a storage -> its bytes, read when called.
      skipped: names of the classes whose objects were passed over.
    """

    path: Path
    tree: Any
    block: Callable[[str], bytes]
    skipped: tuple[str, ...] = ()


def read_zip(archive: zipfile.ZipFile, root: str, path: Path, budget: Budget) -> Pickled:
    """Reads the objects of a zip file whose entries have been checked; no tensors yet.

    Args:
      archive: the open archive.
      root: folder in the archive that holds data.pkl, with a final "/" ("" for none).
      path: the file, for messages.
      budget: what may be allocated.

    Raises:
      FileError: the pickle asks for something that is not a tensor, or is damaged; a storage is missing or
        of another size than declared; a tensor reaches outside of its storage; written big-endian.
    """
    entries = {entry.filename: entry for entry in archive.infolist()}
    order = entries.get(f"{root}byteorder")
    if order and archive.read(order).strip() != b"little":
        raise FileError(f"{path} was written on a big-endian machine; save it again on another")
    storages, skipped = Storages(), set[str]()
    stream = io.BytesIO(archive.read(f"{root}data.pkl"))
    tree = load(stream, path, torch_globals(budget), storages.find, skipped)
    for key, size in storages.block_sizes().items():
        entry = entries.get(f"{root}data/{key}")
        if entry is None or entry.file_size != size:
            given = "is missing" if entry is None else f"has {entry.file_size:,}"
            raise FileError(
                f"{path} is damaged: its storage {key} must have {size:,} bytes but {given}. "
                "Download it again"
            )
    block = functools.partial(_entry, archive, f"{root}data/")
    return Pickled(path, tree, block, tuple(sorted(skipped)))


def _entry(archive: zipfile.ZipFile, folder: str, key: str) -> bytes:
    return archive.read(folder + key)


def read_legacy(stream: BinaryIO, size: int, path: Path, budget: Budget) -> Pickled:
    """Reads the objects of a legacy file; no tensors yet.

    Args:
      stream: an mmap of the file.
      size: of the file in bytes.
      path: the file, for messages.
      budget: what may be allocated.

    Raises:
      FileError: as `read_zip`.
    """
    magic, protocol, system = (load(stream, path, {}) for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise FileError(f"{path} is damaged: not PyTorch's legacy header. Download it again")
    if system.get("little_endian") is not True:
        raise FileError(f"{path} was written on a big-endian machine; save it again on another")
    storages, skipped = Storages(), set[str]()
    tree = load(stream, path, torch_globals(budget), storages.find, skipped)
    keys = load(stream, path, {})
    sizes = storages.block_sizes()
    if (
        type(keys) is not list
        or not all(type(k) is str for k in keys)
        or sorted(keys) != sorted(sizes)
    ):
        raise FileError(f"{path} is damaged: its list of storages is not the one its tensors use")
    places = {}
    for key in keys:  # each record: number of values, the values
        header = stream.read(8)
        values = struct.unpack("<q", header)[0] if len(header) == 8 else None
        start = stream.tell()
        if values != storages.blocks[key].size or start + sizes[key] > size:
            raise FileError(
                f"{path} is truncated or damaged: its storage {key} must have {storages.blocks[key].size:,} "
                f"values ({sizes[key]:,} bytes), but {size - start:,} bytes follow. Download it again"
            )
        places[key] = start
        stream.seek(start + sizes[key])

    def block(key: str):
        stream.seek(places[key])
        return stream.read(sizes[key])

    return Pickled(path, tree, block, tuple(sorted(skipped)))


def arrays(pickled: Pickled, specs: Mapping[str, TensorSpec]) -> dict[str, np.ndarray]:
    """Reads tensors with numpy, each storage once; views of one storage share its memory (read-only)."""
    blocks = {}
    values = {}
    for name, spec in specs.items():
        storage = spec.storage
        if storage.key not in blocks:
            blocks[storage.key] = pickled.block(storage.key)
        if spec.size == 0:
            values[name] = np.zeros(spec.shape, spec.dtype)
            continue
        start, size = (n * storage.dtype.itemsize for n in (storage.start, storage.size))
        count = size // spec.dtype.itemsize
        flat = np.frombuffer(blocks[storage.key], spec.dtype, count, start)[spec.offset :]
        # The stand-in has checked that shape and stride stay inside of the storage.
        strides = [step * spec.dtype.itemsize for step in spec.stride]
        values[name] = np.lib.stride_tricks.as_strided(flat, spec.shape, strides, writeable=False)
    return values


def arrays_by_torch(
    pickled: Pickled, keys: tuple[str, ...], specs: Mapping[str, TensorSpec]
) -> dict[str, np.ndarray]:
    """Reads tensors with torch.load(weights_only=True).

    Args:
      pickled: the checked file.
      keys: path of keys in the file's tree to the mapping that holds the tensors.
      specs: name in that mapping -> tensor.

    Raises:
      pickle.UnpicklingError: PyTorch refuses something in the file.
      FileError: PyTorch cannot read the file, or reads other shapes than `specs`.
    """
    import torch  # pyright: ignore[reportMissingImports]  # an extra

    try:
        node = torch.load(pickled.path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # PyTorch has no one type for files that it cannot read
        raise FileError(f"{pickled.path} cannot be read by PyTorch: {error}") from error
    for key in keys:
        node = node[int(key) if isinstance(node, list | tuple) else key]
    values = {}
    for name, spec in specs.items():
        tensor = node[name].detach().cpu()
        if spec.dtype in map(np.dtype, OTHER_DTYPES.values()):
            tensor = tensor.view(torch.int8 if spec.dtype.itemsize == 1 else torch.int16)
        values[name] = tensor.numpy().view(spec.dtype)
        if values[name].shape != spec.shape:
            raise FileError(
                f"{pickled.path}: PyTorch reads {name} as {values[name].shape}, not {spec.shape}"
            )
    return values
