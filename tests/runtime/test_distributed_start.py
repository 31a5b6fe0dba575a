"""How processes find each other: from the environment, over a socket, and what is said when they do not."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from ard_jax.runtime import distributed, rendezvous

SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "0",
}  # fmt: skip
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
       "OMPI_COMM_WORLD_LOCAL_RANK": "1"}  # fmt: skip
MPI_4 = MPI | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture
def plain(monkeypatch):
    """An environment without any cluster."""
    prefixes = ("ARD_", "SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_", "CUDA_")
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        monkeypatch.delenv(name)
    return monkeypatch


def set_environment(plain, values):
    for name, value in values.items():
        plain.setenv(name, value)


@pytest.fixture
def joined(plain):
    """Records the arguments of jax.distributed.initialize and of the meeting instead of doing either."""
    record = SimpleNamespace(arguments=None, meeting=None)

    def initialize(**arguments):
        assert arguments.pop("initialization_timeout") > 9
        for name in ("heartbeat_timeout_seconds", "shutdown_timeout_seconds"):
            assert 0 < arguments.pop(name) < 60  # the others end within a minute
        record.arguments = arguments

    plain.setattr(jax.distributed, "initialize", initialize)
    plain.setattr(rendezvous, "meet", lambda *details: setattr(record, "meeting", details))
    return record


@pytest.fixture
def port():
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


SLURM_FOUND = {"cluster_detection_method": "slurm", "num_processes": 2}
MPI_FOUND = {"cluster_detection_method": "ompi", "num_processes": 2}
ALL_GPUS = {"local_device_ids": []}
ON_A_TPU = {"jax_platforms": "tpu,cpu"}


@pytest.mark.parametrize(
    "environment, config, expected",
    [
        ({}, {}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "2"}, {}, None),  # a shell in a larger job
        ({k: v for k, v in SLURM.items() if "STEP" not in k}, {}, None),  # a batch script, without srun
        # One task per node has all of its GPUs.
        (SLURM, {}, SLURM_FOUND | ALL_GPUS),
        # Two tasks on one node: each the GPU of its number ...
        (SLURM | {"SLURM_STEP_NUM_NODES": "1"}, {}, SLURM_FOUND),
        # ... unless each sees just one, as with --gpus-per-task=1.
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "1"}, {}, SLURM_FOUND | ALL_GPUS),
        (MPI_4, {}, MPI_FOUND),
        (MPI_4 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, {}, MPI_FOUND | ALL_GPUS),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, {}, None),
        ({}, ON_A_TPU, {}),  # JAX asks the metadata
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, ON_A_TPU, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ON_A_TPU, None),
        ({"TPU_PROCESS_ADDRESSES": "local"}, ON_A_TPU, None),  # a notebook
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, ON_A_TPU, {}),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}, None),  # told to use the CPU
        (POD, {}, None),  # any pod, such as a notebook
        ({"ARD_COORDINATOR": "h:1", "ARD_NUM_PROCESSES": "1", "ARD_PROCESS_ID": "0"}, {}, None),
    ],
)  # fmt: skip
def test_auto(joined, plain, environment, config, expected):
    set_environment(plain, environment)
    if config:
        fake = SimpleNamespace(config=SimpleNamespace(**config), distributed=jax.distributed)
        plain.setattr(distributed, "jax", fake)
    distributed.start("auto", 10)
    assert joined.arguments == expected and joined.meeting is None


@pytest.mark.parametrize(
    "setting, environment",
    [
        ("h:1234,2,1", {}),
        ("h:1234", MPI),  # Open MPI 5 numbers its processes, too
        ("h:1234", SLURM),
        ("h:1234", {"ARD_NUM_PROCESSES": "2", "ARD_PROCESS_ID": "1"}),
        ("auto", {"ARD_COORDINATOR": "h:1234", "ARD_NUM_PROCESSES": "2", "ARD_PROCESS_ID": "1"}),
        ("auto", {"ARD_COORDINATOR": "h:1234", **MPI}),
    ],
)
def test_given_coordinator(joined, plain, setting, environment):
    set_environment(plain, environment)
    distributed.start(setting, 10)
    assert joined.meeting == ("h:1234", 2, 1, 10)
    assert joined.arguments == {
        "coordinator_address": "h:1234", "num_processes": 2, "process_id": 1,
        "cluster_detection_method": "deactivate",
    }  # fmt: skip


def test_off_ignores_everything(joined, plain):
    set_environment(plain, SLURM | {"ARD_COORDINATOR": "h:1"})
    distributed.start("off")
    assert joined.arguments is None


@pytest.mark.parametrize(
    "setting, environment, message",
    [
        (
            "localhost",
            {},
            r"config.run.distributed='localhost': choose .*'localhost' is not HOST:PORT",
        ),
        (
            "auto",
            {"ARD_COORDINATOR": "on"},
            r"ARD_COORDINATOR='on': choose .*'on' is not HOST:PORT",
        ),
        ("h:99999", {}, "is not HOST:PORT"),
        ("h:1", {}, "needs two whole numbers.*ARD_NUM_PROCESSES"),
        ("h:1,2", {}, "needs two whole numbers"),
        ("h:1,two,0", {}, "needs two whole numbers"),
        ("auto", {"ARD_COORDINATOR": "h:1", "ARD_NUM_PROCESSES": "2"}, "needs two whole numbers"),
        ("h:1,2,2", {}, "process 2 of 2: indices go from 0 to 1"),
        ("auto", MPI, r"Open MPI started 2 processes.*mpirun -x ARD_COORDINATOR=HOST:PORT"),
        ("auto", POD | {"JOB_COMPLETION_INDEX": "0"}, r"pip install 'jax\[k8s\]'.*distributed=off"),
    ],
)
def test_mistakes(joined, plain, setting, environment, message):
    set_environment(plain, environment)
    plain.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        distributed.start(setting)
    with pytest.raises(ValueError, match="config.run.distributed_timeout=0"):
        distributed.start(setting, 0)


def test_jax_used_before(plain):
    jax.devices()
    set_environment(plain, SLURM)
    with pytest.raises(ValueError, match="Slurm: JAX was used before.*distributed=off"):
        distributed.start()


def test_errors_of_the_detection_are_told(joined, plain):
    def initialize(**_):
        raise RuntimeError("Kubernetes API Error: 403")

    plain.setattr(jax.distributed, "initialize", initialize)
    plain.setattr("importlib.util.find_spec", lambda name: True)
    set_environment(plain, POD | {"JOB_COMPLETION_INDEX": "0"})
    with pytest.raises(ValueError, match="Kubernetes: .*403.*ARD_COORDINATOR"):
        distributed.start()


@pytest.mark.parametrize(
    "error",
    [ValueError("coordinator_address should be defined."), RuntimeError("before any JAX calls")],
)
def test_a_tpu_host_of_its_own_stays_single(joined, plain, error):
    def initialize(**_):
        raise error

    jax_there = SimpleNamespace(config=SimpleNamespace(**ON_A_TPU), process_count=lambda: 1)
    jax_there.distributed = SimpleNamespace(initialize=initialize, is_initialized=lambda: False)
    plain.setattr(distributed, "jax", jax_there)
    distributed.start()


def meet(port, told, timeout):
    """Runs `rendezvous.meet` for several (count, index); returns what each ended with, "" for well."""

    def one(count, index):
        try:
            rendezvous.meet(f"localhost:{port}", count, index, timeout)
        except ValueError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(told)) as pool:
        return list(pool.map(lambda pair: one(*pair), told))


def test_processes_meet(port):
    assert meet(port, [(4, 2), (4, 0), (4, 1), (4, 3)], 20) == [""] * 4
    assert meet(port, [(2, 0), (2, 1)], 20) == [""] * 2  # at once again on the same port


@pytest.mark.parametrize(
    "told, said",
    [
        (
            [(2, 0), (3, 1)],
            "process 1 was told that there are 3 processes, process 0 that there are 2",
        ),
        ([(3, 0), (3, 1), (3, 1)], "two processes say that they are process 1"),
    ],
)
def test_all_are_told_of_a_disagreement(port, told, said):
    began = time.monotonic()
    answers = meet(port, told, 3)
    # Whoever comes after process 0 has left does not find it; all others hear what is wrong.
    assert said in answers[0] and sum(said in answer for answer in answers) >= 2
    assert all(answers) and time.monotonic() - began < 10


def test_missing_processes_are_named(port):
    answers = meet(port, [(4, 0), (4, 2)], 1)
    assert all("of 4 processes, [1, 3] did not come to" in answer for answer in answers)


@pytest.mark.parametrize("host", ["localhost", "no-such-host.invalid"])
def test_unreachable_coordinator(port, host):
    message = f"did not reach process 0 at {host}:{port} within 0.3 s.*firewall"
    with pytest.raises(ValueError, match=message):
        rendezvous.meet(f"{host}:{port}", 2, 1, 0.3)


def test_port_is_taken(port):
    message = f"cannot listen on port {port}.*taken.*choose another port"
    with socket.create_server(("", port)):
        with pytest.raises(ValueError, match=message):
            rendezvous.meet(f"localhost:{port}", 2, 0, 5)


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n", b""])
def test_something_else_answers(port, reply):
    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(200)
                    connection.sendall(reply)

    with socket.create_server(("localhost", port)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(ValueError, match="something else|closed the connection|did not reach"):
            rendezvous.meet(f"localhost:{port}", 2, 1, 0.3)
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_strangers_do_not_disturb(port):
    with ThreadPoolExecutor(1) as pool:
        lead = pool.submit(rendezvous.meet, f"localhost:{port}", 2, 0, 20)
        for junk in (b"GET / HTTP/1.1\r\n\r\n", b"", b"[1]\n", b'{"index": 1}\n'):
            for _ in range(100):
                with contextlib.suppress(ConnectionRefusedError):
                    with socket.create_connection(("localhost", port)) as stranger:
                        stranger.sendall(junk)
                    break
                time.sleep(0.05)
        rendezvous.meet(f"localhost:{port}", 2, 1, 20)
        lead.result(20)


WORKER = """
import sys
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 2)
from ard_jax.runtime import distributed
try:
    distributed.start(sys.argv[1], float(sys.argv[2]))
