"""Training batches in order, from memory or read ahead from disk; the same ones either way."""

import dataclasses
from typing import Any, cast

import numpy as np

from ard_jax.data import batching
from ard_jax.data.base import DataError
from ard_jax.data.lazy_dataset import LazyDataset

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """step -> this host's part of the global training batch (see `batching`); picklable."""

    dataset: batching.Dataset
    batch_size: int
    seed: int
    last_batch: str
    process: tuple[int, int]

    def __call__(self, step: int) -> Batch:
        """As `batching.get_batch`."""
        return batching.get_batch(self.dataset, self.indices(step))

    def indices(self, step: int) -> np.ndarray:
        """int64 [B], this host's part of the examples of a step."""
        indices = batching.batch_indices(
            len(self.dataset), self.batch_size, self.seed, step, self.last_batch
        )
        return batching.host_slice(indices, *self.process)


class TrainBatches:
    """This host's part of each training batch.

    Any step can be asked for; asked for in order they have been read ahead, if the dataset is lazy.

    Args:
      dataset: the training split.
      batch_size: global.
      seed: of the orders.
      last_batch: "drop" or "keep".
      total: steps of the run, after which nothing is read ahead.
      process: (index of this host, number of hosts).
    """

    def __init__(
        self,
        dataset: batching.Dataset,
        *,
        batch_size: int,
        seed: int,
        last_batch: str,
        total: int,
        process: tuple[int, int] = (0, 1),
    ):
        """Reads nothing yet."""
        self._load = HostBatch(dataset, batch_size, seed, last_batch, process)
        self._total, self._next, self._stream = total, 0, None

    def state(self) -> dict[str, int]:
        """For the checkpoint: {"next_index": number of the next batch}, as grain's iterators have it."""
        return {"next_index": self._next}

    def restore(self, step: int, state: dict[str, Any] | None) -> None:
        """Goes on at `step`, after checking that the checkpoint's data state (None: it has none) agrees.

        Raises:
          DataError: it does not.
        """
        if state is not None and state != {"next_index": step}:
            raise DataError(
                f"the checkpoint of step {step} has the data state {state} in place of "
                f"{{'next_index': {step}}}: its parts do not belong together; delete that step's folder "
                "to continue from the one before"
            )
        self._seek(step)

    def next(self, step: int) -> Batch:
        """The batch of a step: "image" uint8 [B,H,W,C], "label" int32 [B], "index" int32 [B].

        Raises:
          DataError: a file is damaged; the message names it. None is passed over, as that would change
            every batch after it.
        """
        lazy = isinstance(self._load.dataset, LazyDataset)
        batch = self._from_stream(step) if lazy else self._load(step)
        self._next = step + 1
        return batch

    def indices(self, step: int) -> np.ndarray:
        """Of the batch of a step "index" alone, int32 [B], for data that the device has already."""
        self._next = step + 1
        return self._load.indices(step).astype(np.int32)

    def close(self) -> None:
        """Ends what reads ahead."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _seek(self, step: int) -> None:
        self.close()
        self._next = step

    def _from_stream(self, step: int) -> Batch:
        from ard_jax.data import grain_loader  # late: it takes a second to import

        if step != self._next:
            self._seek(step)
        if self._stream is None:
            reading = cast(LazyDataset, self._load.dataset).reading
            self._stream = grain_loader.read_ahead(
                self._load, step, self._total, reading.prefetch, reading.workers
            )
        # Copies: workers' batches lie in shared memory, which is scarce and freed when they are dropped.
        return {name: np.array(values) for name, values in next(self._stream).items()}
