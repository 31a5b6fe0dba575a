"""Where the numbers of metrics.jsonl also go: TensorBoard, Weights & Biases, MLflow.

Each may fail, as metrics.jsonl holds everything. Their packages are imported when they are used.
"""

import contextlib
import dataclasses
import errno
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ard_jax.io.files import from_plain, write_text_atomic

_NOT_SCALARS = ("step", "epoch", "time")  # the axes of a record, not values to plot
_FLUSH_SECONDS = 10  # of TensorBoard's file
_MLFLOW_PARAMS = 100  # in one call
_IN_NO_TAG = re.compile(r"[^\w.-]+")


@dataclasses.dataclass(frozen=True)
class Tracking:
    """What mirrors are told of a run, and which there are beside TensorBoard.

    Attributes:
      name: of the run.
      config: its configuration, nested.
      metrics: names, as `numbers` makes them, that TensorBoard shows beside the hyper-parameters.
      wandb: project of Weights & Biases; "" for none.
      mlflow: experiment of MLflow; "" for none.
    """

    name: str = ""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    wandb: str = ""
    mlflow: str = ""


class Mirror(Protocol):
    """One place; every method and the constructor may raise OSError.

    Attributes:
      where: what it is, for messages.
    """

    where: str

    def write(self, record: dict[str, Any]) -> None:
        """Writes the numbers of a record of metrics.jsonl."""
        ...

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Writes an image, uint8 [H,W,C] with one or three channels."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


def wanted(
    workdir: Path, tensorboard: bool, tracking: Tracking, resume_step: int | None
) -> Iterator[tuple[str, Callable[[], Mirror]]]:
    """(what it is, what makes it) of each mirror of a run."""
    if tensorboard:
        folder = workdir / "tensorboard"
        yield str(folder), lambda: TensorBoard(folder, resume_step, tracking)
    if tracking.wandb:
        yield "Weights & Biases", lambda: Wandb(workdir, resume_step, tracking)
    if tracking.mlflow:
        yield "MLflow", lambda: Mlflow(workdir, resume_step, tracking)


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """Tag -> number of a record.

    Tags are kind/net/name without the parts a record does not have; the split comes before the name of an
    evaluation ("eval/student/validation/clean"). Only what all mirrors take is left of a part:
    "student (best)" is student_best.
    """
    prefix = [str(record[key]) for key in ("kind", "net", "split") if key in record]
    values = {name: from_plain(value) for name, value in record.items() if name not in _NOT_SCALARS}
    return {
        "/".join(_IN_NO_TAG.sub("_", part).strip("_") for part in (*prefix, name)): float(value)
        for name, value in values.items()
        if isinstance(value, int | float)
    }


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Dotted name -> value of nested dicts; what is no number or text becomes a text."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, int | float | str) else str(value)
    return found


class TensorBoard:
    """A TensorBoard file that the caller's thread writes: a SummaryWriter's own dies of a full disk."""

    def __init__(self, folder: Path, resume_step: int | None, tracking: Tracking):
        """Begins a file; the hyper-parameters are written where the run begins."""
        # Imported late: slow, and optional in use.
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        messages: Any = event_pb2  # no stub: protobuf makes its classes
        self.where, self._event, self._flushed = str(folder), messages.Event, time.monotonic()
        # Not by the second alone: a quick restart would overwrite it.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._file = RecordWriter(str(folder / name))
        self._add(file_version="brain.Event:2")
        if resume_step is not None:
            # TensorBoard hides older points from this step on, itself included.
            step = {"step": resume_step + 1}
            self._add(file_version="brain.Event:2", **step)
            self._add(session_log=messages.SessionLog(status=messages.SessionLog.START), **step)
        if tracking.config and not resume_step:
            metrics = dict.fromkeys(tracking.metrics, 0.0)
            for part in summary.hparams(flat(tracking.config), metrics):
                self._add(summary=part)

    def write(self, record: dict[str, Any]) -> None:
        """See `Mirror`."""
        from tensorboardX.summary import scalar

        at = {"step": record.get("step"), "wall_time": record.get("time") or time.time()}
        for name, value in numbers(record).items():
            self._add(summary=scalar(name, value), **at)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """See `Mirror`."""
        from tensorboardX.summary import image

        self._add(summary=image(name, pixels, dataformats="HWC"), step=step)

    def _add(self, **fields: Any) -> None:
        event = self._event(**{"wall_time": time.time()} | fields)
        self._file.write(event.SerializeToString())

    def close(self) -> None:
        """See `Mirror`."""
        self._file.close()


