"""The host loop that trains one network, student or teacher, and survives being killed.

The order in `fit` is fixed: evaluate -> save -> next batch -> step -> log. A checkpoint is written after
the evaluation at its step and before the next batch is drawn, and a batch is a pure function of
(seed, step), so continuing from a checkpoint repeats exactly what would have happened.

A run that is asked to stop saves at the step where it is, in the middle of an epoch too, or before an
evaluation that it then makes up for. The parameters do not show it; in the logs, the first train record
after a restart averages over the steps since.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ard_jax.checkpoints import resume
from ard_jax.checkpoints.manager import CheckpointError, Checkpoints
from ard_jax.checkpoints.resume import ConfigChangedError
from ard_jax.data import batching
from ard_jax.data.base import ArrayDataset
from ard_jax.data.extra import ExtraImages
from ard_jax.io.metric_writer import MetricWriter
from ard_jax.io.mirrors import Tracking
from ard_jax.io.progress import Progress
from ard_jax.methods.base import Method
from ard_jax.models.bundle import ModelBundle
from ard_jax.runtime import preemption
from ard_jax.runtime.distributed import everywhere, is_lead
from ard_jax.runtime.sharding import num_devices, process
from ard_jax.state import RunState
from ard_jax.training import train_step
from ard_jax.training.step_runner import StepRunner
from ard_jax.training.train_log import AHEAD, SHORT_SECONDS, TrainingDivergedError, TrainLog

LONG_SECONDS = 600.0
Scores = dict[str, dict[str, float]]


__all__ = [
    "ConfigChangedError",
    "FitResult",
    "TrainingRun",
    "TrainingDivergedError",
    "fit",
]


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """One training run of the loop.

    Attributes:
      title: shown in the progress bar, "student" or "robust teacher".
      workdir: holds last/, best/, metrics.jsonl.
      method: what a step does.
      initial: makes the state at step 0, placed by `train_step.placement`; on resume it only gives structure
        and shapes.
      train: training images.
      epochs: length.
      batch_size: global batch size.
      last_batch: "drop" or "keep".
      step: seed, augmentation, moving average.
      evaluate: state -> {network: {metric: share}}.
      score: what the best checkpoint maximises, from `evaluate`'s result.
      split: name of the split that `evaluate` uses.
      eval_epochs: epochs after which to evaluate and save.
      save_every: epochs between further saves.
      config: saved with the checkpoints and compared on resume.
      experiment: the whole configuration, saved for `--mode=evaluate`.
      extension_problem: length of an otherwise equal run -> why it cannot be trained on; "" if it can.
      mesh: devices.
      log_every: steps between train records.
      tensorboard: also write TensorBoard files.
      tracking: further places for its numbers: see `mirrors.Tracking`.
      on_device: "auto", "on" or "off": see `schema.DataConfig`.
      columns: further arrays [N,...] with a row for each training image, for methods that ask for them.
      extra: further training images, or None.
      bundle: the network that is trained; only an average with `average_bn` "recomputed" looks at it.
      method_at: side in pixels -> the method for images of this size, where `step` has `crop_sizes`.
      long_note: printed with the time estimate when it takes over ten minutes.
    """

    title: str
    workdir: Path
    method: Method
    initial: Callable[[], RunState]
    train: ArrayDataset
    epochs: int
    batch_size: int
    last_batch: str
    step: train_step.StepConfig
    evaluate: Callable[[RunState], Scores]
    score: Callable[[Scores], float]
    split: str
    eval_epochs: Container[int]
    save_every: int
    config: dict[str, Any]
    experiment: dict[str, Any]
    mesh: Any
    log_every: int = 10
    tensorboard: bool = True
    tracking: Tracking = Tracking()
    long_note: str = ""
    on_device: str = "auto"
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    extra: ExtraImages | None = None
    bundle: ModelBundle | None = None
    method_at: Callable[[int], Method] | None = None
    extension_problem: Callable[[int], str] = lambda _: "its length is part of what it is"

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch."""
        return batching.steps_per_epoch(len(self.train), self.batch_size, self.last_batch)

    @property
    def total(self) -> int:
        """Updates in all."""
        return self.epochs * self.steps_per_epoch


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a finished training leaves behind.

    Attributes:
      last: state after the last step.
      best: state that scored best on the run's split.
      best_step: its step.
      best_scores: its evaluation.
      seconds: wall time of training, over all restarts, evaluation and compilation included.
    """

    last: RunState
    best: RunState
    best_step: int
    best_scores: Scores
    seconds: float


def fit(training: TrainingRun) -> FitResult:
    """Trains to the end, from the newest usable checkpoint if there is one.

    Raises:
      ConfigChangedError: the folder's checkpoint was made with another configuration.
      TrainingDivergedError: a loss is not finite; no checkpoint holds the diverged state.
      PreemptedError: SIGTERM; the state is saved.
      ValueError: see `step_runner.StepRunner`.
    """
    preemption.check(f"{training.title} training, before its first step")
    # Further images fill up every batch.
    count = len(training.train) if training.extra is None else training.batch_size
    shares = num_devices(training.mesh) * training.step.accumulate
    batching.check_sharding(count, training.batch_size, shares, training.last_batch)
    runner, folder = StepRunner(training), training.workdir
    with Checkpoints(folder / "last", keep=2) as last, Checkpoints(folder / "best", keep=2) as best:
        template = train_step.start_average(training.initial(), training.step)
        # Copies: the step donates its state, and teachers' variables are used after it too.
        placed = train_step.placement(training.step, training.mesh, template)
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=placed)
        template = copy(template)
        state, meta = resume.newest(last, template, training.config, training.extension_problem)
        if meta is None or state is None:
            state, meta = template, {"best": None, "seconds": 0.0}
        best.delete_after(int(state.step))  # what comes after is done again
        meta |= {"config": training.config, "experiment": training.experiment}
        state, meta = _Loop(training, runner, last, best, meta).run(state)
        last.wait()
        best.wait()
        best_state, chosen = resume.best(best, state, meta["best"])
        return FitResult(state, best_state, chosen["step"], chosen["scores"], meta["seconds"])


class _Loop:
    """Runs one training: the mutable bookkeeping of the host, none of which affects the arrays."""

    def __init__(
        self,
        training: TrainingRun,
        runner: StepRunner,
        last: Checkpoints,
        best: Checkpoints,
        meta: dict[str, Any],
    ):
        self.training, self.runner, self.last, self.best = training, runner, last, best
        self.meta = dict(meta)
        self.started = time.monotonic() - meta["seconds"]
        self.timed: tuple | None = None  # (when, seconds of compilation, step); () once it is done

    def run(self, state: RunState) -> tuple[RunState, dict[str, Any]]:
        training, start = self.training, int(state.step)
        late = self.meta.pop("unevaluated", False)
        if start == training.total and not late:
            return state, self.meta
        self.runner.restore(start, self.meta.get("data"))
        lead, step = is_lead(), start
        writer = MetricWriter(
            training.workdir,
            training.tensorboard,
            resume_step=start,
            lead=lead,
            tracking=training.tracking,
        )
        self.progress = Progress(
            training.total,
            initial=start,
            description=training.title,
            enabled=None if lead else False,
        )
        self.log = TrainLog(training, writer, self.progress, self.last, single=process()[1] == 1)
        try:
            if start:
                self.log.event(start, "resumed")
                epoch = start // training.steps_per_epoch + 1
                self.progress.message(f"{training.title}: continues at step {start}, epoch {epoch}")
            if late:
                state = self.boundary(start, state, late=True)
            # NOTE: do not change the order. Everything up to "advance" happens at `step` updates done.
            while step < training.total:
                self.estimate(step, step - start, state)
                state, metrics, size = self.runner.advance(state, step)
                self.tell_compiled(step)
                self.log.add(step, metrics, size)  # reads earlier steps, while this one runs
                step += 1
                state = self.boundary(step, state)
                if preemption.requested():
                    self.stop(step, state)
            return state, self.meta
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self.interrupted(step)) from None
        finally:
            self.runner.close()
            self.progress.close()
            writer.close()

    def interrupted(self, step: int) -> str:
        """What is left after Ctrl-C, once it is on disk."""
        with contextlib.suppress(CheckpointError):
            self.last.wait()
        title, saved = self.training.title, self.last.steps()
        kept = f"continues from {self.last.folder / str(saved[-1])}" if saved else "starts anew"
        return f"{title} at step {step} of {self.training.total}; the same command {kept}"

    def tell_compiled(self, step: int) -> None:
        for compiled in self.runner.newly_compiled():
            self.progress.message(compiled.describe())
            self.log.event(step, "compiled", **compiled.record())

    def boundary(self, step: int, state: RunState, late: bool = False) -> RunState:
        """After an epoch: evaluate, then save best, then last; late: which is saved without its scores.

        Returns the state, its average with new statistics where these are recomputed.
        """
        training, (epoch, within) = self.training, divmod(step, self.training.steps_per_epoch)
        if within:
            return state
        evaluated = epoch in training.eval_epochs
        if not evaluated and epoch % training.save_every:
            return state
        self.log.read_all()  # a diverged state must not be saved
        if training.step.average_bn == "recomputed":
            state = self.runner.with_statistics(state, step)
        if evaluated:
            try:
                scores = training.evaluate(state)
            except preemption.PreemptedError:
                self.stop(step, state, unevaluated=True)
            for net, values in scores.items():
                self.log.writer.write(
                    {
                        "kind": "eval",
                        "step": step,
                        "epoch": epoch,
                        "split": training.split,
                        "net": net,
                    }
                    | values
                )
            score, best = training.score(scores), self.meta["best"]
            split = f"{training.split[:3]}@{epoch}"
            self.log.shown = {f"{split} {k}": f"{v:.1%}" for k, v in scores["student"].items()}
            if best is None or score > best["score"]:
                self.meta["best"] = {"step": step, "epoch": epoch, "score": score, "scores": scores}
                self.last.wait()  # a second best checkpoint is never without a last one
                self.best.save(step, state, self.meta_now(step, epoch))
                self.best.wait()  # last names it
        self.last.save(step, state, self.meta_now(step, epoch), replace=late)
        self.log.restart_window()  # images per second leave evaluation out
        return state

    def stop(self, step: int, state: RunState, **more: bool) -> None:
        """Saves, if that has not just been done, and ends the work."""
        self.log.read_all()
        self.last.save(
            step, state, self.meta_now(step, step // self.training.steps_per_epoch) | more
        )
        self.last.wait()
        self.best.wait()
        self.log.event(step, "preempted")
        raise preemption.PreemptedError(
            f"{self.training.title} stopped and saved at step {step} of {self.training.total} in "
            f"{self.last.folder}"
        )

    def meta_now(self, step: int, epoch: int) -> dict[str, Any]:
        self.meta |= {"step": step, "epoch": epoch, "seconds": time.monotonic() - self.started}
        self.meta["data"] = self.runner.state()
        return self.meta

    def estimate(self, step: int, done: int, state: RunState) -> None:
        """Times the first steps of this process after the very first, and says so if all takes long.

        Waits for the device where it starts and stops the clock, and nowhere else.
        """
        if done and self.timed is None:
            jax.block_until_ready(state)
            self.timed = (time.monotonic(), self.runner.compile_seconds, step)
        elif self.timed and step - self.timed[2] >= 3:
            jax.block_until_ready(state)
            began, compiled, first = self.timed
            seconds = time.monotonic() - began - (self.runner.compile_seconds - compiled)
            seconds /= step - first
            self.timed = ()
            # All processes alike, as they have to read the metrics after the same steps.
            self.log.ahead = AHEAD if everywhere(seconds < SHORT_SECONDS) else 1
            if (left := seconds * (self.training.total - step)) > LONG_SECONDS:
                self.progress.message(
                    f"{self.training.title}: about {left / 3600:.1f} hours of training on this machine "
                    f"({self.training.total} steps). {self.training.long_note}"
                )
