"""What ended the work, told in one message where it is no fault of the program, and the exit code."""

import errno
import os
import sys
import traceback

import jax

from ard_jax.io.files import output_is_lost
from ard_jax.runtime import distributed, preemption
from ard_jax.training.loop import TrainingDivergedError

_MISTAKE = 2
_FIXES = {
    errno.EMFILE: "; raise the limit, e.g. ulimit -n 4096",
    errno.EACCES: "; correct its permissions, or give another path",
    errno.EROFS: "; give another path",
    errno.ENOSPC: "; make room, or give another path",
}


def report(error: Exception) -> int:
    """Prints what is wrong and, if several processes run, ends this one without waiting long for the others.

    Args:
      error: that ended the work.

    Returns:
      Exit code: 2 for what a user can mend, 75 after SIGTERM, 1 for a fault of the program, which leaves its
      traceback.
    """
    if isinstance(error, preemption.PreemptedError):
        _print(f"PREEMPTED: {error}. The same command continues.")
        return distributed.leave(distributed.EXIT_PREEMPTED)
    if message := _mistake(error):
        _print(f"ERROR: {message}")
        return distributed.leave(_MISTAKE)
    traceback.print_exception(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        distributed.give_up(error)
    return distributed.leave(1)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _mistake(error: Exception) -> str:
    """What a user can mend; "" for a fault of the program."""
    if isinstance(error, ValueError | TrainingDivergedError):
        return str(error)
    if isinstance(error, OSError):  # a folder that cannot be written, a full disk
        what = error.filename or ("standard output" if output_is_lost() else "a file of this run")
        return f"{what}: {error.strerror or error}{_FIXES.get(error.errno or 0, '')}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        cause = str(error).partition("\n")[0]
        return (
            f"out of memory{cause and ': '}{cause}; lower config.batch_size or config.eval.batch_size, use a "
            "smaller network, or config.data.loader=grain for images that do not fit"
        )
    return missing_device()


def missing_device() -> str:
    """Why JAX has no device, and the fix; "" if it has one."""
    try:
        jax.devices()
    except Exception as error:
        cause = str(error).partition("\n")[0]
        return (
            f"JAX finds no device of JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}"
            f"{cause and ': '}{cause}; set JAX_PLATFORMS=cpu, or install what JAX needs for the device"
        )
    return ""
