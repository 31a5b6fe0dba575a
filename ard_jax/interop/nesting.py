"""Finds the state dict among the other things that a training script saved with it."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ard_jax.interop.numpy_pickle import plain
from ard_jax.interop.restricted_pickle import FileError, Skipped
from ard_jax.interop.torch_names import CONSTANTS
from ard_jax.interop.torch_tensors import TensorSpec

_MAX_DEPTH = 6
# A file can name one dict in many places, so that the paths are far more than the objects.
_MAX_NODES = 1_000_000
_MAX_TEXT = 1000
# The state of an optimizer also is a dict of tensors, with the shapes of the weights.
_NOT_NETWORKS = re.compile(r"opt|optim.*|.*optimizer.*|.*scheduler.*|scaler|amp", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Selection:
    """A state dict inside of a file.

    Attributes:
      keys: path of keys to it.
      tensors: its arrays (`TensorSpec` or numpy) by name.
      beside: scalars, texts and arrays of one element in it and in the dicts around it, by name.
    """

    keys: tuple[str, ...]
    tensors: dict[str, Any]
    beside: dict[str, Any]


def select(tree: Any, path: Path, key: str) -> Selection:
    """Finds the one mapping that is a state dict: more arrays than other values, one of them a matrix.

    Args:
      tree: what was unpickled.
      path: the file, for messages.
      key: path of the wanted mapping, keys joined by "/"; "" where there is one candidate.

    Raises:
      FileError: no or several candidates (the message lists them), or no mapping at `key`.
    """
    found = {"/".join(keys): (keys, node) for keys, node in _mappings(tree, path)}
    candidates = [name for name, (keys, node) in found.items() if _is_network(keys, node)]
    if key:
        if key not in found and (inside := [c for c in candidates if under(found[c][1], key)]):
            keys, node = found[inside[0]]
            found[inside[0]] = (keys, under(node, key))
            return _selection(found, inside[0], path)
        if key not in found or not _arrays(found[key][1]):
            raise FileError(
                f"{path} has no tensors under {key!r}; it has {_listed(candidates, found)}"
            )
        return _selection(found, key, path)
    if not candidates:
        top = (
            ", ".join(repr(name) for name in list(tree)[:10])
            if isinstance(tree, dict)
            else type(tree)
        )
        raise FileError(
            f"{path} holds no state dict (names of arrays); at its top level are: {top}"
        )
    if len(candidates) > 1:
        raise FileError(
            f"{path} holds several networks: {_listed(candidates, found)}. Choose one of them with --key"
        )
    return _selection(found, candidates[0], path)


def under(tensors: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Those whose name begins with `key` and a "/" or ".", without it."""
    prefixes = (f"{key}/", f"{key}.")
    return {n[len(key) + 1 :]: v for n, v in tensors.items() if str(n).startswith(prefixes)}


