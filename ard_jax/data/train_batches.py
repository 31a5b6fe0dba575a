"""Training batches in order, from memory or read ahead from disk; the same ones either way."""

import dataclasses
from typing import Any

import numpy as np

from ard_jax.data import batching
from ard_jax.data.base import DataError
from ard_jax.data.extra import ExtraImages, batch_rows, real_rows
from ard_jax.data.geometry import RandomCrops
from ard_jax.data.lazy_dataset import LazyDataset, Reading

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """step -> this host's part of the global training batch (see `batching`); picklable."""

    dataset: batching.Dataset
    batch_size: int
    seed: int
    last_batch: str
    process: tuple[int, int]
    extra: ExtraImages | None = None
    crops: RandomCrops | None = None

    def __call__(self, step: int) -> Batch:
        """As `batching.get_batch`; "index" is -1 for images of `extra`, "view" other crops of the images."""
        rows = self.indices(step)
        if self.crops is not None:
            return self._cropped(step, rows)
        if self.extra is None:
            return batching.get_batch(self.dataset, rows)
        own = rows >= 0
        batch = batching.get_batch(self.dataset, rows[own])
        further = self.extra.take(-1 - rows[~own])
        joined = {"index": np.where(own, rows, -1).astype(np.int32)}
        for name, other in zip(("image", "label"), further, strict=True):
            joined[name] = np.empty((len(rows), *other.shape[1:]), other.dtype)
            joined[name][own], joined[name][~own] = batch[name], other
        return joined

    def _cropped(self, step: int, rows: np.ndarray) -> Batch:
        assert self.crops is not None and isinstance(self.dataset, LazyDataset)
        count = len(self.dataset)
        epoch = step // batching.steps_per_epoch(count, self.batch_size, self.last_batch)
        images, names = self.dataset.images, ("image", "view")[: self.crops.views]
        batch = {n: images.cropped(rows, self.crops, epoch, v) for v, n in enumerate(names)}
        return batch | {"label": self.dataset.labels[rows], "index": rows.astype(np.int32)}

    def indices(self, step: int) -> np.ndarray:
        """int64 [B], this host's part of the examples of a step; -1 - row for those of `extra`."""
        count, size = len(self.dataset), self.batch_size
        if self.extra is None:
            indices = batching.batch_indices(count, size, self.seed, step, self.last_batch)
        else:
            epoch, i = divmod(step, batching.steps_per_epoch(count, size, self.last_batch))
            real = real_rows(count, size - self.extra.per_batch, self.seed, epoch, i)
            indices = batch_rows(self.extra, real, size, self.seed, step)
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
      extra: further images, which are read ahead too; None for none.
      crops: random crops of images that are read from disk; None for whole ones.
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
        extra: ExtraImages | None = None,
        crops: RandomCrops | None = None,
    ):
        """Reads nothing yet."""
        self._load = HostBatch(dataset, batch_size, seed, last_batch, process, extra, crops)
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
        ahead = isinstance(self._load.dataset, LazyDataset) or self._load.extra is not None
        batch = self._from_stream(step) if ahead else self._load(step)
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
            reading = getattr(self._load.dataset, "reading", Reading())
            self._stream = grain_loader.read_ahead(
                self._load, step, self._total, reading.prefetch, reading.workers
            )
        # Copies: workers' batches lie in shared memory, which is scarce and freed when they are dropped.
        return {name: np.array(values) for name, values in next(self._stream).items()}
