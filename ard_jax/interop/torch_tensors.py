"""What PyTorch's pickles say about tensors: the stand-ins that describe and check them, without values.

Each tensor becomes a `TensorSpec`, whose offset and strides have been compared with the declared size of its
storage; the readers compare that size with the file.
"""

import dataclasses
import math
import pickle
from typing import Any

import ml_dtypes
import numpy as np

from ard_jax.interop.numpy_pickle import numpy_globals
from ard_jax.interop.restricted_pickle import Allowed, Budget, PlainDict

_MAX_DIMENSIONS = 32
OTHER_DTYPES = {  # numpy has none of its own
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_DTYPES = (
    *dict.fromkeys(_STORAGES.values()),
    "float8_e4m3fn",
    "float8_e5m2",
    "uint16",
    "uint32",
    "uint64",
)


@dataclasses.dataclass(frozen=True)
class Storage:
    """Part of a block of values in the file.

    Attributes:
      key: name of the block.
      dtype: of one value.
      start: first value of the part (legacy files store views of one block as parts of it).
      size: number of values of the part.
    """

    key: str
    dtype: np.dtype
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor that has been described and checked, but not read: offset and stride count values."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def torch_globals(budget: Budget) -> dict[str, Any]:
    """The stand-ins for what the pickle of a state dict or checkpoint asks for."""
    table = numpy_globals(budget)
    builder = _Builder(budget)
    table |= {
        "torch._utils._rebuild_tensor": Allowed(builder.tensor),
        "torch._utils._rebuild_tensor_v2": Allowed(builder.tensor),
        "torch._utils._rebuild_tensor_v3": Allowed(builder.tensor_of_dtype),
        "torch._utils._rebuild_parameter": Allowed(_parameter),
        # Values that stand beside state dicts and that nobody needs, but that should not stop the reading.
        "torch.Size": Allowed(lambda *_: None),
        "torch.device": Allowed(lambda *_: None),
        "collections.Counter": Allowed(lambda *_: PlainDict()),
        "builtins.set": Allowed(lambda *_: None),
    }
    for name, dtype in _STORAGES.items():
        marker = _Dtype(_numpy_dtype(dtype))
        table |= {
            f"torch.{name}": marker,
            f"torch.cuda.{name}": marker,
            f"torch.storage.{name}": marker,
        }
    table |= {f"torch.{name}": _Dtype(_numpy_dtype(name)) for name in _DTYPES}
    return table


class _Dtype:
    """Stands for a storage class or a dtype of PyTorch."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: Any):
        self.dtype = dtype

    def __setstate__(self, state: Any):
        raise pickle.UnpicklingError("the pickle sets attributes of a dtype")


class Storages:
    """Collects the storages that a pickle refers to; `find` is its persistent_load."""

    def __init__(self):
        """Starts without storages."""
        self.blocks: dict[str, Storage] = {}

    def block_sizes(self) -> dict[str, int]:
        """Key -> bytes, of whole blocks."""
        return {key: block.size * block.dtype.itemsize for key, block in self.blocks.items()}

    def find(self, pid: Any) -> Storage:
        """("storage", class, key, location, size[, None or (view key, first value, size)]) -> Storage."""
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError(
                "it refers to something outside of the pickle that is no storage"
            )
        _, kind, key, location, size, view = (*pid, None)[:6]
        if type(kind) is not _Dtype or type(key) is not str or type(location) is not str:
            raise pickle.UnpicklingError("a reference to a storage has parts of the wrong types")
        block = Storage(key, kind.dtype, 0, _natural(size))
        if self.blocks.setdefault(key, block) != block:
            raise pickle.UnpicklingError(f"the storage {key} is declared in two ways")
        if view is None:
            return block
        _, start, part = view
        if _natural(start) + _natural(part) > block.size:
            raise pickle.UnpicklingError(f"a view reaches outside of the storage {key}")
        return Storage(key, block.dtype, start, part)


class _Builder:
    """Stands for PyTorch's functions that rebuild tensors."""

    def __init__(self, budget: Budget):
        self._budget = budget

    def tensor(self, storage: Storage, offset: Any, shape: Any, stride: Any, *_: Any):
        """A tensor of its storage's dtype."""
        return self._checked(storage, storage.dtype, storage.size, offset, shape, stride)

    def tensor_of_dtype(
        self,
        storage: Storage,
        offset: Any,
        shape: Any,
        stride: Any,
        _grad: Any,
        _hooks: Any,
        dtype: Any,
        *_: Any,
    ):
        """A tensor of another dtype than its (untyped) storage; offset and stride count its own values."""
        if type(dtype) is not _Dtype:
            raise pickle.UnpicklingError("a tensor with something else in place of its dtype")
        size = storage.size * storage.dtype.itemsize // dtype.dtype.itemsize
        return self._checked(storage, dtype.dtype, size, offset, shape, stride)

    def _checked(
        self, storage: Storage, dtype: Any, available: int, offset: Any, shape: Any, stride: Any
    ):
        if type(storage) is not Storage:
            raise pickle.UnpicklingError("a tensor with something else in place of its storage")
        if type(shape) is not tuple or type(stride) is not tuple or len(shape) != len(stride):
            raise pickle.UnpicklingError(
                f"a tensor with the shape {shape!r} and the stride {stride!r}"
            )
        if len(shape) > _MAX_DIMENSIONS:
            raise pickle.UnpicklingError(f"a tensor with {len(shape)} dimensions")
        last = _natural(offset) + sum(
            max(_natural(n) - 1, 0) * _natural(step) for n, step in zip(shape, stride, strict=True)
        )
        spec = TensorSpec(storage, dtype, offset, shape, stride)
        if spec.size and last >= available:
            raise pickle.UnpicklingError(
                f"a tensor of shape {shape}, stride {stride} and offset {offset} reaches value {last} of "
                f"storage {storage.key}, which has {available}"
            )
        # Strides of 0 make tensors that are larger than their storage.
        self._budget.spend(spec.size * dtype.itemsize, f"a tensor of shape {shape}")
        return spec


def _parameter(tensor: Any, *_: Any):
    if type(tensor) is not TensorSpec:
        raise pickle.UnpicklingError("a parameter with something else in place of its tensor")
    return tensor


def _natural(value: Any):
    if type(value) is not int or value < 0:
        raise pickle.UnpicklingError(f"{value!r} in place of a size")
    return value


def _numpy_dtype(name: str):
    return np.dtype(OTHER_DTYPES.get(name, name))
