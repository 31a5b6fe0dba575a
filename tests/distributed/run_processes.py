"""Runs of the command line in one or several processes on this machine, for the tests beside this file.

The processes find each other over localhost and talk by gloo; each has one or more simulated CPU devices.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from ard_jax.distributed import EXIT_PREEMPTED

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
STEPS = 20  # 4 epochs of 5


def flags(folder, variant="", **overrides):
    """The digits experiment of 20 steps, CIARD's unless there is a variant, as on the command line."""
    ciard = {"method.itt_start": 2, "eval.teachers": False, "eval.transfer": False} | {
        f"teachers.{role}.{name}": value
        for role in ("robust", "clean")
        for name, value in {
            "min_clean": "0.0", "net.kwargs.widths": "(4,)", "net.kwargs.blocks": "1",
            "recipe.epochs": "1", "recipe.batch_size": "256",
        }.items()
    }  # fmt: skip
    values = ({} if variant else ciard) | {
        "workdir": folder / "run", "teachers.cache": folder.parent / "teachers", "epochs": 4,
        "batch_size": 256, "attack.steps": 3, "student.kwargs.widths": "(4,)",
        "student.kwargs.blocks": 1, "eval.attacks": "('fgsm',)", "eval.every": 2,
        "eval.max_examples": 100, "eval.eps_sweep": "()", "eval.batch_size": 100,
        "eval.grid": 0,
        "run.save_every": 1, "run.log_every": 2, "run.tensorboard": False,
    } | {name.replace("__", "."): value for name, value in overrides.items()}  # fmt: skip
    config = "configs/ciard_digits.py" + (f":{variant}" if variant else "")
    return [f"--config={config}"] + [f"--config.{name}={value}" for name, value in values.items()]


def start(folder, count=1, devices=1, arguments=None, slow=0.0, **overrides):
    """Starts the run's processes; standard error and output of process i go to folder/log<i>.

    With `arguments` these stand for the experiment's. `slow`: seconds to sleep at each mark of `wait_for`,
    so that a signal sent at one arrives there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    arguments = flags(folder, **overrides) if arguments is None else arguments
    processes = []
    for index in range(count):
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
            "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(REPOSITORY),
            "ARD_TEST_BATCHES": str(folder / f"batches{index}.npz"),
            "ARD_TEST_MARKS": str(folder / f"marks{index}"), "ARD_TEST_SLOW": str(slow),
        }  # fmt: skip
        (folder / f"marks{index}").write_text("")
        if count > 1:
            environment |= {
                "ARD_COORDINATOR": f"localhost:{port}",
                "ARD_NUM_PROCESSES": str(count),
                "ARD_PROCESS_ID": str(index),
            }
        with open(folder / f"log{index}", "w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(HERE / "worker.py"), *arguments],
                    cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
    return processes


def finish(processes, timeout=900):
    """Their exit codes; whatever still runs after `timeout` seconds is killed."""
    deadline = time.monotonic() + timeout
    try:
        return [p.wait(max(deadline - time.monotonic(), 0.1)) for p in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def run(folder, count=1, devices=1, **more):
    """Starts a run and waits; every process must end well."""
    assert_ended(folder, start(folder, count, devices, **more), 0)


def assert_ended(folder, processes, code):
    """All processes end with this exit code."""
    codes = finish(processes)
    logs = (log(folder, index) for index in range(len(codes)))
    assert codes == [code] * len(codes), "\n".join([str(codes), *logs])


def log(folder, index=0):
    """What a process printed, its last 3000 characters."""
    return (folder / f"log{index}").read_text()[-3000:]


def wait_for(mark, folder, processes, times=1, timeout=600):
    """Waits until process 0 has said `mark` (see worker.py) so many times."""
    deadline = time.monotonic() + timeout
    while marks(folder).count(mark) < times:
        assert all(p.poll() is None for p in processes), f"ended before {mark!r}: {log(folder)}"
        assert time.monotonic() < deadline, f"no {mark!r} in {timeout} seconds: {marks(folder)}"
        time.sleep(0.02)


def marks(folder, index=0):
    """What a process has come to, in order."""
    return (folder / f"marks{index}").read_text().split("\n")


def stop_at(mark, folder, count=1, times=1, only=None, **more):
    """Starts a run, sends SIGTERM at a mark (to process `only`, or to all): they end as preempted."""
    processes = start(folder, count, slow=0.25, **more)
    wait_for(mark, folder, processes, times)
    for process in processes if only is None else [processes[only]]:
        process.send_signal(signal.SIGTERM)
    assert_ended(folder, processes, EXIT_PREEMPTED)
    assert "The same command continues" in log(folder)


def newest(folder):
    """Step of the last checkpoint."""
    return max(int(p.name) for p in (folder / "run" / "last").iterdir() if p.name.isdigit())


def arrays(folder, step=STEPS, which="last"):
    """All arrays of a checkpoint on the host: student, teachers, optimisers, temperatures, step."""
    found = []
    for item in ("student", "rest"):
        path = folder / "run" / which / str(step) / item
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(path).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            found.append(reader.restore(path, restore_args=as_numpy))
    return found


def assert_same(folder, expected, atol=0.0):
    """The last checkpoints of two runs agree in every array."""
    pairs = zip(*(jax.tree.leaves(arrays(f)) for f in (folder, expected)), strict=True)
    for actual, wanted in pairs:
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=atol)


def batches(folder, count=1):
    """Every training batch that the student saw, whole: {"index", "label", "image_sum"} -> [steps, B]."""
    parts = []
    for index in range(count):
        with np.load(folder / f"batches{index}.npz") as file:
            parts.append(dict(file))
    return {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}
