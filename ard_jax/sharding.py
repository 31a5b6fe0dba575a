"""Mesh and placement: with distributed.py the only code that knows of devices.

Data parallelism only: one "data" axis of type Auto over all devices, state replicated, batches split
along their first dimension. Step code is written for the global batch, so BatchNorm statistics are
those of the global batch whatever the number of devices.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(num_devices: int = 0) -> Mesh:
    """Mesh of the first `num_devices` devices of all hosts; 0 for all.

    Raises:
      ValueError: more devices asked for than there are.
    """
    devices = jax.devices()
    if num_devices > len(devices):
        raise ValueError(
            f"config.run.devices={num_devices}, but there are {len(devices)} devices; use 0 for all"
        )
    devices = devices[: num_devices or len(devices)]
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """First dimension split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from this host's rows of a batch."""
    sharding = split_batch(mesh)
    return {
        k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in local.items()
    }


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """The tree on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def num_devices(mesh: Mesh) -> int:
    """Devices that a batch is split over."""
    return mesh.devices.size


def describe(mesh: Mesh) -> str:
    """For people: "1 cpu device"."""
    count = num_devices(mesh)
    return f"{count} {mesh.devices.flat[0].platform} device{'s' if count > 1 else ''}"


def round_up(mesh: Mesh, batch_size: int) -> int:
    """The next batch size that divides evenly; for evaluation, whose batches are padded."""
    return -(-batch_size // mesh.devices.size) * mesh.devices.size


def process() -> tuple[int, int]:
    """(index of this host, number of hosts)."""
    return jax.process_index(), jax.process_count()
