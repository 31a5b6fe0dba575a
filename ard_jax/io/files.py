"""Text files that are whole or absent, and values as JSON holds them."""

import contextlib
import errno
import math
import numbers
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

_SPECIAL_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def write_arrays_atomic(path: Path, arrays: dict[str, Any]) -> None:
    """Writes a compressed .npz file, whole or not at all."""
    import numpy as np  # --help answers without it

    partial = path.with_suffix(".tmp.npz")
    np.savez_compressed(partial, **arrays)
    partial.replace(path)


def write_text_atomic(path: str | os.PathLike, text: str) -> Path:
    """Writes a UTF-8 text file through `<path>.tmp`: a reader sees the old file or the new one.

    Raises:
      OSError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # which does not say of which file
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    return path


def check_writable(folder: str | os.PathLike, name: str) -> None:
    """Checks that files can be made in a folder, which need not exist; makes nothing that stays.

    Args:
      folder: the folder.
      name: the flag or option that chose it, for the message.

    Raises:
      ValueError: a file stands in the way, or nothing can be written there.
    """
    folder = Path(folder).absolute()
    nearest = next(p for p in (folder, *folder.parents) if p.exists() or p.is_symlink())
    if not nearest.is_dir():
        raise ValueError(f"{name}={folder}: {nearest} is not a folder; choose another one")
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(bytes(1 << 16))
    except OSError as error:
        raise ValueError(
            f"{name}={folder}: {nearest} cannot be written ({error.strerror}); choose another folder"
        ) from error


def check_file_place(path: str | os.PathLike) -> None:
    """Raises OSError unless a file can stand there: its folder exists, and it is no folder itself."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "its folder does not exist", str(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "this is a folder; give a file's path", str(path))


def expand(path: str) -> str:
    """A path with the home folder for ~ and values for $VARIABLES, as a shell that quotes leaves them."""
    return os.path.expanduser(os.path.expandvars(path))


def size_text(size: float) -> str:
    """Formats a number of bytes: 12340 -> "12.3 kB"."""
    unit = min(3, int(math.log(max(size, 1), 1000)))
    return f"{size / 1000**unit:.3g} {('bytes', 'kB', 'MB', 'GB')[unit]}"


def output_is_lost() -> bool:
    """Whether standard output cannot be written any more; then nothing more is tried, at the exit either."""
    output = sys.stdout
    if output is None:
        return False
    try:
        print(file=output, flush=True)  # what failed before is no longer in its buffer
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        return True
    return False


def follow_umask(path: str | os.PathLike) -> None:
    """Gives a file the mode that a plain `open` would have made it with."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def to_plain(value: Any) -> Any:
    """Turns a value into what JSON can say: arrays to lists, NaN and infinities to strings.

    Anything unknown becomes its `str`: a record must never be the reason that a run dies.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if hasattr(value, "tolist"):  # numpy and JAX arrays and scalars
        return to_plain(value.tolist())
    return str(value)


def from_plain(value: Any) -> Any:
    """Undoes what `to_plain` did to NaN and the infinities."""
    return _SPECIAL_FLOATS.get(value, value) if isinstance(value, str) else value
