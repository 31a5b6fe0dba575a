"""The host loop that trains one network, student or teacher, and survives being killed.

The order in `fit` is fixed: evaluate -> save -> next batch -> step -> log. A checkpoint is written after
the evaluation at its step and before the next batch is drawn, and a batch is a pure function of
(seed, step), so continuing from a checkpoint repeats exactly what would have happened.

A run that is asked to stop saves at the step where it is, in the middle of an epoch too, or before an
evaluation that it then makes up for. The parameters do not show it; in the logs, the first train record
after a restart averages over the steps since.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ard_jax import preemption, resume, steps
from ard_jax.checkpoint import Checkpoints
from ard_jax.data import pipeline
from ard_jax.data.base import ArrayDataset
from ard_jax.data.batches import TrainBatches
from ard_jax.distributed import is_lead
from ard_jax.methods.base import Method
from ard_jax.metrics import Means, non_finite
from ard_jax.resume import ConfigChangedError
from ard_jax.sharding import num_devices, process, put_batch, put_replicated
from ard_jax.state import RunState
from ard_jax.writers import MetricWriter, Progress

LONG_SECONDS = 600.0
Scores = dict[str, dict[str, float]]


__all__ = [
    "ConfigChangedError",
    "FitResult",
    "Phase",
    "TrainingDivergedError",
    "fit",
]


class TrainingDivergedError(RuntimeError):
    """A loss became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """One training run of the loop.

    Attributes:
      title: shown in the progress bar, "student" or "robust teacher".
      workdir: holds last/, best/, metrics.jsonl.
      method: what a step does.
      initial: makes the state at step 0; on resume it only gives structure and shapes.
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
      mesh: devices.
      log_every: steps between train records.
      tensorboard: also write TensorBoard files.
      columns: further arrays [N,...] with a row for each training image, for methods that ask for them.
      long_note: printed with the time estimate when the phase takes over ten minutes.
    """

    title: str
    workdir: Path
    method: Method
    initial: Callable[[], RunState]
    train: ArrayDataset
    epochs: int
    batch_size: int
    last_batch: str
    step: steps.StepConfig
    evaluate: Callable[[RunState], Scores]
    score: Callable[[Scores], float]
    split: str
    eval_epochs: frozenset[int]
    save_every: int
    config: dict[str, Any]
    experiment: dict[str, Any]
    mesh: Any
    log_every: int = 10
    tensorboard: bool = True
    long_note: str = ""
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch."""
        return pipeline.steps_per_epoch(len(self.train), self.batch_size, self.last_batch)

    @property
    def total(self) -> int:
        """Updates in all."""
        return self.epochs * self.steps_per_epoch


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a finished phase leaves behind.

    Attributes:
      last: state after the last step.
      best: state that scored best on the phase's split.
      best_step: its step.
      best_scores: its evaluation.
      seconds: wall time of training, over all restarts, evaluation and compilation included.
    """

    last: RunState
    best: RunState
    best_step: int
    best_scores: Scores
    seconds: float


def fit(phase: Phase) -> FitResult:
    """Trains to the end, from the newest usable checkpoint if there is one.

    Raises:
      ConfigChangedError: the folder's checkpoint was made with another configuration.
      TrainingDivergedError: a loss is not finite; no checkpoint holds the diverged state.
      PreemptedError: SIGTERM; the state is saved.
    """
    preemption.check(f"{phase.title} training, before its first step")
    pipeline.check_sharding(
        len(phase.train), phase.batch_size, num_devices(phase.mesh), phase.last_batch
    )
    folder = phase.workdir
    with Checkpoints(folder / "last", keep=2) as last, Checkpoints(folder / "best", keep=2) as best:
        template = put_replicated(phase.mesh, steps.start_average(phase.initial(), phase.step))
        # Copies: the step donates its state, and teachers' variables are used after it too.
        template = jax.tree.map(jnp.copy, template)
        state, meta = resume.newest(last, template, phase.config)
        if meta is None:
            state, meta = template, {"best": None, "seconds": 0.0}
        best.delete_after(int(state.step))  # what comes after is done again
        meta |= {"config": phase.config, "experiment": phase.experiment}
        state, meta = _Loop(phase, last, best, meta).run(state)
        last.wait(), best.wait()
        best_state, chosen = resume.best(best, state, meta["best"])
        return FitResult(state, best_state, chosen["step"], chosen["scores"], meta["seconds"])


