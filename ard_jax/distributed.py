"""Which process this is. Start-up happens before anything touches a device."""

import os

import jax


def start() -> None:
    """Joins the other processes when the environment names a coordinator; else stays single.

    Environment: ARD_COORDINATOR (host:port), ARD_NUM_PROCESSES, ARD_PROCESS_ID.

    Raises:
      ValueError: the coordinator is named but not the process counts.
    """
    address = os.environ.get("ARD_COORDINATOR")
    if not address:
        return
    try:
        count, index = int(os.environ["ARD_NUM_PROCESSES"]), int(os.environ["ARD_PROCESS_ID"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"ARD_COORDINATOR={address} also needs the whole numbers ARD_NUM_PROCESSES and "
            f"ARD_PROCESS_ID; {error}"
        ) from error
    jax.distributed.initialize(address, count, index)


def is_lead() -> bool:
    """True in the one process that prints and writes logs."""
    return jax.process_index() == 0
