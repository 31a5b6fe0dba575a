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

from ard_jax.runtime.distributed import EXIT_PREEMPTED

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
    attack = {} if variant == "natural" else {"attack.steps": 3}
    values = ({} if variant else ciard) | attack | {
        "workdir": folder / "run", "teachers.cache": folder.parent / "teachers", "epochs": 4,
        "batch_size": 256, "student.kwargs.widths": "(4,)",
        "student.kwargs.blocks": 1, "eval.attacks": "('fgsm',)", "eval.every": 2,
        "eval.max_examples": 100, "eval.eps_sweep": "()", "eval.batch_size": 100,
        "eval.grid": 0,
        "run.save_every": 1, "run.log_every": 2, "run.tensorboard": False,
    } | {name.replace("__", "."): value for name, value in overrides.items()}  # fmt: skip
    config = "configs/ciard_digits.py" + (f":{variant}" if variant else "")
    return [f"--config={config}"] + [f"--config.{name}={value}" for name, value in values.items()]


def start(
    folder, count=1, devices=1, arguments=None, hold=":0", held=0, program="worker.py", **overrides
):
    """Starts the run's processes; standard error and output of process i go to folder/log<i>.

    `arguments`: in place of the experiment's. `hold`: "mark:n", where process `held` waits, when it comes
    there for the n-th time (see worker.py), until `go` is called. `program`: what takes all this.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go").unlink(missing_ok=True)
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    arguments = flags(folder, **overrides) if arguments is None else arguments
    processes = []
    for index in range(count):
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
            "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(REPOSITORY),
            "ARD_TEST_BATCHES": str(folder / f"batches{index}.npz"),
            "ARD_TEST_EXAMPLES": str(folder / f"examples{index}.npz"),
            "ARD_TEST_MARKS": str(folder / f"marks{index}"), "ARD_TEST_HOLD": hold if index == held else ":0",
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
                    [sys.executable, str(HERE / program), *arguments],
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


def wait_for(mark, folder, processes, times=1, index=0, timeout=600):
    """Waits until process `index` has said `mark` (see worker.py) so many times."""
    deadline = time.monotonic() + timeout
    while marks(folder, index).count(mark) < times:
        assert all(p.poll() is None for p in processes), f"ended before {mark!r}: {log(folder)}"
        assert time.monotonic() < deadline, f"no {mark!r} in {timeout} s: {marks(folder, index)}"
        time.sleep(0.02)


def marks(folder, index=0):
    """What a process has come to, in order."""
    return (folder / f"marks{index}").read_text().split("\n")


def go(folder):
    """The process that waits at its mark goes on."""
    (folder / "go").touch()


def stop_at(mark, folder, count=1, times=1, only=None, **more):
    """Starts a run, sends SIGTERM to it (or process `only`) while process 0 stands at a mark.

    They end as preempted.
    """
    processes = start(folder, count, hold=f"{mark}:{times}", **more)
    wait_for(mark, folder, processes, times)
    terminate(processes, only)
    # It has to arrive: of several processes JAX looks for it once a second, then tells the others.
    time.sleep(0.5 if count == 1 else 4)
    go(folder)
    assert_preempted(folder, processes)


def terminate(processes, only=None):
    """SIGTERM to all, or to process `only`."""
    for process in processes if only is None else [processes[only]]:
        process.send_signal(signal.SIGTERM)


def assert_preempted(folder, processes):
    """All end with the exit code that launchers know, and one line that says how to go on."""
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


def largest_difference(folder, expected):
    """Of any two numbers in the last checkpoints of two runs."""
    pairs = zip(*(jax.tree.leaves(arrays(f)) for f in (folder, expected)), strict=True)
    return max(float(np.abs(np.float64(a) - np.float64(b)).max()) for a, b in pairs if a.size)


def counts(folder, name, total, count=1):
    """How often each of `total` examples was "evaluated" or "attacked", by all processes together."""
    found = np.zeros(total, int)
    for index in range(count):
        with np.load(folder / f"examples{index}.npz") as file:
            np.add.at(found, file[name], 1)
    return found


def batches(folder, count=1):
    """Every training batch that the student saw, whole: {"index", "label", "image_sum"} -> [steps, B]."""
    parts = []
    for index in range(count):
        with np.load(folder / f"batches{index}.npz") as file:
            parts.append(dict(file))
    return {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}
