"""Processes meet and compare notes before JAX joins them.

JAX's own start-up ends the process with a stack trace of C++ when an address is wrong, a process is
missing or counts differ, which no Python code can catch. So the processes first meet over a plain socket
at the address that JAX is about to use: process 0 listens, the others say who they are, and each learns
either that all is well or, in one sentence, what is wrong.
"""

import errno
import json
import socket
import sys
import time

_NOTE_AFTER = 10.0  # seconds of silence before saying what is waited for


def meet(address: str, count: int, index: int, timeout: float) -> None:
    """Returns when all `count` processes have met at `address`; process 0 is the host.

    Args:
      address: "host:port" of process 0, as the others reach it.
      count: number of processes.
      index: of this one, 0 <= index < count.
      timeout: seconds to wait for the others.

    Raises:
      ValueError: somebody is missing, cannot be reached or disagrees; the message says what to do.
    """
    host, port = split(address)
    if index == 0:
        _receive(address, port, count, timeout)
    else:
        _introduce(address, host, port, count, index, timeout)


def split(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[IPv6]:port".

    Raises:
      ValueError: it is not of that form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            f"coordinator {address!r} is not HOST:PORT, e.g. 10.0.0.1:1234 with process 0 on 10.0.0.1"
        )
    return host.strip("[]"), int(port)


def _receive(address: str, port: int, count: int, timeout: float) -> None:
    """Process 0: waits for the others, then tells them all the same."""
    here, deadline, note = {}, time.monotonic() + timeout, time.monotonic() + _NOTE_AFTER
    problem = ""
    with _listen(address, port) as listener:
        listener.settimeout(0.2)
        while len(here) < count - 1 and not problem:
            missing = [i for i in range(1, count) if i not in here]
            if time.monotonic() > deadline:
                problem = (
                    f"of {count} processes, {missing} did not come to {address} within {timeout:g} seconds. "
                    "Start them all at about the same time; if they did start, their own message says "
                    "whether the address is wrong or a firewall stands between the machines. Fewer "
                    "processes: lower ARD_NUM_PROCESSES (or what the launcher gives) everywhere"
                )
            if time.monotonic() > note:
                note = deadline + 1
                _say(f"process 0 waits at {address} for the processes {missing} of {count}")
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            problem = problem or _welcome(connection, count, here)
        for connection in here.values():
            _answer(connection, problem)
    if problem:
        raise ValueError(f"the processes cannot start together: {problem}.")


def _welcome(connection: socket.socket, count: int, here: dict[int, socket.socket]) -> str:
    """Adds a process to those that are here; returns what is wrong with it, "" for nothing."""
    connection.settimeout(5)
    try:
        with connection.makefile("rb") as stream:
            said = json.loads(stream.readline(200))
        theirs, index = int(said["ard_jax_processes"]), int(said["index"])
    except (OSError, ValueError, KeyError, TypeError):
        connection.close()  # a port scanner, or a process that left
        return ""
    problem = ""
    if theirs != count:
        problem = (
            f"process {index} was told that there are {theirs} processes, process 0 that there are {count}; "
            "give all the same number"
        )
    elif index in here or index == 0:
        problem = f"two processes say that they are process {index}; each needs its own index"
    if problem:
        _answer(connection, problem)
    else:
        here[index] = connection
    return problem


def _introduce(address: str, host: str, port: int, count: int, index: int, timeout: float) -> None:
    """Another process: finds process 0 and waits for its answer."""
    began, noted, last = time.monotonic(), False, "no answer"
    while (waited := time.monotonic() - began) < timeout:
        try:
            with socket.create_connection((host, port), min(5.0, timeout)) as connection:
                connection.settimeout(
                    timeout + 5
                )  # process 0 gives up first, with the better message
                said = {"ard_jax_processes": count, "index": index}
                connection.sendall(json.dumps(said).encode() + b"\n")
                with connection.makefile("rb") as stream:
                    answer = stream.readline(2000)
            if answer:
                return _read(answer)
            last = "it closed the connection"
        except OSError as error:
            last = f"{type(error).__name__}: {error}"
        if not noted and waited > _NOTE_AFTER:
            noted = True
            _say(f"process {index} of {count} waits for process 0 at {address} ({last})")
        time.sleep(0.2)
    raise ValueError(
        f"process {index} of {count} did not reach process 0 at {address} within {timeout:g} seconds "
        f"({last}). Is process 0 running, is the address that of its machine, and does a firewall let the "
        "port through? A longer wait: --config.run.distributed_timeout=900"
    )


def _read(answer: bytes) -> None:
    try:
        problem = json.loads(answer)["problem"]
    except (ValueError, KeyError, TypeError):
        problem = "something else than ard_jax answers there; choose another port"
    if problem:
        raise ValueError(f"the processes cannot start together: {problem}.")


def _answer(connection: socket.socket, problem: str) -> None:
    with connection:
        try:
            connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
        except OSError:
            pass  # it left; JAX's own start-up will notice


def _listen(address: str, port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "it is taken, by another run or one that is still ending" if taken else str(error)
        raise ValueError(
            f"process 0 cannot listen on port {port} of {address}: {reason}; choose another port for all "
            "processes"
        ) from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
