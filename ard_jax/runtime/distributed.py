"""Which process this is, and how several become one program, before anything touches a device."""

import importlib.util
import os
import sys
import threading
from typing import IO, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ard_jax.runtime import rendezvous

EXIT_PREEMPTED = (
    75  # EX_TEMPFAIL of sysexits.h: all is saved, launchers start the same command again
)
HEARTBEAT_SECONDS = 40  # silence after which JAX gives up a process: the others end within a minute
_ALONE = "--config.run.distributed=off runs this process alone"


def start(setting: str = "auto", timeout: float = 300.0) -> None:
    """Joins the other processes of this run, if there are any; once for the program, before JAX is used.

    "auto" takes the first of: the environment's ARD_COORDINATOR (host:port), ARD_NUM_PROCESSES and
    ARD_PROCESS_ID; Open MPI; a Slurm job step; the hosts of a TPU slice; an indexed Kubernetes job. It
    stays single where there is one process: a plain machine, a Slurm allocation without srun, a TPU host
    of its own. Does nothing in a program that has called `jax.distributed.initialize` itself.

    Args:
      setting: "auto"; "off" for a single process; "HOST:PORT,COUNT,INDEX" with the coordinator, which is
        process 0, the number of processes and this one's index; or "HOST:PORT", where COUNT and INDEX
        come from the environment (ARD_*, Open MPI or Slurm).
      timeout: seconds to wait for the others.

    Raises:
      ValueError: the processes do not find each other or disagree, the environment is incomplete, or JAX
        has been used before.
    """
    if not timeout > 0:
        raise ValueError(f"config.run.distributed_timeout={timeout}: seconds, more than 0")
    if setting == "off" or jax.distributed.is_initialized():
        return
    address = os.environ.get("ARD_COORDINATOR", "") if setting == "auto" else setting
    if address:
        name = "ARD_COORDINATOR" if setting == "auto" else "config.run.distributed"
        address, count, index = _given(address, name)
        if count > 1:
            rendezvous.meet(address, count, index, timeout)
            where = {"coordinator_address": address, "num_processes": count, "process_id": index}
            what = f"{count} processes with the coordinator {address}"
            _join(what, {**where, "cluster_detection_method": "deactivate"}, timeout)
        return
    what, arguments = _cluster()
    if what:
        _join(what, arguments, timeout)


def is_lead() -> bool:
    """True in the one process that prints and writes logs."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when all processes have come here with the same name; at once for a single one."""
    multihost_utils.sync_global_devices(name)


def everywhere(flag: bool) -> bool:
    """True if the flag is true in every process; all must ask. The flag itself in a single one."""
    if jax.process_count() == 1:
        return bool(flag)
    return bool(multihost_utils.process_allgather(np.int32(flag)).all())


def tell(*lines: str, file: IO | None = None) -> None:
    """Prints lines to standard output, or to `file`, in the lead process alone."""
    if lines and is_lead():
        print(*lines, sep="\n", file=file, flush=True)


