"""A network as a file for PyTorch, written without PyTorch.

student.pt is what `torch.save` would write: a zip of a protocol-2 pickle and one raw array per tensor. Own
code because PyTorch, the only writer of this format, would be an installation of a gigabyte for forty lines.
"""

import importlib.resources
import json
import os
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ard_jax.interop import torch_names
from ard_jax.models import ModelBundle, described
from ard_jax.models.bundle import check_network, normalization_constants

_ALIGNMENT = 64  # bytes; PyTorch starts every array at such an offset, for memory-mapped reading


def export(
    bundle: ModelBundle, variables: Any, folder: str | os.PathLike, description: Mapping[str, Any]
) -> list[Path]:
    """Writes student.pt and model.py, whose `load("student.pt")` gives the network as a torch Module.

    student.pt is a dict that `torch.load(weights_only=True)` reads: "state_dict" (the tensors under their
    public names and layouts, float32, and "normalization.mean" and "normalization.std" [C], zeros and
    ones where pixels are not normalised), "architecture" (model, num_classes, image_shape, kwargs),
    "class_names" and "description" (JSON, for programs that import it again). The module takes images
    [B, C, H, W] in [0, 1]; the normalisation is inside. It computes in float32 whatever the precision of
    the training.

    Args:
      bundle: the network.
      variables: {"params", "batch_stats"} of arrays.
      folder: made when missing; files of these names are replaced.
      description: the network's entry in its checkpoint: "model", "kwargs", "class_names" are used.

    Returns:
      The paths of student.pt and model.py.

    Raises:
      ValueError: the description is not that of this network, or has options that are not plain data.
    """
    check_network(bundle)
    architecture = _architecture(bundle, description)
    text = _json(bundle, description)
    tensors = torch_names.to_torch(bundle, variables) | _normalization(bundle)
    others = {
        "architecture": architecture,
        "class_names": [str(name) for name in description.get("class_names") or []],
        "description": text,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    student, code = folder / "student.pt", folder / "model.py"
    write_torch_zip(student, tensors, others)
    source = importlib.resources.files("ard_jax.interop").joinpath("torch_modules.py")
    code.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return [student, code]


def _architecture(bundle: ModelBundle, description: Mapping[str, Any]) -> dict[str, Any]:
    described.check_fields(description, ("model", "num_classes", "image_shape", "kwargs"))
    given = (description["model"], description["num_classes"], tuple(description["image_shape"]))
    ours = (bundle.name, bundle.num_classes, tuple(bundle.image_shape))
    if given != ours:
        raise ValueError(
            f"the description is of {given}, but the network is {ours}; pass the description that the "
            "network was created from"
        )
    return {
        "model": bundle.name,
        "num_classes": int(bundle.num_classes),
        "image_shape": [int(n) for n in bundle.image_shape],
        "kwargs": json.loads(_json(bundle, description["kwargs"])),  # tuples become lists
    }


def _json(bundle: ModelBundle, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(value))
    except TypeError as error:
        raise ValueError(
            f"the description of {bundle.name} is not plain data: {error}: {value!r}"
        ) from error


def _normalization(bundle: ModelBundle) -> dict[str, np.ndarray]:
    channels = bundle.image_shape[-1]
    constants = normalization_constants(bundle.normalization, channels)
    if constants is None:
        constants = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    return {"normalization.mean": constants[0], "normalization.std": constants[1]}


def write_torch_zip(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], others: Mapping[str, Any]
) -> None:
    """Writes {"state_dict": tensors, **others} as `torch.save` would, through a temporary file.

    Args:
      path: of the file.
      tensors: name -> array, stored as float32.
      others: plain data: dict, list, str, int, float, bool, None.

    Raises:
      OSError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    arrays = {name: np.ascontiguousarray(value, "<f4") for name, value in tensors.items()}
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, file, "student/data.pkl", _program(arrays, others))
        _add(archive, file, "student/byteorder", b"little")
        for index, array in enumerate(arrays.values()):
            _add(archive, file, f"student/data/{index}", array.tobytes())
        _add(archive, file, "student/version", b"3\n")
    os.replace(temporary, path)


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes) -> None:
    """Adds an uncompressed member of fixed date whose data start at a multiple of _ALIGNMENT."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    header = 30 + len(name) + 4  # local header, name, and the four bytes that open an extra field
    padding = -(file.tell() + header) % _ALIGNMENT
    member.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    archive.writestr(member, data)


def _program(arrays: Mapping[str, np.ndarray], others: Mapping[str, Any]) -> bytes:
    """The pickle program. The C pickler refuses names of modules that are not installed, such as torch."""
    entries = b"".join(
        _plain(name) + _tensor(index, array) for index, (name, array) in enumerate(arrays.items())
    )
    state = pickle.EMPTY_DICT + pickle.MARK + entries + pickle.SETITEMS
    rest = b"".join(_plain(name) + _plain(value) for name, value in others.items())
    whole = pickle.MARK + _plain("state_dict") + state + rest + pickle.SETITEMS
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + whole + pickle.STOP


def _plain(value: Any) -> bytes:
    """The opcodes that push plain data: a pickle without its first two bytes and its stop."""
    return pickletools.optimize(pickle.dumps(value, protocol=2))[2:-1]


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tensor(index: int, array: np.ndarray) -> bytes:
    """The opcodes that push one contiguous tensor on the CPU whose data are the member data/<index>."""
    strides = tuple(step // array.itemsize for step in array.strides)
    hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    storage = (
        pickle.MARK + _plain("storage") + _global("torch", "FloatStorage")
        + _plain(str(index)) + _plain("cpu") + _plain(array.size) + pickle.TUPLE + pickle.BINPERSID
    )  # fmt: skip
    return (
        _global("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + storage
        + _plain(0) + _plain(array.shape) + _plain(strides) + pickle.NEWFALSE + hooks
        + pickle.TUPLE + pickle.REDUCE
    )  # fmt: skip
