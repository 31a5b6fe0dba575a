"""One run at a time in a folder; the operating system lets go when the process dies."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ard_jax.runtime import preemption
from ard_jax.runtime.distributed import everywhere, is_lead

try:
    import fcntl
except ImportError:  # Windows has no flock; there two runs in one folder are not kept apart
    fcntl = None

_AGAIN_SECONDS = 0.3


class FolderBusyError(ValueError):
    """Another run works in the folder."""


@contextlib.contextmanager
def hold(
    folder: Path,
    on_busy: Callable[[], None] | None = None,
    flag: str = "--config.workdir",
    keep: bool = True,
) -> Iterator[bool]:
    """Holds `folder` (made if missing) for the block; of several processes the lead does, for all.

    Args:
      folder: the folder.
      on_busy: called in the lead when another run holds it, before waiting for that; None to raise instead.
      flag: what chose the folder, for the message.
      keep: whether the lock's file stays; not together with `on_busy`.

    Yields:
      True.

    Raises:
      FolderBusyError: it is held and there is no `on_busy`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(folder / ".lock", "w")) if is_lead() else None
        told = False
        while not everywhere(file is None or _taken(file)):
            if on_busy is None:
                raise FolderBusyError(
                    f"another process is running in {folder}; wait for it, or choose another "
                    f"folder with {flag}"
                )
            if is_lead() and not told:
                on_busy()
            told = True
            preemption.check(f"the wait for {folder}")
            time.sleep(_AGAIN_SECONDS)
        if file is not None and not keep:
            stack.callback(Path(file.name).unlink, missing_ok=True)  # before it is let go
        yield True


def held(folder: Path) -> bool:
    """Whether a process works in the folder. Makes nothing, and asks no device."""
    if fcntl is None:
        return False
    try:
        with open(folder / ".lock") as file:
            return not _taken(file)
    except OSError:
        return False


@contextlib.contextmanager
def try_hold(folder: Path) -> Iterator[bool]:
    """Holds `folder` (made if missing) for the block if nobody does; yields whether this process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(folder / ".lock", "w")) if is_lead() else None
        yield everywhere(file is None or _taken(file))


def _taken(file: IO) -> bool:
    """Whether the file could be locked, and is still the one of its name (see `keep`)."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except OSError:
        return False