except ValueError as error:
    print("ERROR:", error)
    sys.exit(2)
distributed.start(sys.argv[1])  # a second time is harmless
total = jax.experimental.multihost_utils.process_allgather(jnp.ones(1)).sum()
if sys.argv[3:] and str(jax.process_index()) in sys.argv[3]:
    sys.exit(distributed.leave(7))
print(jax.process_index(), jax.process_count(), len(jax.devices()), distributed.is_lead(), total,
      jax.config.read("jax_cuda_visible_devices"))
distributed.barrier("end")
"""


def start_workers(told, *more):
    """Starts a process for each (setting, timeout, environment); returns their codes and outputs."""
    clean = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, setting, str(timeout), *more],
            env=clean | environment, cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for setting, timeout, environment in told
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, outputs, strict=True)]


def found(outputs):
    """What the workers printed, without gloo's own lines."""
    lines = [
        line for _, out, _ in outputs for line in out.splitlines() if line.split(" ")[0].isdigit()
    ]
    assert [code for code, _, _ in outputs] == [0] * len(outputs), outputs
    return sorted(lines)


def given_numbers(port):
    return [(f"localhost:{port},2,{index}", 60, {}) for index in range(2)]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("by", ["setting", "environment", "slurm", "open mpi"])
def test_two_processes_become_one(plain, port, by):
    told = []
    for index, setting in enumerate(given_numbers(port)):
        numbers = {"ARD_NUM_PROCESSES": "2", "ARD_PROCESS_ID": str(index)}
        rank = {"SLURM_PROCID": str(index), "OMPI_COMM_WORLD_RANK": str(index),
                "JAX_COORDINATOR_PORT": str(port)}  # fmt: skip
        told.append({
            "setting": setting,
            "environment": ("auto", 60, {"ARD_COORDINATOR": f"localhost:{port}", **numbers}),
            "slurm": ("auto", 60, SLURM | rank),  # found by JAX itself
            "open mpi": ("auto", 60, MPI_4 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"} | rank),
        }[by])  # fmt: skip
    # Two processes of two devices; all GPUs stay visible.
    assert found(start_workers(told)) == ["0 2 4 True 2.0 all", "1 2 4 False 2.0 all"]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_messages_instead_of_stack_traces(plain, port):
    began = time.monotonic()
    ((code, out, err),) = start_workers([(f"localhost:{port},2,1", 2, {})])
    assert code == 2 and "did not reach process 0" in out and "Traceback" not in err
    # Where JAX looks for the address itself, the message comes from beside its blocking call.
    slurm = SLURM | {"JAX_COORDINATOR_PORT": str(port)}
    ((code, out, err),) = start_workers([("auto", 2, slurm)])
    assert code == 2 and "ERROR: Slurm: the processes did not all come together within 2 sec" in err
    assert time.monotonic() - began < 60


@pytest.mark.slow
@pytest.mark.multiprocess
def test_one_that_failed_does_not_wait_for_the_others(port):
    began = time.monotonic()
    (first, *_), (second, *_) = start_workers(given_numbers(port), "1")
    # Process 0 waits in the barrier at the end, until it learns that process 1 is gone.
    assert second == 7 and first not in (0, 7)
    assert time.monotonic() - began < 75


@pytest.mark.slow
@pytest.mark.multiprocess
def test_all_failing_together_end_in_order(port):
    began = time.monotonic()
    outputs = start_workers(given_numbers(port), "01")
    assert [code for code, *_ in outputs] == [7, 7]
    assert not any("Check failure" in err for *_, err in outputs)
    assert time.monotonic() - began < 20