class Wandb:
    """A run of Weights & Biases, in the mode that its environment says (WANDB_MODE=offline)."""

    where = "Weights & Biases"

    def __init__(self, workdir: Path, resume_step: int | None, tracking: Tracking):
        """Begins the run, or goes on with it."""
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb: Any = wandb
        identity = _identity(workdir / "wandb_id", resume_step, lambda: secrets.token_hex(8))
        with _as_os_error(wandb.Error):
            self._run = self._wandb.init(
                project=tracking.wandb, name=tracking.name, id=identity, resume="allow", dir=workdir,
                config=tracking.config, settings=self._wandb.Settings(console="off"),
            )  # fmt: skip
            # What is done again after a kill has steps that were seen: a step of its own may go back.
            self._run.define_metric("*", step_metric="step")

    def write(self, record: dict[str, Any]) -> None:
        """See `Mirror`."""
        with _as_os_error(self._wandb.Error):
            self._run.log(numbers(record) | {"step": record["step"]})

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """See `Mirror`."""
        with _as_os_error(self._wandb.Error):
            self._run.log({name: self._wandb.Image(pixels), "step": step})

    def close(self) -> None:
        """See `Mirror`."""
        with _as_os_error(self._wandb.Error):
            self._run.finish()


class Mlflow:
    """A run of MLflow, where its environment says (MLFLOW_TRACKING_URI)."""

    where = "MLflow"

    def __init__(self, workdir: Path, resume_step: int | None, tracking: Tracking):
        """Begins the run, or goes on with it."""
        from mlflow import entities  # pyright: ignore[reportMissingImports]
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        self._entities: Any = entities
        self._error = MlflowException
        with _as_os_error(self._error):
            self._client = MlflowClient()

            def begin() -> str:
                found = self._client.get_experiment_by_name(tracking.mlflow)
                experiment = (
                    found.experiment_id
                    if found
                    else self._client.create_experiment(tracking.mlflow)
                )
                run = self._client.create_run(experiment, run_name=tracking.name).info.run_id
                values = [self._entities.Param(k, str(v)) for k, v in flat(tracking.config).items()]
                for first in range(0, len(values), _MLFLOW_PARAMS):
                    self._client.log_batch(run, params=values[first : first + _MLFLOW_PARAMS])
                return run

            self._run = _identity(workdir / "mlflow_id", resume_step, begin)
            self._client.update_run(self._run, status="RUNNING")

    def write(self, record: dict[str, Any]) -> None:
        """See `Mirror`."""
        when = int(1000 * (record.get("time") or time.time()))
        metrics = [
            self._entities.Metric(name, value, when, record["step"])
            for name, value in numbers(record).items()
        ]
        with _as_os_error(self._error):
            self._client.log_batch(self._run, metrics=metrics)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """See `Mirror`."""
        with _as_os_error(self._error):
            self._client.log_image(self._run, pixels, key=name, step=step)

    def close(self) -> None:
        """See `Mirror`."""
        with _as_os_error(self._error):
            self._client.set_terminated(self._run)


def _identity(path: Path, resume_step: int | None, make: Callable[[], str]) -> str:
    """A run's name in another place, kept in a file: what goes on here goes on there. Step 0 is a new run."""
    if resume_step == 0 or not path.exists():
        write_text_atomic(path, make())
    return path.read_text()


@contextlib.contextmanager
def _as_os_error(kind: type[Exception]) -> Iterator[None]:
    """Raises errors of another library as OSError."""
    try:
        yield
    except kind as error:
        raise OSError(errno.EIO, str(error).partition("\n")[0]) from error
