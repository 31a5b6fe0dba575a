"""The platform takes the machine back: SIGTERM, or JAX's notice where several processes run.

Nothing stops in the middle of a step. The work asks here between its parts, and all processes are told
to stop at the same question, whichever of them was signalled: JAX's coordination service agrees on it.
"""

import os
import signal
import socket
import threading
import time

import jax
from jax.experimental import multihost_utils

_KILLED = 128 + signal.SIGTERM  # what shells report after SIGTERM
_ONE_NOTICE = 1.0  # seconds; a launcher and the process group often signal the same stop twice


class PreemptedError(RuntimeError):
    """The process was asked to stop, and everything that was to be saved is saved."""


class _State:
    """What this process knows."""

    installed = signalled = stopping = False
    since = 0.0
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
    while number := pipe.recv(1):
        if number[0] != signal.SIGTERM:
            continue
        if not _State.signalled:
            _State.signalled, _State.since = True, time.monotonic()
        elif time.monotonic() - _State.since > _ONE_NOTICE:
            os._exit(_KILLED)


def requested() -> bool:
    """Whether to stop here; all processes must ask the same questions in the same order.

    True from the question on at which all processes are to stop; always False before `install`.
    """
    if not _State.installed:
        return False
    if jax.process_count() == 1:
        return _State.signalled
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
