"""What the train step is fed: batches from the host, or rows of the data that lies on the device."""

from typing import Any

import jax
import numpy as np

from ard_jax.data.augment import ON_HOST
from ard_jax.data.base import ArrayDataset
from ard_jax.data.geometry import RandomCrops
from ard_jax.data.train_batches import TrainBatches
from ard_jax.runtime import compilation
from ard_jax.runtime.sharding import process, put_batch, put_replicated
from ard_jax.state import RunState
from ard_jax.training import averaging, train_step

MAX_BYTES = 2**30  # of images that "auto" puts on the device


def on_device(setting: str, train: Any, extra: Any = None) -> bool:
    """Whether the training split is kept on device.

    Args:
      setting: config.data.on_device.
      train: the split.
      extra: further images, which are not; None for none.

    Raises:
      ValueError: it is to be, but its images are not in memory.
    """
    in_memory = isinstance(train, ArrayDataset) and extra is None
    if setting == "auto":
        # Several processes read each its own part of a batch, and may be many on one machine's memory.
        return in_memory and process()[1] == 1 and train.images.nbytes <= MAX_BYTES
    if setting == "on" and not in_memory:
        raise ValueError(
            f"config.data.on_device='on', but the images of {train.name} are read from disk as needed; use "
            "config.data.loader=memory or config.data.on_device=off"
        )
    return setting == "on"


class StepRunner:
    """The steps of one training, each with its batch.

    Args:
      training: a `loop.TrainingRun`.

    Raises:
      ValueError: the images are to be on device, but are not in memory.
    """

    def __init__(self, training: Any):
        """Compiles nothing and moves nothing yet."""
        self.training = training
        self.on_device = on_device(training.on_device, training.train, training.extra)
        self._batches = self._new_batches(training.total)
        self._statistics: Any = None
        self._examples: dict[str, jax.Array] = {}
        # By the side of images; 0 for that of the data set.
        self._programs: dict[int, train_step.Step] = {}
        self._called: set[tuple[int, int]] = set()  # sizes of batches, sides of images
        self._compiled: list[compilation.Compilation] = []
        self.compile_seconds = 0.0

    def _new_batches(self, total: int) -> TrainBatches:
        training, step = self.training, self.training.step
        crops = RandomCrops(
            step.seed, step.crop_area, training.method.views, step.crop_sizes, step.crop_boundaries
        )
        return TrainBatches(
            training.train, batch_size=training.batch_size, seed=step.seed,
            last_batch=training.last_batch, total=total, process=process(), extra=training.extra,
            crops=crops if step.augment == ON_HOST else None,
        )  # fmt: skip

    def restore(self, step: int, state: dict[str, int] | None) -> None:
        """Goes on at `step`, as `TrainBatches.restore`; puts the data on the device if it is to be there."""
        self._batches.restore(step, state)
        if self.on_device:
            train = self.training.train
            arrays = {"image": train.images, "label": train.labels} | self._columns(slice(None))
            self._examples = put_replicated(self.training.mesh, arrays)

    def state(self) -> dict[str, int]:
        """Of the batches, for the checkpoint."""
        return self._batches.state()

    def close(self) -> None:
        """Ends what reads ahead, and gives the device's memory back."""
        self._batches.close()
        self._examples = {}

    def advance(self, state: RunState, step: int) -> tuple[RunState, dict[str, jax.Array], int]:
        """Dispatches step number `step`, counted from 0.

        Returns:
          The state after it; its metrics, scalars; the size of its global batch.
        """
        mesh = self.training.mesh
        if self.on_device:
            index = put_batch(mesh, {"index": self._batches.indices(step)})["index"]
            size, fed = len(index), (self._examples, index)
        else:
            local = self._batches.next(step)
            batch = put_batch(mesh, local | self._columns(local["index"]))
            size, fed = len(batch["label"]), (batch,)
        new, metrics = self._call(size, state, *fed)
        return new, metrics, size

    def with_statistics(self, state: RunState, step: int) -> RunState:
        """The state after `step` updates, which end an epoch, its average with that epoch's statistics.

        See `averaging`.
        """
        training = self.training
        if self._statistics is None:
            self._statistics = averaging.build(training.bundle, training.step, training.mesh)
        first, batches = step - training.steps_per_epoch, self._new_batches(step)
        batches.restore(first, None)
        try:
            images = ((n, put_batch(training.mesh, batches.next(n))) for n in range(first, step))
            found = self._statistics(state.ema, images)
        finally:
            batches.close()
        return state.replace(ema={"params": state.ema["params"], "batch_stats": found})

    def newly_compiled(self) -> list[compilation.Compilation]:
        """Programs that were compiled since this was last asked."""
        new, self._compiled = self._compiled, []
        return new

    def _columns(self, rows: Any) -> dict[str, np.ndarray]:
        return {name: self.training.columns[name][rows] for name in self.training.method.columns}

    def _call(self, size: int, *arguments: Any):
        training, name = self.training, f"{self.training.title} train_step"
        side = arguments[1]["image"].shape[1] if training.step.crop_sizes else 0
        if side not in self._programs:
            build = train_step.build_indexed if self.on_device else train_step.build
            method = training.method_at(side) if side else training.method
            self._programs[side] = build(method, training.step, training.mesh, name)
        program = self._programs[side]
        if (size, side) in self._called:
            return program(*arguments)
        if size != training.batch_size:
            name += f" on the last {size} images of an epoch"
        if side:
            name += f" on images of {side} pixels"
        with compilation.compilation(name) as compiled:
            result = program(*arguments)
        self._called.add((size, side))
        self._compiled.append(compiled)
        self.compile_seconds += compiled.seconds
        return result