def leave(code: int) -> int:
    """For a program that failed: ends this process without waiting long for the others.

    JAX makes a process that ends wait five minutes for all others to end, too. If those are waiting in a
    computation for this one, nobody gets on. So they have ten seconds (all fail together over a mistake in
    the configuration), then this process is gone and JAX ends the others within a minute.

    Args:
      code: exit code.

    Returns:
      The code, to exit with, if this is a single process or all have ended.
    """
    if not jax.distributed.is_initialized():
        return code
    ending = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    ending.start()
    ending.join(10)
    if ending.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def give_up(error: Exception) -> None:
    """Ends this process at once after an error of the devices, if there are several processes.

    Most often another one is gone. Python's way out would wait for it, and if this one is at fault, the
    others would wait for this one.
    """
    if jax.process_count() == 1:
        return
    print(
        f"ERROR: process {jax.process_index()} of {jax.process_count()} cannot go on: {str(error)[:500]}\n"
        "If this speaks of connections or tasks, another process has ended: its own log says why. Start all "
        "of them again: the run continues from its last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _given(setting: str, name: str) -> tuple[str, int, int]:
    """Address, count and index from "HOST:PORT[,COUNT,INDEX]", which `name` has, and the environment."""
    address, *numbers = setting.split(",")
    try:
        rendezvous.split(address)
    except ValueError as error:
        others = "auto, off, " if name.startswith("config") else ""
        raise ValueError(
            f"{name}={setting!r}: choose {others}HOST:PORT or HOST:PORT,COUNT,INDEX ({error})"
        ) from None
    if not numbers:
        numbers = next((pair for pair in _tasks().values() if pair), [])
    try:
        count, index = (int(number) for number in numbers)
    except ValueError as error:
        raise ValueError(
            f"coordinator {setting!r} also needs two whole numbers, of the processes and of this one: "
            "ARD_NUM_PROCESSES and ARD_PROCESS_ID, or HOST:PORT,COUNT,INDEX"
        ) from error
    if not 0 <= index < count:
        raise ValueError(
            f"process {index} of {count}: indices go from 0 to {count - 1}; see ARD_PROCESS_ID and "
            "ARD_NUM_PROCESSES, or what the launcher gives"
        )
    return address, count, index


def _tasks() -> dict[str, list[str]]:
    """By whom this process was numbered: [count, index], empty where it was not."""
    names = {
        "ARD": ("ARD_NUM_PROCESSES", "ARD_PROCESS_ID"),
        "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        # Of the step, not the job: in an interactive shell of a larger job this is 1.
        "Slurm": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    }
    read = {
        who: [os.environ[name] for name in pair if name in os.environ]
        for who, pair in names.items()
    }
    return {who: numbers if len(numbers) == 2 else [] for who, numbers in read.items()}


def _cluster() -> tuple[str, dict[str, Any]]:
    """What kind of cluster this is, "" for none, and the arguments with which JAX joins it.

    JAX can detect clusters alone, but raises on a plain machine, reserves one GPU for the only task of a
    Slurm node with eight, and asks Kubernetes' interface in every pod: so the environment is read here
    first, in JAX's order, and JAX is only told which cluster to look into.
    """
    tasks, env = _tasks(), os.environ
    if tasks["Open MPI"]:
        count = int(tasks["Open MPI"][0])
        if count > 1 and "OMPI_MCA_orte_hnp_uri" not in env:
            raise ValueError(
                f"Open MPI started {count} processes, but only version 4 tells JAX where process 0 is; say "
                "it: mpirun -x ARD_COORDINATOR=HOST:PORT, with the host of rank 0 and any free port"
            )
        alone_here = env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
        return _managed("Open MPI", "ompi", count, alone_here)
    if tasks["Slurm"] and "SLURM_STEP_NODELIST" in env:
        count = int(tasks["Slurm"][0])
        return _managed("Slurm", "slurm", count, env.get("SLURM_STEP_NUM_NODES") == str(count))
    # JAX itself sets it where it finds a TPU.
    if "tpu" in (jax.config.jax_platforms or ""):  # pyright: ignore[reportAttributeAccessIssue]  # jax adds it
        hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ","
        if "," not in hosts and int(env.get("MEGASCALE_NUM_SLICES") or 1) == 1:
            return "", {}
        return "a TPU", {}  # JAX asks the machine's metadata for the others
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        if importlib.util.find_spec("kubernetes") is None:
            raise ValueError(
                "this is a pod of an indexed Kubernetes job; to find the others JAX needs the package "
                f"kubernetes (pip install 'jax[k8s]'), or set ARD_COORDINATOR; {_ALONE}"
            )
        return "Kubernetes", {"cluster_detection_method": "k8s"}
    return "", {}


def _managed(what: str, method: str, count: int, alone_here: bool) -> tuple[str, dict[str, Any]]:
    if count == 1:
        return "", {}
    arguments: dict[str, Any] = {"cluster_detection_method": method, "num_processes": count}
    if alone_here or "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ","):
        # All GPUs that the process sees; JAX's own choice is the one numbered like the task on its host,
        # wrong for one task with all GPUs and for tasks that see one each (--gpus-per-task).
        arguments["local_device_ids"] = []
    return what, arguments


def _join(what: str, arguments: dict[str, Any], timeout: float) -> None:
    """`jax.distributed.initialize`, which ends the process where it cannot connect: we are first."""
    told = threading.Timer(timeout, _give_up, [what, timeout])
    told.daemon = True
    told.start()
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=int(timeout) + 30,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            # Of a process that fails alone: it waits so long for the others, which then end too.
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:
        if "before any JAX" in str(error):
            if what == "a TPU" and jax.process_count() == 1:
                return  # a notebook on a TPU host of its own
            raise ValueError(
                f"{what}: JAX was used before the processes were joined; call distributed.start() first in "
                f"a fresh Python, or {_ALONE}"
            ) from error
        if what == "a TPU" and "coordinator_address should be defined" in str(error):
            return  # one that belongs to no slice
        raise ValueError(
            f"{what}: the processes could not be joined: {error}. Give the coordinator yourself by "
            f"ARD_COORDINATOR, ARD_NUM_PROCESSES and ARD_PROCESS_ID; {_ALONE}"
        ) from error
    finally:
        told.cancel()


def _give_up(what: str, timeout: float) -> None:
    print(
        f"ERROR: {what}: the processes did not all come together within {timeout:g} seconds. Did all start, "
        "with the same command? Does a firewall let them reach process 0? A longer wait: "
        f"--config.run.distributed_timeout=900; {_ALONE}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)  # the main thread is inside JAX
