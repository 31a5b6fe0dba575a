"""What the train step is fed: batches from the host, or rows of the data that lies on the device."""

from typing import Any

import jax
import numpy as np

from ard_jax import steps, timing
from ard_jax.data.base import ArrayDataset
from ard_jax.data.batches import TrainBatches
from ard_jax.sharding import process, put_batch, put_replicated
from ard_jax.state import RunState

MAX_BYTES = 2**30  # of images that "auto" puts on the device


def on_device(setting: str, train: Any) -> bool:
    """Whether the training split is kept on device.

    Args:
      setting: config.data.on_device.
      train: the split.

    Raises:
      ValueError: it is to be, but its images are not in memory.
    """
    in_memory = isinstance(train, ArrayDataset)
    if setting == "auto":
        # Several processes read each its own part of a batch, and may be many on one machine's memory.
        return in_memory and process()[1] == 1 and train.images.nbytes <= MAX_BYTES
    if setting == "on" and not in_memory:
        raise ValueError(
            f"config.data.on_device='on', but the images of {train.name} are read from disk as needed; use "
            "config.data.loader=memory or config.data.on_device=off"
        )
    return setting == "on"


class Feed:
    """The steps of one phase, each with its batch.

    A dispatch is what the host starts at once: one step, or `phase.steps_per_dispatch` steps in a program of
    their own where all of them have full batches and are in one epoch. The other steps of an epoch are
    dispatched one by one.

    Args:
      phase: a `loop.Phase`.

    Raises:
      ValueError: several steps per dispatch, or data on device, that this data or machine does not allow.
    """

    def __init__(self, phase: Any):
        """Compiles nothing and moves nothing yet."""
        self.phase, self.on_device = phase, on_device(phase.on_device, phase.train)
        if phase.steps_per_dispatch > 1 and not self.on_device:
            raise ValueError(
                f"config.run.steps_per_dispatch={phase.steps_per_dispatch} needs the training images on "
                f"device, where config.data.on_device='auto' does not put them: {phase.train.name} is read "
                f"from disk, has more than {MAX_BYTES // 2**20} MiB of images, or there are several "
                "processes; use config.data.on_device=on or config.run.steps_per_dispatch=1"
            )
        self._full = len(phase.train) // phase.batch_size  # full batches in an epoch
        self._count = max(1, min(phase.steps_per_dispatch, self._full))
        self._batches = TrainBatches(
            phase.train, batch_size=phase.batch_size, seed=phase.step.seed,
            last_batch=phase.last_batch, total=phase.total, process=process(),
        )  # fmt: skip
        self._examples: dict[str, jax.Array] = {}
        self._programs: dict[int, steps.Step] = {}
        self._called: set[tuple[int, int]] = set()
        self._compiled: list[timing.Compilation] = []
        self.compile_seconds = 0.0

    def restore(self, step: int, state: dict[str, int] | None) -> None:
        """Goes on at `step`, as `TrainBatches.restore`; puts the data on the device if it is to be there."""
        self._batches.restore(step, state)
        if self.on_device:
            train = self.phase.train
            arrays = {"image": train.images, "label": train.labels} | self._columns(slice(None))
            self._examples = put_replicated(self.phase.mesh, arrays)

    def state(self) -> dict[str, int]:
        """Of the batches, for the checkpoint."""
        return self._batches.state()

    def close(self) -> None:
        """Ends what reads ahead, and gives the device's memory back."""
        self._batches.close()
        self._examples = {}

    def advance(
        self, state: RunState, step: int
    ) -> tuple[RunState, dict[str, jax.Array], list[int]]:
        """Dispatches the steps from number `step` on, counted from 0.

        Returns:
          The state after them; their metrics, scalars for one step and [count] for several; the sizes of
          their global batches, one for each step.
        """
        phase = self.phase
        within = step % phase.steps_per_epoch
        count = self._count if within + self._count <= self._full else 1
        if self.on_device:
            index = np.stack([self._batches.indices(s) for s in range(step, step + count)])
            index = index if count > 1 else index[0]
            placed = put_batch(phase.mesh, {"index": index}, axis=index.ndim - 1)["index"]
            size, given = placed.shape[-1], (self._examples, placed)
        else:
            local = self._batches.next(step)
            given = (put_batch(phase.mesh, local | self._columns(local["index"])),)
            size = len(given[0]["label"])
        new, metrics = self._call(count, size, state, *given)
        return new, metrics, [size] * count

    def newly_compiled(self) -> list[timing.Compilation]:
        """Programs that were compiled since this was last asked."""
        new, self._compiled = self._compiled, []
        return new

    def _columns(self, rows: Any) -> dict[str, np.ndarray]:
        return {name: self.phase.columns[name][rows] for name in self.phase.method.columns}

    def _call(self, count: int, size: int, *arguments: Any):
        phase, name = self.phase, f"{self.phase.title} train_step"
        name += f" x{count}" if count > 1 else ""
        if count not in self._programs:
            more = (phase.method, phase.step, phase.mesh, name)
            self._programs[count] = (
                steps.build_indexed(*more, count) if self.on_device else steps.build(*more)
            )
        if (count, size) in self._called:
            return self._programs[count](*arguments)
        if count == 1 and size != phase.batch_size:
            name += f" on the last {size} images of an epoch"
        with timing.compilation(name) as compiled:
            result = self._programs[count](*arguments)
        self._called.add((count, size))
        self._compiled.append(compiled)
        self.compile_seconds += compiled.seconds
        return result
