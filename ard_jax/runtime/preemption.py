"""The platform takes the machine back: SIGTERM, or JAX's notice where several processes run.

Nothing stops in the middle of a step. The work asks here between its parts, and all processes are told
to stop at the same question, whichever of them was signalled: JAX's coordination service agrees on it.

Ctrl-C raises KeyboardInterrupt where the main thread is. Where that is a callback of the garbage collector or
of a weak reference, Python drops it; and where the main thread waits for a device, it comes late. So a single
process notes it too: the next question raises it again, and some seconds later the process ends anyhow.
"""

import os
import signal
import socket
import sys
import threading
import time
from typing import ClassVar

import jax
from jax.experimental import multihost_utils

_REPORTED = 128  # what shells add to the number of the signal that ended a process
_PATIENCE = 10.0  # seconds after Ctrl-C, for what is to be written
_ONE_NOTICE = 1.0  # seconds; a launcher and the process group often signal the same stop twice


class PreemptedError(RuntimeError):
    """The process was asked to stop, and everything that was to be saved is saved."""


class _State:
    """What this process knows."""

    installed = stopping = False
    since: ClassVar[dict[int, float]] = {}  # signal -> when it came first
    questions = 0


def install() -> None:
    """From now on SIGTERM is noted instead of ending the process; a second one ends it at once.

    To be called in the main thread, after `distributed.start`. With several processes JAX's own handler
    stays, which tells the others; it takes no second SIGTERM before all have agreed where to stop.
    """
    if _State.installed:
        return
    _State.installed = True
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        return
    # Python runs its handlers between bytecodes, so not while XLA compiles; the wake-up file is written
    # in the signal itself.
    read, write = socket.socketpair()
    write.setblocking(False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(write.detach())
    threading.Thread(target=_listen, args=[read], name="SIGTERM", daemon=True).start()


def _listen(pipe: socket.socket) -> None:
    while received := pipe.recv(1):
        number, now = received[0], time.monotonic()
        if number not in (signal.SIGTERM, signal.SIGINT):
            continue
        if number in _State.since and now - _State.since[number] > _ONE_NOTICE:
            os._exit(_REPORTED + number)
        if number == signal.SIGINT and number not in _State.since:
            last = threading.Timer(_PATIENCE, _end)
            last.daemon = True
            last.start()
        _State.since.setdefault(number, now)


def _end() -> None:
    print("INTERRUPTED: ended while the devices still compute", file=sys.stderr, flush=True)
    os._exit(_REPORTED + signal.SIGINT)


def leave_interrupted() -> int:
    """Ends the process after Ctrl-C: Python's own end would wait for threads on a device, or crash them.

    Returns:
      The exit code, where there was none (or before `install`).
    """
    code = _REPORTED + signal.SIGINT
    if signal.SIGINT in _State.since:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def requested() -> bool:
    """Whether to stop here; all processes must ask the same questions in the same order.

    True from the question on at which all processes are to stop; always False before `install`.

    Raises:
      KeyboardInterrupt: Ctrl-C, which was lost on its way here.
    """
    if not _State.installed:
        return False
    if signal.SIGINT in _State.since:
        raise KeyboardInterrupt
    if jax.process_count() == 1:
        return signal.SIGTERM in _State.since
    if not _State.stopping:
        _State.questions += 1
        _State.stopping = multihost_utils.reached_preemption_sync_point(_State.questions)
        if _State.stopping:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return _State.stopping


def check(doing: str) -> None:
    """Ends the work here if that is requested.

    Args:
      doing: what is being done, for the message: "the final evaluation".

    Raises:
      PreemptedError: to be let through to `main`, by way of whoever has something to save.
    """
    if requested():
        raise PreemptedError(f"stopped by SIGTERM in {doing}")