class _Loop:
    """Runs one phase: the mutable bookkeeping of the host, none of which affects the arrays."""

    def __init__(self, phase: Phase, last: Checkpoints, best: Checkpoints, meta: dict[str, Any]):
        self.phase, self.last, self.best, self.meta = phase, last, best, dict(meta)
        self.started = time.monotonic() - meta["seconds"]
        self.means, self.pending, self.shown = Means(), None, {}
        self.window = (time.monotonic(), 0)
        self.batches = TrainBatches(
            phase.train, batch_size=phase.batch_size, seed=phase.step.seed,
            last_batch=phase.last_batch, total=phase.total, process=process(),
        )  # fmt: skip

    def run(self, state: RunState) -> tuple[RunState, dict[str, Any]]:
        phase, start = self.phase, int(state.step)
        late = self.meta.pop("unevaluated", False)
        if start == phase.total and not late:
            return state, self.meta
        self.batches.restore(start, self.meta.get("data"))
        step_fn = steps.build(phase.method, phase.step, phase.mesh, f"{phase.title} train_step")
        lead = is_lead()
        self.writer = MetricWriter(
            phase.workdir, tensorboard=phase.tensorboard, resume_step=start, lead=lead
        )
        self.progress = Progress(
            phase.total, initial=start, description=phase.title, enabled=None if lead else False
        )
        try:
            if start:
                self.event(start, "resumed")
            if late:
                self.boundary(start, state, late=True)
            # NOTE: do not change the order. Everything up to "step" happens at `step` updates done.
            for step in range(start, phase.total):
                batch = self.next_batch(step)
                self.estimate(step - start, state)
                state, metrics = step_fn(state, batch)
                self.consume()  # the step before, while this one runs
                self.pending = (step + 1, metrics, len(batch["label"]))
                self.boundary(step + 1, state)
                if preemption.requested():
                    self.stop(step + 1, state)
            return state, self.meta
        finally:
            self.batches.close()
            self.progress.close()
            self.writer.close()

    def next_batch(self, step: int) -> dict[str, jax.Array]:
        phase = self.phase
        local = self.batches.next(step)
        columns = {name: phase.columns[name][local["index"]] for name in phase.method.columns}
        return put_batch(phase.mesh, {k: local[k] for k in ("image", "label")} | columns)

    def boundary(self, step: int, state: RunState, late: bool = False) -> None:
        """After an epoch: evaluate, then save best, then last; late: which is saved without its scores."""
        phase, (epoch, within) = self.phase, divmod(step, self.phase.steps_per_epoch)
        if within:
            return
        evaluated = epoch in phase.eval_epochs
        if not evaluated and epoch % phase.save_every:
            return
        self.consume()  # a diverged state must not be saved
        if evaluated:
            try:
                scores = phase.evaluate(state)
            except preemption.PreemptedError:
                self.stop(step, state, unevaluated=True)
            for net, values in scores.items():
                self.writer.write(
                    {"kind": "eval", "step": step, "epoch": epoch, "split": phase.split, "net": net}
                    | values
                )
            score, best = phase.score(scores), self.meta["best"]
            self.shown = {f"{phase.split[:3]} {k}": v for k, v in scores["student"].items()}
            if best is None or score > best["score"]:
                self.meta["best"] = {"step": step, "epoch": epoch, "score": score, "scores": scores}
                self.best.save(step, state, self.meta_now(step, epoch))
                self.best.wait()  # last names it
        self.last.save(step, state, self.meta_now(step, epoch), replace=late)
        self.window = (time.monotonic(), 0)  # images per second leaves evaluation out

    def stop(self, step: int, state: RunState, **more: bool) -> None:
        """Saves, if that has not just been done, and ends the work."""
        self.consume()
        self.last.save(step, state, self.meta_now(step, step // self.phase.steps_per_epoch) | more)
        self.last.wait(), self.best.wait()
        self.event(step, "preempted")
        raise preemption.PreemptedError(
            f"{self.phase.title} stopped and saved at step {step} of {self.phase.total} in {self.last.folder}"
        )

    def meta_now(self, step: int, epoch: int) -> dict[str, Any]:
        self.meta |= {"step": step, "epoch": epoch, "seconds": time.monotonic() - self.started}
        self.meta["data"] = self.batches.state()
        return self.meta

    def consume(self) -> None:
        """Reads the metrics of the step before; the device works on the next one meanwhile."""
        if self.pending is None:
            return
        (step, metrics, size), self.pending = self.pending, None
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        if bad := non_finite(values):
            self.event(step, "diverged", **values)
            saved = self.last.steps()
            raise TrainingDivergedError(
                f"{self.phase.title}: {', '.join(bad)} not finite at step {step} of {self.phase.total}. "
                "All terms: " + ", ".join(f"{k}={v:.6g}" for k, v in values.items()) + ". Last good "
                + (f"checkpoint: {self.last.folder / str(saved[-1])}." if saved else "checkpoint: none.")
                + " A lower learning rate often helps."
            )  # fmt: skip
        self.means.add(values, size)
        began, images = self.window
        self.window = (began, images + size)
        rate = self.window[1] / max(time.monotonic() - began, 1e-9)
        epoch = (step - 1) // self.phase.steps_per_epoch + 1
        terms = {k: v for k, v in values.items() if k.startswith("loss") or k.endswith("accuracy")}
        self.progress.update(1, {"epoch": epoch} | terms | self.shown | {"images_per_second": rate})
        if step % self.phase.log_every == 0 or step == self.phase.total:
            record = {"kind": "train", "step": step, "epoch": epoch, "time": time.time()}
            means = self.means.values_and_reset()
            self.writer.write(record | means | {"images_per_second": rate})

    def estimate(self, done: int, state: RunState) -> None:
        """Times steps 2 to 4 of this process, and says so when the whole takes long."""
        if done == 1:
            jax.block_until_ready(state)
            self.timed = time.monotonic()
        if done == 4:
            jax.block_until_ready(state)
            seconds = (time.monotonic() - self.timed) / 3 * (self.phase.total - 4)
            if seconds > LONG_SECONDS:
                self.progress.message(
                    f"{self.phase.title}: about {seconds / 3600:.1f} hours of training on this machine "
                    f"({self.phase.total} steps). {self.phase.long_note}"
                )

    def event(self, step: int, name: str, **values: float) -> None:
        self.writer.write({"kind": "event", "step": step, "event": name} | values)
