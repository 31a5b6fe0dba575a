"""Where a run writes what it measures: metrics.jsonl, TensorBoard and the progress display.

Only the lead process writes; elsewhere every method does nothing. The record fields are plain
Python numbers by then: this module needs no JAX, and waits for no device.
"""

import contextlib
import json
import math
import numbers
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from tqdm import tqdm

METRICS_FILE = "metrics.jsonl"
_BAR_FORMAT = (
    "{desc}{percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
)
_NOT_SCALARS = ("step", "epoch", "time")  # the axes of a record, not values to plot
_SPECIAL_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def write_text_atomic(path: str | os.PathLike, text: str) -> Path:
    """Writes a UTF-8 text file through `<path>.tmp`: a reader sees the old file or the new one.

    Raises:
      OSError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


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


def _from_plain(value: Any) -> Any:
    """Undoes what `to_plain` did to NaN and the infinities."""
    return _SPECIAL_FLOATS.get(value, value) if isinstance(value, str) else value


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
    return [{name: _from_plain(value) for name, value in rec.items()} for rec in records]


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
        self, workdir: str | Path, tensorboard=True, resume_step: int | None = None, lead=True
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
            self._summary = self._open_tensorboard(workdir / "tensorboard", resume_step)

    @staticmethod
    def _open_tensorboard(folder: Path, resume_step: int | None):
        from tensorboardX import SummaryWriter  # imported late: slow, and optional in use

        return SummaryWriter(
            str(folder),
            # TensorBoard hides older points from purge_step on, that step included.
            purge_step=None if resume_step is None else resume_step + 1,
            flush_secs=10,
            # tensorboardX names files by the second and overwrites: a quick restart would lose one.
            filename_suffix=f".{os.getpid()}.{time.time_ns()}",
        )

    def write(self, record: dict) -> None:
        """Writes one record and flushes it: a kill later cannot take it back."""
        if self._file is None:
            return
        plain = to_plain(record)
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self._file.flush()
        if self._summary is not None and plain.get("kind") != "event":
            self._write_scalars(plain)

    def _write_scalars(self, record: dict) -> None:
        prefix = [str(record[key]) for key in ("kind", "net", "split") if key in record]
        for name, value in record.items():
            value = _from_plain(value)
            if name not in _NOT_SCALARS and isinstance(value, (int, float)):
                tag = "/".join([*prefix, name])
                self._summary.add_scalar(tag, float(value), record.get("step"), record.get("time"))

    def __exit__(self, *exc_info) -> None:
        """Closes the files, also after an exception."""
        self.close()

    def close(self) -> None:
        """Closes both files; may be called twice. Later writes do nothing."""
        for file in (self._file, self._summary):
            if file is not None:
                file.close()
        self._file = self._summary = None


def _format_field(name: str, value: Any) -> str:
    """One field of the progress display: "accuracy=91.2%", "1,234 img/s", "loss=0.1234"."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{name}={value}"
    if name == "images_per_second":
        return f"{value:,.0f} img/s"
    if "accuracy" in name:
        return f"{name}={100 * value:.1f}%"
    return f"{name}={value}" if isinstance(value, int) else f"{name}={value:.4g}"


class Progress(contextlib.AbstractContextManager):
    """Shows how far a run is: a bar on a terminal, now and then a plain line elsewhere (CI logs).

    Both show step and total, the fields given to `update` (epoch, loss terms, accuracies, images
    per second) and the time left. Output goes to standard error.

    Args:
      total: number of steps of the whole run.
      initial: steps done before (a resumed run).
      description: name put in front.
      enabled: False shows nothing, messages included (all processes but the lead). None and True
        choose the bar on a terminal and plain lines elsewhere.
      plain_interval: seconds between plain lines.
    """

    def __init__(self, total: int, initial=0, description="", enabled=None, plain_interval=10.0):
        """See the class."""
        self.total, self.step, self.description = int(total), int(initial), description
        self._enabled = enabled is None or enabled
        self._stream = sys.stderr
        self._interval, self._fields = plain_interval, {}
        now = time.monotonic()
        self._shown_at, self._shown_step = now, self.step
        self._fields_at, self._updates = -math.inf, 0
        self._marks: deque[tuple[float, int]] = deque([(now, self.step)], maxlen=1000)
        self._bar = None
        if self._enabled and self._stream.isatty():
            self._bar = tqdm(
                total=self.total,
                initial=self.step,
                desc=description or None,
                file=self._stream,
                dynamic_ncols=True,
                bar_format=_BAR_FORMAT,
            )

    def update(self, n: int = 1, fields: dict | None = None) -> None:
        """Counts `n` more steps; `fields` (name -> number or text) replace those shown before."""
        self.step += n
        if not self._enabled:
            return
        now = time.monotonic()
        if fields is not None:
            self._fields = fields
        if self._updates == 1:  # from the second on, leave out the first: it compiled
            self._marks.popleft()
        self._updates += 1
        self._marks.append((now, self.step))
        if self._bar is not None:
            if fields is not None and now - self._fields_at >= 0.2:
                self._fields_at = now
                self._bar.set_postfix_str(self._fields_text(), refresh=False)
            self._bar.update(n)
        elif now - self._shown_at >= self._interval or self.step >= self.total:
            self._print_line(now)

    def seconds_left(self) -> float | None:
        """Estimated seconds to the end from the speed of the last 1000 updates; None if unknown."""
        if self.step >= self.total:
            return 0.0
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (end - start) / (last - first) * (self.total - last) if last > first else None

    def message(self, text: str) -> None:
        """Prints a line above the bar without breaking it."""
        if self._enabled:
            tqdm.write(text, file=self._stream)  # a plain print where there is no bar
            self._stream.flush()

    def close(self) -> None:
        """Ends the display with the last state; may be called twice."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._fields_text(), refresh=True)
            self._bar.close()
            self._bar = None
        elif self._enabled and self.step != self._shown_step:
            self._print_line(time.monotonic())
        self._enabled = False

    def __exit__(self, *exc_info) -> None:
        """Ends the display, also after an exception."""
        self.close()

    def _fields_text(self) -> str:
        return " ".join(_format_field(name, value) for name, value in self._fields.items())

    def _print_line(self, now: float) -> None:
        self._shown_at, self._shown_step = now, self.step
        head = f"{self.description}: " if self.description else ""
        left = self.seconds_left()
        eta = "?" if left is None else tqdm.format_interval(left)
        parts = (f"{head}{self.step}/{self.total}", self._fields_text(), f"ETA {eta}")
        print(" ".join(part for part in parts if part), file=self._stream, flush=True)
