"""One session of a work that takes several: its clock, its end, and what is remembered of it."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ard_jax import __version__
from ard_jax.preemption import PreemptedError
from ard_jax.writers import write_text_atomic

FILE = "sessions.json"
_BEAT = 10.0  # seconds between two updates of the file: so much of a killed session is not counted
_RUNNING = "running"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Session(contextlib.AbstractContextManager):
    """Counts the time of this session in `folder`/sessions.json, and ends it in time.

    When `hours` are over it signals SIGTERM to this process, which `preemption` turns into a saved state.

    Attributes:
      whole: do not begin what the session's rest does not suffice for.
      busy: something was done that takes long.
    """

    def __init__(self, folder: Path, hours: float = 0.0, whole: bool = False, command: str = ""):
        """Starts nothing; hours 0: no limit."""
        self.whole, self.busy = whole, False
        self._path, self._limit = folder / FILE, 3600 * hours
        self._began, self._over = time.monotonic(), threading.Event()
        self._others = read(folder)
        for other in self._others:
            if other["ended"] == _RUNNING:
                other["ended"] = "killed"
        self.record = {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "ended": _RUNNING,
            "device": device(),
            "versions": versions(),
            "commit": commit(),
            "command": command,
        }
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)

    def __enter__(self) -> "Session":
        """Starts the clock."""
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind, *_) -> None:
        """Writes how it ended."""
        self._over.set()
        self._thread.join()
        stopped = kind is not None and issubclass(kind, PreemptedError | KeyboardInterrupt)
        self.record["ended"] = "stopped" if stopped else "failed" if kind else "finished"
        self._write()

    def _run(self) -> None:
        signalled = False
        while not self._over.wait(min(_BEAT, self.left() if not signalled else _BEAT)):
            self._write()
            if self.left() <= 0 and not signalled:
                signalled = True
                os.kill(os.getpid(), signal.SIGTERM)

    def _write(self) -> None:
        self.record["seconds"] = round(time.monotonic() - self._began, 1)
        write_text_atomic(self._path, json.dumps([*self._others, self.record], indent=1) + "\n")

    def left(self) -> float:
        """Seconds that are left; infinite without a limit."""
        spent = time.monotonic() - self._began
        return max(0.0, self._limit - spent) if self._limit else float("inf")

    def start(self, phase: str, estimate: float, tell: Callable[[str], None]) -> None:
        """To be called before each phase.

        Args:
          phase: its name.
          estimate: its seconds, by the schedule.
          tell: prints a line.

        Raises:
          PreemptedError: with `whole`, when it would not be finished in this session.
        """
        tell(f"\n{phase}: about {estimate / 60:.1f} min by the schedule")
        if self.whole and self.busy and self.left() < 1.1 * estimate:
            raise PreemptedError(
                f"stopped before {phase}, for which the {self.left() / 60:.1f} min left of this session are "
                "too few"
            )
        self.busy = True


def read(folder: Path) -> list[dict[str, Any]]:
    """The sessions so far; [] when there are none, or the file is damaged."""
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []


def device() -> str:
    """What computes here, "1 x NVIDIA H100"; on a CPU with its number of cores."""
    found = jax.devices()
    cores = f", {os.cpu_count()} cores" if found[0].platform == "cpu" else ""
    return f"{len(found)} x {found[0].device_kind} ({found[0].platform}{cores})"


def versions() -> dict[str, str]:
    """Python, this package and those that compute."""
    found = {"python": platform.python_version(), "ard_jax": __version__}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> str:
    """Git's commit of this code, with "+" when files were changed since; "" where there is no git."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
