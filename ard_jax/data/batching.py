"""Batches as pure functions of (seed, step): nothing to save, any step at once, any host count.

The global batch of a step does not depend on the number of hosts; host p of P takes the p-th of P
equal contiguous slices of it.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np

from ard_jax.data.base import ArrayDataset
from ard_jax.data.lazy_dataset import LazyDataset
from ard_jax.data.split import permutation

Batch = dict[str, np.ndarray]
Dataset = ArrayDataset | LazyDataset


def steps_per_epoch(num_examples: int, batch_size: int, last_batch: str = "drop") -> int:
    """The number of batches in an epoch.

    Args:
      num_examples: examples in the training split.
      batch_size: global batch size.
      last_batch: "drop" leaves out the examples that do not fill a batch (others each epoch);
        "keep" makes a smaller last batch of them, as PyTorch's DataLoader does by default.

    Returns:
      At least 1.

    Raises:
      ValueError: a size is not positive, `last_batch` is unknown, or with "drop" a batch has more
        examples than there are.
    """
    if last_batch not in ("drop", "keep"):
        raise ValueError(f"last_batch={last_batch!r}: choose 'drop' or 'keep'")
    if num_examples < 1 or batch_size < 1:
        raise ValueError(
            f"batch_size={batch_size}, num_examples={num_examples}: both must be at least 1"
        )
    if last_batch == "keep":
        return -(-num_examples // batch_size)
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size={batch_size} is more than the {num_examples} training examples, so that "
            "last_batch='drop' would drop all; use a smaller batch_size or last_batch='keep'"
        )
    return num_examples // batch_size


def check_sharding(
    num_examples: int, batch_size: int, num_shards: int, last_batch: str = "drop"
) -> None:
    """Checks at start that every batch of an epoch divides by the number of shards.

    Args:
      num_examples: examples in the training split.
      batch_size: global batch size.
      num_shards: devices in the data axis (or processes), times the parts of `config.accumulate`.
      last_batch: as in `steps_per_epoch`.

    Raises:
      ValueError: a batch does not divide, with the numbers; or as `steps_per_epoch`.
    """
    steps_per_epoch(num_examples, batch_size, last_batch)
    if batch_size % num_shards:
        raise ValueError(
            f"batch_size={batch_size} does not divide by {num_shards} shards (devices or "
            f"processes, times accumulate); use {max(batch_size // num_shards, 1) * num_shards}"
        )
    rest = num_examples % batch_size
    if last_batch == "keep" and rest % num_shards:
        raise ValueError(
            f"the last batch of an epoch has {num_examples} mod {batch_size} = {rest} examples, "
            f"which do not divide by {num_shards} shards (devices or processes, times accumulate); use "
            "last_batch='drop', or another batch_size or hold-out"
        )


def batch_indices(
    num_examples: int, batch_size: int, seed: int, step: int, last_batch: str = "drop"
) -> np.ndarray:
    """Which examples are in the global batch of a step.

    Each epoch is a permutation of all examples of its own, from Philox with the key (seed, epoch).

    Args:
      num_examples: examples in the training split.
      batch_size: global batch size.
      seed: integer in [0, 2**64).
      step: training step, from 0.
      last_batch: as in `steps_per_epoch`.

    Returns:
      int64 [batch_size]; fewer in the last batch of an epoch with last_batch="keep".

    Raises:
      ValueError: as `steps_per_epoch`; or `step` is negative or `seed` out of range.
    """
    if step < 0:
        raise ValueError(f"step={step}: steps count from 0")
    epoch, i = divmod(int(step), steps_per_epoch(num_examples, batch_size, last_batch))
    return _epoch_order(num_examples, seed, epoch)[i * batch_size : (i + 1) * batch_size].copy()


@functools.lru_cache(maxsize=4)  # of one epoch all steps ask for the same
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(num_examples, seed, epoch)


def host_slice(indices: np.ndarray, process_index: int = 0, process_count: int = 1) -> np.ndarray:
    """One host's part of a global batch: the process_index-th of equal contiguous slices.

    Args:
      indices: [B], global.
      process_index: this host, in [0, process_count).
      process_count: number of hosts.

    Returns:
      [B / process_count].

    Raises:
      ValueError: B does not divide by the number of hosts, or there is no such host.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} is not in 0..{process_count - 1}")
    local, rest = divmod(len(indices), process_count)
    if rest:
        raise ValueError(
            f"a batch of {len(indices)} examples does not divide by {process_count} processes; use "
            "another batch_size, or last_batch='drop' if this is the last batch of an epoch"
        )
    return indices[process_index * local : (process_index + 1) * local]


def get_batch(dataset: Dataset, indices: np.ndarray) -> Batch:
    """The examples at `indices`.

    Args:
      dataset: where from.
      indices: int [B].

    Returns:
      "image" uint8 [B,H,W,C], "label" int32 [B], "index" int32 [B] (the position in `dataset`).
    """
    return {
        "image": dataset.images[indices],
        "label": dataset.labels[indices],
        "index": np.asarray(indices, np.int32),
    }


def eval_batches(
    dataset: Dataset, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Every example exactly once, in order, in batches that all have the same shape.

    Every host gets the same number of batches, ceil(N / batch_size), with its slice of each; a host
    may get padding alone in the last one.

    Args:
      dataset: what to evaluate; read ahead if it is lazy.
      batch_size: global batch size.
      process_index: this host.
      process_count: number of hosts.

    Returns:
      Iterator of dicts with B = batch_size / process_count: "image" uint8 [B,H,W,C], "label" int32
      [B], "mask" bool [B] (False: padding, to be counted nowhere) and "index" int32 [B] (the
      position in `dataset`). Padding has image 0, label 0 and index -1: select by mask before
      writing anywhere by index.

    Raises:
      ValueError: batch_size is not positive or does not divide by the number of hosts; at the call.
    """
    steps = steps_per_epoch(len(dataset), batch_size, "keep")
    host_slice(np.arange(batch_size), process_index, process_count)  # raises now, not at first use
    positions = np.full(steps * batch_size, -1, np.int64)
    positions[: len(dataset)] = np.arange(len(dataset))
    mine = [host_slice(rows, process_index, process_count) for rows in positions.reshape(steps, -1)]
    load = functools.partial(_padded_batch, dataset, mine)
    if isinstance(dataset, LazyDataset):
        return _ahead(load, steps, dataset.reading.prefetch)
    return map(load, range(steps))


def _ahead(load: Callable[[int], Batch], steps: int, prefetch: int) -> Iterator[Batch]:
    from ard_jax.data import grain_loader  # late: it takes a second to import

    # Threads even if training has workers: evaluations are many and short beside a worker's start.
    stream = grain_loader.read_ahead(load, 0, steps, prefetch)
    try:
        yield from stream
    finally:
        stream.close()


def _padded_batch(dataset: Dataset, rows: list[np.ndarray], step: int) -> Batch:
    indices = rows[step]
    mask = indices >= 0
    image = np.zeros((len(indices), *dataset.image_shape), np.uint8)
    label = np.zeros(len(indices), np.int32)
    image[mask] = dataset.images[indices[mask]]
    label[mask] = dataset.labels[indices[mask]]
    return {"image": image, "label": label, "mask": mask, "index": indices.astype(np.int32)}
