"""The folder that an import makes: `best/` as in a run's folder, so that everything takes it."""

import datetime
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ard_jax.checkpoints import manager
from ard_jax.io.files import check_writable, to_plain


class OutFolderError(ValueError):
    """A folder that an import cannot make."""


def check(out: str, force: bool) -> Path:
    """The folder to make.

    Raises:
      OutFolderError: none is given, or something else is there, or an import and no `force`.
    """
    if not out:
        raise OutFolderError("--out is missing: the folder to make, e.g. --out=teachers/robust")
    folder = Path(out)
    check_writable(folder.parent, "--out")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    try:
        imported = "origin" in manager.read_meta(manager.find(folder))
    except manager.CheckpointError:
        imported = False
    if not imported:
        raise OutFolderError(
            f"--out={out} exists and is not an imported network; choose another folder"
        )
    if not force:
        raise OutFolderError(
            f"--out={out} holds an imported network; choose another folder, or add --force to put the "
            "new one in its place (the old one is moved aside)"
        )
    return folder


def write(folder: Path, variables: Any, meta: dict[str, Any]) -> None:
    """Writes beside `folder` and renames, so that it is there whole or not at all.

    What `check` let pass is moved aside first, to <folder>.replaced-1 and so on.

    Args:
      folder: that `check` returned.
      variables: of the network.
      meta: see `manager.save_network`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)  # of a killed process with the same number
    try:
        manager.save_network(building / "best", variables, meta)
        if folder.exists() and any(folder.iterdir()):
            names = (folder.with_name(f"{folder.name}.replaced-{n}") for n in range(1, 10_000))
            aside = next(path for path in names if not path.exists())
            folder.rename(aside)
            print(f"The earlier import was moved to {aside}")
        building.replace(folder)  # an empty folder is replaced
    finally:
        shutil.rmtree(building, ignore_errors=True)


def describe_origin(
    contents: Any, found: Any, entry: Any, decision: Any, variables: Any
) -> dict[str, Any]:
    """Where a network came from, for the checkpoint's metadata.

    Args:
      contents: `interop.files.Contents`.
      found: `interop.recognise.Recognised`.
      entry: `catalogue.Entry` or None.
      decision: `import_network.Decision`.
      variables: of the network.

    Returns:
      Plain values for JSON. Accuracies in [0, 1], but the publisher's in percent as published.
    """
    return to_plain({
        "source": entry.name if entry else "file",
        "page": entry.page if entry else "",
        "file": contents.path.name,
        "sha256": contents.sha256,
        "format": contents.format,
        "nested": contents.nested,
        "family": found.family,
        "ignored": list(found.ignored),
        "file_metadata": dict(contents.metadata),
        "arrays_sha256": _arrays_sha256(variables),
        "normalization_from": decision.how,
        "normalization_accuracies": decision.accuracies,
        "test": decision.test,
        "published": _published(entry),
        "imported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    })  # fmt: skip


def _published(entry: Any) -> dict[str, Any]:
    """What the publisher says."""
    if entry is None:
        return {}
    names = ("clean", "robust", "attack", "numbers_from")
    return {name: getattr(entry, name) for name in names}


def _arrays_sha256(variables: Any) -> str:
    """Checksum of all arrays with their names, by which a run knows its teacher again."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(f"{jax.tree_util.keystr(path)} {np.shape(leaf)}".encode())
        digest.update(np.ascontiguousarray(leaf, np.float32).tobytes())
    return digest.hexdigest()
