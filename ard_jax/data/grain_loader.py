"""Reading ahead with grain; the only file that imports it.

What batch number n holds is a function of n alone (`batching`), so grain's part is to make the batches
in time: in threads of this process, or in worker processes. The state of such an iterator is the number
of the next batch, {"next_index": n}, which is also what grain's own iterators over random access save;
it does not depend on the number of hosts, workers or batches read ahead, so all of these may change
when a run is continued.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

import grain
import numpy as np
from absl import flags

from ard_jax.runtime import threads

Batch = dict[str, np.ndarray]


def read_ahead(
    load: Callable[[int], Batch], start: int, stop: int, prefetch: int, workers: int = 0
) -> grain.DatasetIterator[Batch]:
    """load(start), ..., load(stop - 1) in order, made before they are asked for.

    Close it (`close()`) to end its threads or processes early.

    Args:
      load: makes a batch; picklable where there are workers.
      start: number of the first batch.
      stop: number after the last batch.
      prefetch: batches made ahead, by each worker where there are any.
      workers: processes; 0 for a thread of this one, beside which `LazyImages` has a thread per core.

    Raises:
      DataError: what `load` raises, when its batch is asked for.
    """
    batches = grain.MapDataset.range(start, stop).map(load)
    ahead = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
    if workers:
        # grain reads flags of its own when it starts processes; a notebook has parsed none.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch)
        ahead = ahead.mp_prefetch(options, worker_init_fn=_start_worker)
    return iter(ahead)


def _start_worker(index: int, count: int) -> None:
    """In a worker: decodes in one thread, and ends when the parent does, not before.

    A signal to the whole process group (Ctrl-C, or a preemption) is the parent's to handle, which may
    still need batches to reach the step at which it saves.
    """
    threads.limit(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
