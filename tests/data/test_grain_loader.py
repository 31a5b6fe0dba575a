"""config.data.loader=grain gives what loader=memory gives, in order, ahead, and this host's part alone."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import numpy as np
import pytest

from ard_jax import data
from ard_jax.data import batching, train_batches
from ard_jax.data.sources import image_files

GRAIN = data.Reading("grain", prefetch=2)


def both(folder):
    return [
        data.load("folder", folder, reading=reading).train for reading in (data.Reading(), GRAIN)
    ]


def assert_same_batch(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert type(one[name]) is type(other[name]) is np.ndarray
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name])


def source(dataset, process=(0, 1), total=12, **kwargs):
    options = {"batch_size": 16, "seed": 5, "last_batch": "keep"} | kwargs
    return train_batches.TrainBatches(dataset, total=total, process=process, **options)


@pytest.mark.parametrize(("last_batch", "start"), [("keep", 4), ("drop", 0)])
def test_same_batches_for_any_number_of_hosts(folder, last_batch, start):
    memory, lazy = both(folder)
    for hosts in (1, 2, 4):
        want = source(memory, last_batch=last_batch)
        got = [source(lazy, (p, hosts), last_batch=last_batch) for p in range(hosts)]
        for one in got:
            one.restore(start, {"next_index": start} if start else None)
        for step in range(start, 12):
            parts = [one.next(step) for one in got]
            whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            assert_same_batch(want.next(step), whole)
            assert got[0].state() == want.state() == {"next_index": step + 1}
        for one in got:
            one.close()


def test_any_step_can_be_asked_for_but_a_state_of_another_one_is_refused(folder):
    memory, lazy = both(folder)
    want, got = source(memory), source(lazy)
    for step in (3, 4, 0, 11, 11, 5):
        assert_same_batch(want.next(step), got.next(step))
    with pytest.raises(data.DataError, match="next_index.*delete"):
        got.restore(4, {"next_index": 3})
    got.close()


def test_reads_this_hosts_part_ahead_but_not_further(folder):
    lazy = both(folder)[1]
    mine = source(lazy, (1, 2), last_batch="drop", batch_size=8)
    real = image_files.Files.read
    with mock.patch.object(image_files.Files, "read", autospec=True, side_effect=real) as read:
        mine.next(0)
        wait_while(lambda: read.call_count < 12)
        time.sleep(0.2)  # for one too many to show
        # The batch asked for and two more, each of 4 images: half of 8.
        expected = [batching.batch_indices(len(lazy), 8, 5, step)[4:] for step in range(3)]
        rows = [call.args[1] for call in read.mock_calls]
    assert sorted(rows) == sorted(np.concatenate(expected).tolist())
    mine.close()


def test_evaluation_batches_and_an_abandoned_evaluation(folder):
    memory, lazy = both(folder)
    for process in ((0, 1), (1, 2)):
        want = list(batching.eval_batches(memory, 12, *process))
        got = list(batching.eval_batches(lazy, 12, *process))
        assert len(want) == len(got) == 4
        for one, other in zip(want, got, strict=True):
            assert_same_batch(one, other)
    stream = batching.eval_batches(lazy, 12)
    next(stream)
    stream.close()
    wait_while(_prefetching)
    assert not _prefetching()


def wait_while(condition):
    """Until it is over, at most 30 seconds."""
    deadline = time.monotonic() + 30
    while condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def _prefetching():
    return [t.name for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-60])


def test_a_damaged_image_is_named_at_its_step(folder):
    lazy = data.load("folder", folder, reading=GRAIN).train
    truncate(folder / "train" / "dog" / "07.png")
    victim = source(lazy, batch_size=20, total=2)
    with pytest.raises(data.DataError, match="dog/07.png cannot be decoded"):
        [victim.next(step) for step in range(2)]
    victim.close()
    with pytest.raises(data.DataError, match="dog/07.png cannot be decoded"):  # before any step
        data.load("folder", folder, reading=GRAIN)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_worker_processes_give_the_same_and_end(folder):
    lazy = data.load("folder", folder, reading=data.Reading("grain", workers=2)).train
    want, got = source(both(folder)[0]), source(lazy)
    got.restore(3, {"next_index": 3})
    for step in range(3, 10):
        assert_same_batch(want.next(step), got.next(step))
    assert len(multiprocessing.active_children()) == 2
    got.close()
    assert not multiprocessing.active_children()
    truncate(folder / "train" / "dog" / "07.png")
    with pytest.raises(data.DataError, match="dog/07.png cannot be decoded"):
        [got.next(step) for step in range(3)]
    got.close()


WORKERS_PARENT = """
import sys, time
from ard_jax import data
from ard_jax.data.train_batches import TrainBatches
if __name__ == "__main__":
    train = data.load("folder", sys.argv[1], reading=data.Reading("grain", workers=2)).train
    source = TrainBatches(train, batch_size=4, seed=0, last_batch="drop", total=10**6)
    for step in range(10**6):
        source.next(step)
        if step == 4:
            print("ready", flush=True)
        time.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_workers_outlive_signals_and_end_with_a_killed_parent(folder, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(WORKERS_PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        assert parent.stdout.readline() == "ready\n"
        workers = _children(parent.pid)
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        time.sleep(1)
        assert len(workers) == 2 and _children(parent.pid) == workers and parent.poll() is None
    finally:
        parent.kill()
        parent.wait()
    wait_while(lambda: any(map(_alive, workers)))
    assert not any(map(_alive, workers))


def _children(pid):
    """The worker processes of `pid`; multiprocessing's resource tracker is none."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat, open(f"/proc/{entry}/cmdline") as command:
                if stat.read().rsplit(")", 1)[1].split()[1] == str(pid):
                    found += [int(entry)] if "spawn_main" in command.read() else []
        except OSError:
            continue
    return sorted(found)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
