"""One process at a time in a folder; the operating system lets go when the process dies."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock; there two runs in one folder are not kept apart
    fcntl = None


class FolderBusyError(ValueError):
    """Another process works in the folder."""


@contextlib.contextmanager
def hold(folder: Path, on_busy: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds `folder` (made if missing) for the block.

    Args:
      folder: the folder.
      on_busy: called when another process holds it, before waiting for that; None to raise instead.

    Raises:
      FolderBusyError: it is held and there is no `on_busy`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if on_busy is None:
                    raise FolderBusyError(
                        f"another process is running in {folder}; wait for it, or choose another "
                        "folder with --config.workdir"
                    ) from error
                on_busy()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
