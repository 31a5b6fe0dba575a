"""Reads the metrics of training steps without holding up the device, and logs them."""

import statistics
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ard_jax.io.metric_writer import MetricWriter
from ard_jax.io.progress import Progress
from ard_jax.training.means import Means, non_finite

# Steps whose metrics are still unread when another one is dispatched. Running ahead hides the host's own
# work between steps. It is bounded, because a loss that is not finite is noticed this much later, and a stop
# waits for all that was dispatched; where steps take long nothing is gained by it, and the bound is 1.
AHEAD = 8
SHORT_SECONDS = 0.25  # of a step beside which the host's own work may show


class TrainingDivergedError(RuntimeError):
    """A loss became NaN or infinite."""


class _Unread(NamedTuple):
    step: int  # number of updates before
    metrics: dict[str, jax.Array]
    size: int  # of its batch


class TrainLog:
    """Metrics from the device into metrics.jsonl, the progress display and the check for NaN.

    Args:
      training: a `loop.TrainingRun`.
      writer: of metrics.jsonl.
      progress: display.
      checkpoints: folder of last/, for the message of `TrainingDivergedError`.
      single: whether there is but one process. Of several all must notice a loss that is not finite after
        the same step, so that none waits for the others; they read by count alone.
    """

    def __init__(
        self,
        training: Any,
        writer: MetricWriter,
        progress: Progress,
        checkpoints: Any,
        single: bool,
    ):
        """Has read nothing."""
        self.training, self.writer, self.progress = training, writer, progress
        self.checkpoints, self.single = checkpoints, single
        self.ahead, self.shown = 1, {}
        self._unread: deque[_Unread] = deque()
        self._means = Means()
        self.restart_window()

    def add(self, step: int, metrics: dict[str, jax.Array], size: int) -> None:
        """Notes the metrics of the step after `step` updates, and reads those that are ready or due.

        Raises:
          TrainingDivergedError: a loss of those that were read is not finite.
        """
        self._unread.append(_Unread(step, metrics, size))
        while len(self._unread) > self.ahead or self._ready():  # the one just made is left to run
            self._read(self._unread.popleft())

    def read_all(self) -> None:
        """Waits for everything that was dispatched, and reads it.

        Raises:
          TrainingDivergedError: a loss is not finite.
        """
        while self._unread:
            self._read(self._unread.popleft())

    def restart_window(self) -> None:
        """From here on images per second are counted; to be called when nothing is unread."""
        self._began, self._images = time.monotonic(), 0

    def event(self, step: int, name: str, **values: Any) -> None:
        """Writes an event."""
        self.writer.write({"kind": "event", "step": step, "event": name} | values)

    def _ready(self) -> bool:
        return (
            self.single
            and bool(self._unread)
            and all(v.is_ready() for v in self._unread[0].metrics.values())  # pyright: ignore[reportAttributeAccessIssue]  # no stub
        )

    def _read(self, unread: _Unread) -> None:
        values = {name: float(value) for name, value in jax.device_get(unread.metrics).items()}
        self._images += unread.size
        rate = self._images / max(time.monotonic() - self._began, 1e-9)
        step = unread.step + 1
        self._check(step, values)
        self._means.add(values, unread.size)
        epoch = unread.step // self.training.steps_per_epoch + 1
        if step % self.training.log_every == 0 or step == self.training.total:
            record = {"kind": "train", "step": step, "epoch": epoch, "time": time.time()}
            means = self._means.values_and_reset()
            self.writer.write(record | means | {"images_per_second": rate})
        terms = {k: v for k, v in values.items() if k.startswith("loss") or k.endswith("accuracy")}
        fields = {"epoch": epoch} | terms | self.shown | {"images_per_second": rate}
        self.progress.update(1, fields)

    def _check(self, step: int, values: dict[str, float]) -> None:
        if not (bad := non_finite(values)):
            return
        self.event(step, "diverged", **values)
        saved, folder = self.checkpoints.steps(), Path(self.checkpoints.folder)
        raise TrainingDivergedError(
            f"{self.training.title}: {', '.join(bad)} not finite at step {step} of {self.training.total}. "
            "All terms: " + ", ".join(f"{k}={v:.6g}" for k, v in values.items()) + ". Last good "
            + (f"checkpoint: {folder / str(saved[-1])}." if saved else "checkpoint: none.")
            + " A lower learning rate often helps."
        )  # fmt: skip


def of_training(
    records: Iterable[dict[str, Any]], seconds: float, images: int, images_per_epoch: int
) -> dict[str, Any]:
    """A finished training's times, over all its restarts.

    Args:
      records: of its metrics.jsonl.
      seconds: of wall time, evaluation and compilation included.
      images: that it trained on, repeats included.
      images_per_epoch: likewise in one epoch.

    Returns:
      "train_seconds", "images_per_second", "seconds_per_epoch" (without compilation and evaluation: the
      images of an epoch over the median of the speeds that were logged after the first epoch, which
      compiles; left out when there is no second epoch), "compile_seconds" of the train step, and
      "compilation_cache": {"hits", "misses"} of it.
    """
    timing: dict[str, Any] = {
        "train_seconds": seconds,
        "images_per_second": images / max(seconds, 1e-9),
    }
    records = list(records)
    speeds = [r["images_per_second"] for r in records if r["kind"] == "train" and r["epoch"] > 1]
    if speeds:
        timing["seconds_per_epoch"] = images_per_epoch / statistics.median(speeds)
    compiled = [r for r in records if r["kind"] == "event" and r["event"] == "compiled"]
    if compiled:
        timing["compile_seconds"] = sum(r["compile_seconds"] for r in compiled)
        timing["compilation_cache"] = {
            name: sum(r[f"cache_{name}"] for r in compiled) for name in ("hits", "misses")
        }
    return timing
