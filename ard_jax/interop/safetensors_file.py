"""A network as one safetensors file: raw arrays and a JSON header, no code.

Arrays have our names and layouts ("params/conv1/kernel" [kh, kw, in, out], "batch_stats/bn1/mean" [C]). The
header's metadata hold the network's description (architecture, options, normalisation, class names).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ard_jax.io.files import check_file_place
from ard_jax.models import ModelBundle, described
from ard_jax.models.bundle import check_fit, check_network


def export(
    bundle: ModelBundle, variables: Any, path: str | os.PathLike, metadata: Mapping[str, str]
) -> Path:
    """Writes a network.

    Args:
      bundle: the network.
      variables: {"params", "batch_stats"} of arrays.
      path: of the file, replaced when it is there; its folder must exist.
      metadata: text for the header; "description" is required: the JSON of the network's entry in its
        checkpoint, from which `load` and its users build the network again.

    Returns:
      The path.

    Raises:
      ValueError: an argument of another kind, a description that is missing or of another network, values
        that are not text, or variables that do not fit the network.
      OSError: the folder does not exist or cannot be written.
    """
    check_network(bundle)
    for name, value, kind in (("path", path, str | os.PathLike), ("metadata", metadata, Mapping)):
        if not isinstance(value, kind):
            give = "a file's path" if name == "path" else '{"description": ...}'
            raise ValueError(f"{name} is {type(value).__name__}; give {give}")
    path, metadata = Path(path), dict(metadata)
    if wrong := sorted(key for key, value in metadata.items() if not isinstance(value, str)):
        raise ValueError(f"safetensors metadata must be text, but {wrong} are not; use json.dumps")
    if "description" not in metadata:
        raise ValueError('metadata lack "description", the JSON of the description of the network')
    try:
        description = json.loads(metadata["description"])
    except ValueError as error:
        raise ValueError(f"the description {metadata['description']!r:.60} is no JSON") from error
    described.check_fields(description, ("model",))
    check_file_place(path)
    named = description["model"]
    if named != bundle.name:
        raise ValueError(f"the description is of {named!r}, but the network is {bundle.name!r}")
    check_fit(bundle, variables)
    arrays = {k: np.array(v, np.float32, order="C") for k, v in flatten(variables).items()}
    temporary = path.with_name(path.name + ".tmp")
    save_file(arrays, temporary, metadata=metadata)
    os.replace(temporary, path)
    return path


def load(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `export` wrote.

    Returns:
      (description, variables): what `described.from_description` takes, and {"params", "batch_stats"} as
      nested dicts of float32 numpy arrays.

    Raises:
      ValueError: not a safetensors file, a damaged one, or one that `export` did not write.
      OSError: there is no such file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    strangers = [n for n in tensors if n.split("/")[0] not in ("params", "batch_stats")]
    if "description" not in metadata or strangers:
        raise ValueError(
            f"{path} was not exported by ard_jax (its header lacks the description of the network); "
            "bring it in with --mode=import"
        )
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, value in tensors.items():
        *folders, leaf = name.split("/")
        parent = variables
        for folder in folders:
            parent = parent.setdefault(folder, {})
        parent[leaf] = value
    return json.loads(metadata["description"]), variables


def flatten(variables: Any) -> dict[str, Any]:
    """Nested dicts -> {"params/conv1/kernel": leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {"/".join(entry.key for entry in path): leaf for path, leaf in leaves}
