"""NumPy arrays out of pickles and out of .npy and .npz files, without `allow_pickle`.

The Haiku checkpoints of DeepMind (adversarial_robustness, deepmind-research on GitHub) are .npy files whose
one array holds Python objects: the pair (params, state) of nested dicts, read there with
`np.load(..., allow_pickle=True)`, which would run any code in the file. Here the array's header is read by
NumPy and its pickle by `restricted_pickle`; numpy.load has no restricted mode for object arrays, and
allocates what a header declares before it looks at the size of the file.
"""

import io
import math
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ard_jax.interop.restricted_pickle import Allowed, Budget, FileError, PlainDict, load

_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16)")
_OBJECT = object()  # stands for the dtype of Python objects
# Not the dtype itself: a pickle could set its attributes, for the whole process.
_BFLOAT16 = Allowed(lambda *_: None)


def numpy_globals(budget: Budget) -> dict[str, Any]:
    """The stand-ins for what NumPy, JAX and Haiku ask for when their arrays are unpickled.

    Arrays arrive as `PendingArray` (see `plain`), NumPy scalars as Python numbers and Haiku's mappings as
    dicts. Only numbers and arrays of Python objects are taken: no structured, string or date dtypes.
    """
    array = Allowed(lambda *_: PendingArray(budget))
    table = {
        "numpy.ndarray": array,
        "numpy.dtype": Allowed(_PendingDtype),
        "ml_dtypes.bfloat16": _BFLOAT16,
        "_codecs.encode": Allowed(lambda text, code: _encode(budget, text, code)),
        "jax._src.array._reconstruct_array": Allowed(
            lambda _function, _arguments, state, _aval: _jax_array(budget, state)
        ),
        "collections.OrderedDict": Allowed(lambda *items: _dict(budget, *items)),
    }
    for core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
        table[f"{core}.multiarray._reconstruct"] = array
        table[f"{core}.multiarray.scalar"] = Allowed(_scalar)
    for mapping in ("FlatMapping", "FlatMap", "frozendict"):
        table[f"haiku._src.data_structures.{mapping}"] = Allowed(
            lambda *items: _dict(budget, *items)
        )
    return table


class PendingArray:
    """An array that is being unpickled; `value` is set by its state."""

    __slots__ = ("_budget", "value")

    def __init__(self, budget: Budget):
        """Takes the budget of the file."""
        self._budget = budget
        self.value = None

    def __setstate__(self, state: Any) -> None:
        """Sets `value`: a numpy array, the flat list of an object array, or the one object in it.

        Raises:
          ValueError: the state is not that of an array of numbers or objects, or the sizes disagree.
        """
        _, shape, dtype, fortran, content = state
        count = _count(shape)
        if dtype.dtype is _OBJECT:
            if type(content) is not list or len(content) != count:
                raise ValueError(f"an object array of shape {shape} without its {count} objects")
            self.value = content if shape else content[0]
            return
        if isinstance(content, str):  # bytes written by Python 2
            content = _encode(self._budget, content, "latin1")
        if len(content) != count * dtype.dtype.itemsize:
            raise ValueError(f"an array of shape {shape} holds {len(content)} bytes")
        array = np.frombuffer(content, dtype.dtype)
        self.value = array.reshape(shape, order="F" if fortran else "C")


def plain(value: Any) -> Any:
    """An unpickled value: the content of a `PendingArray`, everything else unchanged."""
    return value.value if isinstance(value, PendingArray) else value


class _PendingDtype:
    __slots__ = ("dtype",)
    dtype: Any

    def __init__(self, name: Any, *_: Any):
        if name is _BFLOAT16:
            self.dtype = np.dtype(ml_dtypes.bfloat16)
        elif name in ("O", "O8", "|O"):
            self.dtype = _OBJECT
        elif isinstance(name, str) and _NUMBERS.fullmatch(name):
            self.dtype = np.dtype(name)
        else:
            raise ValueError(f"arrays of dtype {name!r} are not read")

    def __setstate__(self, state: Any):
        _, order, *structure = state[:5]
        if any(part is not None for part in structure):
            raise ValueError("arrays of structured dtypes are not read")
        if order in ("<", ">") and self.dtype is not _OBJECT and self.dtype.isbuiltin != 2:
            self.dtype = self.dtype.newbyteorder(order)


def _scalar(dtype: Any, content: Any):
    content = content.encode("latin1") if isinstance(content, str) else content
    if dtype.dtype is _OBJECT or len(content) != dtype.dtype.itemsize:
        raise ValueError("a NumPy scalar that is not a number")
    return np.frombuffer(content, dtype.dtype)[0].item()


def _jax_array(budget: Budget, state: Any):
    array = PendingArray(budget)
    array.__setstate__(state)
    return array


def _encode(budget: Budget, text: str, code: str):
    if code not in ("latin1", "latin-1"):
        raise ValueError(f"bytes are written as latin1 text, not as {code!r}")
    budget.spend(len(text), "bytes written as text")
    return text.encode("latin1")


def _dict(budget: Budget, *items: Any):
    if items:  # a copy; about 100 bytes for each entry
        budget.spend(100 * len(items[0]), "a dictionary")
    return PlainDict(*items)


def _count(shape: Any):
    if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{shape!r} is not the shape of an array")
    return math.prod(shape)


def read_npy(stream: BinaryIO, size: int, path: Path, budget: Budget) -> Any:
    """Reads one array in NumPy's format.

    Args:
      stream: at the first byte; its `read` must not allocate more than there is (BytesIO, mmap).
      size: bytes from there to the end of the array's file.
      path: the file, for messages.
      budget: what may be allocated.

    Returns:
      A numpy array (2-byte void, as which NumPy writes bfloat16, as bfloat16), or the content of an object
      array as `PendingArray` has it.

    Raises:
      FileError: damaged, truncated, a dtype that is not read, or objects other than arrays.
    """
    start = stream.tell()
    try:
        version = np.lib.format.read_magic(stream)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if header is None:
            raise ValueError(f"version {version} of the format")
        shape, fortran, dtype = header(stream)
        count = _count(shape)
    except Exception as error:  # NumPy's parser raises more than ValueError on damaged headers
        raise FileError(f"{path} has a damaged NumPy header: {error}. Download it again") from error
    if dtype.hasobject:
        if dtype != np.dtype(object):
            raise FileError(f"{path} holds an array of dtype {dtype}; only numbers are read")
        return plain(load(stream, path, numpy_globals(budget)))
    if dtype == np.dtype("V2"):
        dtype = np.dtype(ml_dtypes.bfloat16)
    elif dtype.kind not in "fiubcU" or dtype.itemsize == 0:
        raise FileError(f"{path} holds an array of dtype {dtype}; only numbers are read")
    expected, given = count * dtype.itemsize, size - (stream.tell() - start)
    if given != expected:
        raise FileError(
            f"{path} is truncated or damaged: an array of shape {shape} and dtype {dtype} needs "
            f"{expected:,} bytes, but {given:,} follow. Download it again"
        )
    budget.spend(expected, f"an array of shape {shape}")
    array = np.frombuffer(stream.read(expected), dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def read_npz(archive: zipfile.ZipFile, path: Path, budget: Budget) -> dict[str, Any]:
    """Reads all arrays of an .npz archive whose sizes have been checked; names without ".npy".

    Returns:
      name -> numpy array, or the content of an object array as `PendingArray` has it.

    Raises:
      FileError: as `read_npy`.
    """
    tree = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        content = archive.read(entry)
        member = Path(f"{path}:{entry.filename}")
        tree[name] = read_npy(io.BytesIO(content), len(content), member, budget)
    return tree
