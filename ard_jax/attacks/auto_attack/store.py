"""What AutoAttack has done so far, on disk: one small file per attack, round and batch.

Every batch is a pure function of the settings, the network and the results before it. So a second
start walks through the same batches and reads the files of those that are done. With several processes
the lead writes, and a file counts where all can read it.
"""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ard_jax.runtime.distributed import everywhere, is_lead


def fingerprint(settings: Any, arrays: list[np.ndarray]) -> str:
    """16 hex digits of the settings (their repr) and the bytes of the arrays."""
    digest = hashlib.sha256(repr(settings).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


class Store:
    """Batch results in `folder`/<fingerprint>; without a folder it keeps nothing.

    Args:
      folder: of the evaluation, or None.
      identity: fingerprint of settings, data and network; another one starts anew.
      about: a few words for people, written to state.json.
    """

    def __init__(self, folder: str | os.PathLike | None, identity: str, about: dict[str, Any]):
        """Makes the folder."""
        if not isinstance(folder, str | os.PathLike | None):
            raise ValueError(f"state_dir is {type(folder).__name__}; give a path, or None")
        self.folder = Path(folder) / identity if folder else None
        self._about = about
        self._own = self.folder if self.folder and is_lead() else None  # where this process writes
        if self.folder:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"state_dir={str(folder)!r} cannot be used: {error}") from error

    def load(self, unit: str, rows: np.ndarray) -> dict[str, np.ndarray] | None:
        """The arrays saved for the unit on these rows; None when there are none, or damaged ones."""
        if not self.folder:
            return None
        arrays = self._read(self.folder / f"{unit}.npz", rows)
        return arrays if everywhere(arrays is not None) else None

    def _read(self, path: Path, rows: np.ndarray) -> dict[str, np.ndarray] | None:
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        saved = arrays.pop("rows", None)
        return arrays if saved is not None and np.array_equal(saved, rows) else None

    def save(self, unit: str, rows: np.ndarray, arrays: dict[str, Any]) -> None:
        """Writes the unit's arrays; a reader sees all of it or nothing."""
        if not self._own:
            return
        partial = self._own / f"{unit}.tmp"
        with open(partial, "wb") as file:
            np.savez(file, rows=rows, **arrays)
        os.replace(partial, self._own / f"{unit}.npz")

    def note(self, **status: Any) -> None:
        """Writes state.json, which nobody but people reads."""
        if self._own:
            text = json.dumps(self._about | status, indent=1)
            (self._own / "state.json").write_text(text, encoding="utf-8")

    def remove(self, unit: str) -> None:
        """Forgets a unit."""
        if self._own:
            (self._own / f"{unit}.npz").unlink(missing_ok=True)
