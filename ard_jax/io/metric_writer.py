"""Where a run writes what it measures: metrics.jsonl and TensorBoard.

Only the lead process writes; elsewhere every method does nothing. The record fields are plain
Python numbers by then: this module needs no JAX, and waits for no device.
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ard_jax.io.files import from_plain, to_plain, write_text_atomic

METRICS_FILE = "metrics.jsonl"
_NOT_SCALARS = ("step", "epoch", "time")  # the axes of a record, not values to plot
_FLUSH_SECONDS = 10  # of TensorBoard's file


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
    """Appends records to `workdir/metrics.jsonl` and mirrors their numbers to TensorBoard.

    A record is a flat dict with "kind" ("train", "eval" or "event"), "step", and values; evaluation
    records also name their "net" and "split". NaN and infinities are written as the strings "nan",
    "inf", "-inf", so that every line is valid JSON.

    TensorBoard tags are kind/net/name without the parts a record does not have; the split comes
    before the name of an evaluation ("eval/student/validation/clean"). Events are not mirrored.

    Args:
      workdir: folder of the run; made when missing.
      tensorboard: whether to write `workdir/tensorboard` as well.
      resume_step: number of updates the restored checkpoint had done (0: starting over in the same
        folder). Train and eval records of later steps are removed, since the run will write them
        again; events stay as the history of the run. None: keep everything.
      lead: False makes every method do nothing, for all processes but one.

    Raises:
      ValueError: metrics.jsonl is damaged anywhere but in its last line.
    """

    def __init__(
        self,
        workdir: str | Path,
        tensorboard: bool = True,
        resume_step: int | None = None,
        lead: bool = True,
    ):
        """See the class."""
        self._file = self._summary = None
        if not lead:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / METRICS_FILE
        kept = [line for line, rec in _parse_lines(path) if not _is_after(rec, resume_step)]
        write_text_atomic(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
        if tensorboard:
            with self._mirroring(workdir / "tensorboard"):
                self._summary = _TensorBoard(workdir / "tensorboard", resume_step)

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
        if self._summary is not None and plain.get("kind") != "event":
            with self._mirroring(self._summary.folder):
                self._summary.write(plain)

    @contextlib.contextmanager
    def _mirroring(self, folder: Path) -> Iterator[None]:
        """Goes on without TensorBoard where it cannot be written: metrics.jsonl holds all of it."""
        try:
            yield
        except OSError as error:
            logging.warning(
                "%s cannot be written (%s): going on without it", folder, error.strerror
            )
            if self._summary is not None:
                with contextlib.suppress(OSError):
                    self._summary.close()
            self._summary = None

    def __exit__(self, *exc_info: Any) -> None:
        """Closes the files, also after an exception."""
        self.close()

    def close(self) -> None:
        """Closes both files; may be called twice. Later writes do nothing."""
        for file in (self._file, self._summary):
            if file is not None:
                with contextlib.suppress(OSError):  # told when it was written
                    file.close()
        self._file = self._summary = None


class _TensorBoard:
    """A TensorBoard file that the caller's thread writes: a SummaryWriter's own dies of a full disk."""

    def __init__(self, folder: Path, resume_step: int | None):
        # Imported late: slow, and optional in use.
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        messages: Any = event_pb2  # no stub: protobuf makes its classes
        self.folder, self._event, self._flushed = folder, messages.Event, time.monotonic()
        # Not by the second alone: a quick restart would overwrite it.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._file = RecordWriter(str(folder / name))
        self._add(file_version="brain.Event:2")
        if resume_step is not None:
            # TensorBoard hides older points from this step on, itself included.
            step = {"step": resume_step + 1}
            self._add(file_version="brain.Event:2", **step)
            self._add(session_log=messages.SessionLog(status=messages.SessionLog.START), **step)

    def write(self, record: dict) -> None:
        """Writes the numbers of a record.

        Raises:
          OSError: the disk is full.
        """
        from tensorboardX.summary import scalar

        prefix = [str(record[key]) for key in ("kind", "net", "split") if key in record]
        at = {"step": record.get("step"), "wall_time": record.get("time") or time.time()}
        for name, value in record.items():
            value = from_plain(value)
            if name not in _NOT_SCALARS and isinstance(value, (int, float)):
                self._add(summary=scalar("/".join([*prefix, name]), float(value)), **at)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def _add(self, **fields: Any) -> None:
        event = self._event(**{"wall_time": time.time()} | fields)
        self._file.write(event.SerializeToString())

    def close(self) -> None:
        """Writes what is left. OSError: the disk is full."""
        self._file.close()
