"""Reads networks of other libraries from files that may come from anywhere.

What a file is shows in its bytes, not in its name. Nothing in it is ever run, imported or extracted to disk,
and sizes are compared with the file before memory is allocated: see `restricted_pickle` and `file_kinds`.
"""

import dataclasses
import hashlib
import importlib.util
import mmap
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ard_jax.interop import file_kinds, nesting, numpy_pickle, torch_pickle
from ard_jax.interop.restricted_pickle import Budget, FileError
from ard_jax.interop.torch_tensors import TensorSpec

__all__ = ["MAX_BYTES", "Contents", "FileError", "read", "sha256_of"]

# A WideResNet-70-16 in float32 with the momentum of its optimizer takes 2.1 GB.
MAX_BYTES = 4 * 2**30
# What zipfile raises for damaged archives, besides its own BadZipFile.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, OverflowError, KeyError)
_DAMAGE += (NotImplementedError, RuntimeError, UnicodeDecodeError)


@dataclasses.dataclass(frozen=True)
class Contents:
    """The tensors of a file.

    Attributes:
      path: the file.
      format: "torch zip", "torch legacy", "haiku npy", "safetensors" or "npz".
      sha256: of the file's bytes, 64 hexadecimal digits.
      tensors: name in the file -> array, in its dtype (float16 and bfloat16 are kept) and layout. Haiku's
        nested dicts have the names "params/<module path>/<leaf>" and "state/<module path>/<leaf>". The
        arrays may be read-only and share memory.
      nested: keys under which the tensors were found, joined by "/"; "" for the top level.
      metadata: numbers and texts that stood beside the tensors (epoch, best_prec1, ...).
      skipped: what was left out: classes of objects beside the tensors, prefixes of a network's copies.
    """

    path: Path
    format: str
    sha256: str
    tensors: dict[str, np.ndarray]
    nested: str
    metadata: dict[str, int | float | bool | str]
    skipped: tuple[str, ...] = ()


def read(
    path: str | Path, *, key: str = "", max_bytes: int = MAX_BYTES, use_torch: bool | None = None
) -> Contents:
    """Reads the tensors of one network.

    Args:
      path: a file of torch.save (zip or legacy; a state dict, or one nested in dicts), a Haiku .npy, a
        safetensors file or an .npz.
      key: where several networks are in the file, the keys to the wanted one, joined by "/".
      max_bytes: limit for the size of the file and, separately, of the arrays.
      use_torch: whether `torch.load(weights_only=True)` reads the tensors of PyTorch files. None: where it
        is installed and takes the file; NumPy otherwise. Both give the same arrays.

    Returns:
      The contents.

    Raises:
      FileError: no such file, not a network, truncated, larger than declared, or a pickle that asks for
        something other than tensors, which the message names; several networks and no `key`.
    """
    path = Path(path)
    kind = file_kinds.detect(path)
    size = path.stat().st_size
    if size > max_bytes:
        raise FileError(
            f"{path} has {size:,} bytes, more than the limit of {max_bytes:,}; pass max_bytes"
        )
    budget = Budget(path, max_bytes)
    try:
        if kind == "zip":
            parts = _read_archive(path, key, budget, use_torch)
        elif kind == "safetensors":
            parts = _flat(kind, *_read_safetensors(path), path, key)
        else:
            parts = _read_mapped(path, kind, key, budget, use_torch)
    except _DAMAGE as error:
        raise FileError(f"{path} is truncated or damaged: {error}. Download it again") from error
    kind, tensors, nested, metadata, skipped = parts
    if not tensors:
        raise FileError(f"{path} holds no arrays")
    tensors, copies = nesting.one_of_equals(tensors, path)
    return Contents(path, kind, sha256_of(path), tensors, nested, metadata, (*skipped, *copies))


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits in lower case."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_archive(path: Path, key: str, budget: Budget, use_torch: bool | None):
    with zipfile.ZipFile(path) as archive:
        file_kinds.check_archive(archive, path, budget.max_bytes)
        kind, root = file_kinds.archive_kind(archive, path)
        if kind == "npz":
            tensors, texts = nesting.flatten(numpy_pickle.read_npz(archive, path, budget), path)
            return _flat(kind, tensors, texts, path, key)
        return _read_torch(kind, torch_pickle.read_zip(archive, root, path, budget), key, use_torch)


def _read_mapped(path: Path, kind: str, key: str, budget: Budget, use_torch: bool | None):
    """Legacy PyTorch and .npy: through mmap, whose `read` cannot allocate more than the file has."""
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        data = cast(BinaryIO, mapped)  # mmap reads like a file
        if kind == "torch legacy":
            pickled = torch_pickle.read_legacy(data, len(mapped), path, budget)
            return _read_torch(kind, pickled, key, use_torch)
        tree = numpy_pickle.read_npy(data, len(mapped), path, budget)
        if isinstance(tree, list) and len(tree) == 2:
            tree = dict(zip(("params", "state"), tree, strict=True))
        if not isinstance(tree, dict):
            shape = getattr(tree, "shape", None)
            what = f"one array of shape {shape}" if shape is not None else "other objects"
            raise FileError(
                f"{path} is a NumPy file of {what}, not the pair (params, state) of a Haiku network; save "
                "several arrays with numpy.savez"
            )
        tensors, texts = nesting.flatten(tree, path)
        return _flat(kind, tensors, texts, path, key)


def _read_safetensors(path: Path):
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    try:
        with safe_open(path, "numpy") as opened:
            metadata = dict(opened.metadata() or {})
        return load_file(path), metadata
    except (SafetensorError, KeyError, ValueError) as error:
        raise FileError(f"{path} is a truncated or damaged safetensors file: {error}") from error


def _flat(
    kind: str, tensors: dict[str, np.ndarray], metadata: dict[str, Any], path: Path, key: str
):
    """Formats without nesting: `key` picks the names that begin with it."""
    if key:
        picked = nesting.under(tensors, key)
        if not picked:
            there = ", ".join(dict.fromkeys(name.split("/")[0] for name in tensors))
            raise FileError(f"{path} has no tensors under {key!r}; there are: {there}")
        tensors = picked
    return kind, tensors, key, metadata, ()


def _read_torch(kind: str, pickled: torch_pickle.Pickled, key: str, use_torch: bool | None):
    chosen = nesting.select(pickled.tree, pickled.path, key)
    described = {
        name: array for name, array in chosen.tensors.items() if isinstance(array, TensorSpec)
    }
    tensors = chosen.tensors | _values(pickled, chosen.keys, described, use_torch)
    single = {name: value for name, value in chosen.beside.items() if isinstance(value, TensorSpec)}
    beside = chosen.beside | torch_pickle.arrays(pickled, single)
    metadata = {name: _scalar(value) for name, value in beside.items()}
    return kind, tensors, "/".join(chosen.keys), metadata, pickled.skipped


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.ndarray) else value


def _values(
    pickled: torch_pickle.Pickled,
    keys: tuple[str, ...],
    described: dict[str, TensorSpec],
    use_torch: bool | None,
):
    installed = importlib.util.find_spec("torch") is not None
    if use_torch and not installed:
        raise FileError("PyTorch is not installed: use_torch=None reads the file without it")
    if installed and use_torch is not False:
        try:
            return torch_pickle.arrays_by_torch(pickled, keys, described)
        except pickle.UnpicklingError as error:
            # PyTorch refuses NumPy scalars (a stored accuracy), which the stand-ins take.
            if use_torch:
                raise FileError(
                    f"PyTorch refuses {pickled.path} with weights_only; use_torch=None reads it without"
                ) from error
    return torch_pickle.arrays(pickled, described)