def one_of_equals(
    tensors: dict[str, np.ndarray], path: Path
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Keeps one network where a file has the same one under several prefixes (model.*, attacker.model.*).

    Returns:
      (tensors, one text for each copy that is left out).

    Raises:
      FileError: networks of one architecture and different values; --key chooses.
    """
    prefixes = _prefixes_of_copies(tensors)
    if len(prefixes) < 2:
        return tensors, ()
    copies = [{n[len(p) :]: v for n, v in tensors.items() if n.startswith(p)} for p in prefixes]
    for prefix, copy in zip(prefixes[1:], copies[1:], strict=True):
        if not all(np.array_equal(copies[0][name], copy[name]) for name in copy):
            keys = " or ".join(p.rstrip(".") for p in prefixes)
            raise FileError(
                f"{path} holds several networks of one architecture, and {prefixes[0]}* and {prefix}* have "
                f"different values. Choose one of them with --key: {keys}"
            )
    others = tuple(prefixes[1:])
    kept = {n: v for n, v in tensors.items() if not n.startswith(others)}
    return kept, tuple(f"{prefix}* (a copy of {prefixes[0]}*)" for prefix in others)


def _prefixes_of_copies(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Prefixes under which all names, but those of constants and counters, are the same; else []."""
    shapes = {n: v.shape for n, v in tensors.items() if v.ndim >= 2 and not CONSTANTS.fullmatch(n)}
    if not shapes:
        return []
    names = list(shapes)
    parts = names[0].split(".")
    for depth in range(1, len(parts)):
        own, end = ".".join(parts[:depth]) + ".", ".".join(parts[depth:])
        inside = {n[len(own) :]: shapes[n] for n in names if n.startswith(own)}
        found = [own]
        for other in sorted({n[: -len(end)] for n in names if n.endswith(f".{end}")} - {own}):
            if {n[len(other) :]: shapes[n] for n in names if n.startswith(other)} == inside:
                found.append(other)
        # One weight is a layer, not a network.
        if len(found) > 1 and len(inside) > 1 and len(found) * len(inside) == len(names):
            return found
    return []


def flatten(tree: Any, path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Nested dicts of arrays -> arrays by name, with keys joined by "/", and the texts among them.

    Raises:
      FileError: values other than arrays, numbers and texts.
    """
    tensors, texts = {}, {}
    for keys, node in _mappings(tree, path, strict=True):
        for name, value in node.items():
            value = plain(value)
            full_name = "/".join([*keys, str(name)])
            if isinstance(value, np.ndarray) and value.dtype.kind == "U":
                texts[full_name] = ", ".join(map(str, value.ravel().tolist()))[:_MAX_TEXT]
            elif isinstance(value, np.ndarray | bool | int | float):
                tensors[full_name] = np.asarray(value)
            elif isinstance(value, str):
                texts[full_name] = value[:_MAX_TEXT]
            elif value is not None and not isinstance(value, dict | list | tuple):
                raise FileError(
                    f"{path} holds a {type(value).__name__} in place of the array {full_name}"
                )
    return tensors, texts


def _mappings(
    tree: Any, path: Path, strict: bool = False
) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Every dict with its path of keys, outer ones first; lists count as dicts of their positions.

    `strict` refuses dicts that are too deep, which the search for a state dict skips.
    """
    waiting = [((), plain(tree))]
    nodes = 0
    while waiting:
        keys, node = waiting.pop()
        if isinstance(node, list | tuple):
            node = {str(position): value for position, value in enumerate(node)}
        if not isinstance(node, dict):
            continue
        if len(keys) > _MAX_DEPTH:
            if strict:
                raise FileError(f"{path} nests dicts more than {_MAX_DEPTH} deep: {'/'.join(keys)}")
            continue
        nodes += len(node)
        if nodes > _MAX_NODES:
            raise FileError(f"{path} holds more than {_MAX_NODES:,} objects; refused")
        yield keys, node
        inner = [(name, plain(value)) for name, value in node.items() if isinstance(name, str)]
        inner = [(name, value) for name, value in inner if isinstance(value, dict | list | tuple)]
        waiting.extend(((*keys, name), value) for name, value in reversed(inner))


def _arrays(node: dict):
    return {
        name: plain(v) for name, v in node.items() if isinstance(plain(v), TensorSpec | np.ndarray)
    }


def _is_network(keys: tuple[str, ...], node: dict):
    arrays = _arrays(node)
    return (
        not any(_NOT_NETWORKS.fullmatch(key) for key in keys)
        and all(isinstance(name, str) for name in node)
        and len(arrays) > len(node) - len(arrays)
        and any(array.ndim >= 2 for array in arrays.values())
    )


def _selection(found: dict[str, tuple], key: str, path: Path):
    keys, node = found[key]
    arrays = _arrays(node)
    if strange := {n: v.full_name for n, v in node.items() if isinstance(v, Skipped)}:
        shown = ", ".join(f"{name} ({kind})" for name, kind in list(strange.items())[:5])
        raise FileError(
            f"{path} asks for objects among its tensors, which is refused: {shown}. Save the state dict "
            "alone: torch.save(model.state_dict(), path)"
        )
    beside = {}
    for depth in range(len(keys)):
        beside |= _scalars(found["/".join(keys[:depth])][1], arrays=True)
    beside |= _scalars(node, arrays=False)
    return Selection(keys, {str(name): array for name, array in arrays.items()}, beside)


def _scalars(node: dict, arrays: bool):
    kept = {}
    for name, value in node.items():
        value = plain(value)
        short_text = isinstance(value, str) and len(value) <= _MAX_TEXT
        single = arrays and isinstance(value, TensorSpec | np.ndarray) and value.size == 1
        if short_text or isinstance(value, bool | int | float) or single:
            kept[str(name)] = value
    return kept


def _listed(candidates: list[str], found: dict[str, tuple]):
    if not candidates:
        return "no state dict"
    return ", ".join(
        f"{name or 'the top level'!r} ({len(_arrays(found[name][1]))} tensors)"
        for name in candidates
    )
