"""A disk cache of decoded images, so that a second run does not decode tens of thousands again."""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT = 2  # raise it when the meaning of what is stored changes

Arrays = dict[str, np.ndarray]


def cache_dir() -> Path:
    """Where caches lie: $ARD_CACHE_DIR, else $XDG_CACHE_HOME/ard_jax, else ~/.cache/ard_jax."""
    if own := os.environ.get("ARD_CACHE_DIR"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "ard_jax"
    return Path("~/.cache/ard_jax").expanduser()


def fingerprint(directory: Path, files: list[Path]) -> str:
    """A hash over the names, sizes and modification times of `files`, which lie in `directory`."""
    stats = [(str(f.relative_to(directory)), f.stat()) for f in sorted(files)]
    rows = [(name, st.st_size, st.st_mtime_ns) for name, st in stats]
    text = json.dumps([_FORMAT, str(directory.resolve()), rows])
    return hashlib.sha256(text.encode()).hexdigest()


def cached(
    name: str, directory: Path, files: list[Path], keys: set[str], build: Callable[[], Arrays]
) -> Arrays:
    """What `build` returns, from disk if it was built from the same files before.

    A cache that is missing, corrupt or of other files is rebuilt and replaced atomically; that it
    cannot be written (no space, no permission) is not an error.

    Args:
      name: what it is, for example "cifar10-train"; part of the file's name.
      directory: of the original data.
      files: those files of it that the arrays are made from.
      keys: the names of the arrays.
      build: makes the arrays. Its errors are passed on, and nothing is stored then.

    Returns:
      name -> array.
    """
    source = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]
    path = cache_dir() / f"{name}-{source}.npz"
    mark = fingerprint(directory, files)
    arrays = _read(path, mark, keys)
    if arrays is None:
        arrays = build()
        _write(path, mark, arrays)
    return arrays


def _read(path: Path, mark: str, keys: set[str]) -> Arrays | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["fingerprint"]) != mark:
                return None
            return {key: stored[key] for key in keys}
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever is wrong with it (zip checks sums), we can build it again
        logging.info("cache %s cannot be read (%s): building it again", path, error)
        return None


def _write(path: Path, mark: str, arrays: dict[str, Any]) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # tempfile's own files are nobody else's to read, whatever the umask says.
        temporary = path.with_suffix(f".{secrets.token_hex(8)}.tmp")
        with open(temporary, "xb") as file:
            np.savez(file, fingerprint=np.array(mark), **arrays)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        logging.info("cache %s cannot be written (%s): going on without it", path, error)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
