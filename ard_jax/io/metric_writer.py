"""Where a run writes what it measures: metrics.jsonl, and its mirrors (TensorBoard and others).

Only the lead process writes; elsewhere every method does nothing. The record fields are plain
Python numbers by then: this module needs no JAX, and waits for no device.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ard_jax.io import mirrors
from ard_jax.io.files import from_plain, to_plain, write_text_atomic
from ard_jax.io.mirrors import Mirror, Tracking

METRICS_FILE = "metrics.jsonl"
_NO_TRACKING = Tracking()


def _parse_lines(path: Path) -> list[tuple[str, dict]]:
    """Reads (line, record) pairs; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().decode("utf-8", errors="replace").strip().split("\n")
    pairs = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{path}: line {number} is not a JSON record ({error}); only the last line may be "
                "cut off. Delete that line, or move the file away to start a new one."
            ) from error
        pairs.append((line, record))
    return pairs


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Reads metrics.jsonl; [] when there is no such file.

    A last line that was cut off (the process was killed while writing) is left out. The strings
    "nan", "inf" and "-inf" come back as floats.

    Raises:
      ValueError: another line is damaged; the message names the file and the line.
    """
    records = [record for _, record in _parse_lines(Path(path))]
    return [{name: from_plain(value) for name, value in rec.items()} for rec in records]


def _is_after(record: dict, step: int | None) -> bool:
    """Whether a record is of training that a run resumed at `step` will do again."""
    return (
        step is not None
        and record.get("kind") in ("train", "eval")
        and record.get("step", 0) > step
    )


class MetricWriter(contextlib.AbstractContextManager):
    """Appends records to `workdir/metrics.jsonl` and mirrors their numbers, e.g. to TensorBoard.

    A record is a flat dict with "kind" ("train", "eval" or "event"), "step", and values; evaluation
    records also name their "net" and "split". NaN and infinities are written as the strings "nan",
    "inf", "-inf", so that every line is valid JSON.

    Events are not mirrored; `mirrors.numbers` says how the numbers are called there.

    Args:
      workdir: folder of the run; made when missing.
      tensorboard: whether to write `workdir/tensorboard` as well.
      resume_step: number of updates the restored checkpoint had done (0: starting over in the same
        folder). Train and eval records of later steps are removed, since the run will write them
        again; events stay as the history of the run. None: keep everything.
      lead: False makes every method do nothing, for all processes but one.
      tracking: further mirrors, and what they and TensorBoard are told of the run.

    Raises:
      ValueError: metrics.jsonl is damaged anywhere but in its last line.
    """

    def __init__(
        self,
        workdir: str | Path,
        tensorboard: bool = True,
        resume_step: int | None = None,
        lead: bool = True,
        tracking: Tracking = _NO_TRACKING,
    ):
        """See the class."""
        self._file, self._mirrors = None, list[Mirror]()
        if not lead:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / METRICS_FILE
        kept = [line for line, rec in _parse_lines(path) if not _is_after(rec, resume_step)]
        write_text_atomic(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
        for where, make in mirrors.wanted(workdir, tensorboard, tracking, resume_step):
            with self._mirroring(where):
                self._mirrors.append(make())

    def write(self, record: dict) -> None:
        """Writes one record and flushes it: a kill later cannot take it back."""
        if self._file is None:
            return
        plain = to_plain(record)
        try:
            self._file.write(json.dumps(plain, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:  # which does not say of which file
            raise OSError(error.errno, error.strerror, self._file.name) from error
        if plain.get("kind") != "event":
            self.mirror(plain)

    def mirror(self, record: dict) -> None:
        """Writes the numbers of a record to the mirrors alone."""
        for one in tuple(self._mirrors):
            with self._mirroring(one.where, one):
                one.write(record)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Writes an image, uint8 [H,W,C], to the mirrors."""
        for one in tuple(self._mirrors):
            with self._mirroring(one.where, one):
                one.image(name, pixels, step)

    @contextlib.contextmanager
    def _mirroring(self, where: str, mirror: Mirror | None = None) -> Iterator[None]:
        """Goes on without a mirror that fails: metrics.jsonl holds all of it."""
        try:
            yield
        except OSError as error:
            logging.warning("%s cannot be written (%s): going on without it", where, error.strerror)
            if mirror is not None:
                self._mirrors.remove(mirror)
                with contextlib.suppress(OSError):
                    mirror.close()

    def __exit__(self, *exc_info: Any) -> None:
        """Closes all, also after an exception."""
        self.close()

    def close(self) -> None:
        """Closes the file and the mirrors; may be called twice. Later writes do nothing."""
        for one in (self._file, *self._mirrors):
            if one is not None:
                with contextlib.suppress(OSError):  # told when it was written
                    one.close()
        self._file, self._mirrors = None, []
