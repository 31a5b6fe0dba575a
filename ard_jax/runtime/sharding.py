"""Mesh and placement: with distributed.py the only code that knows of devices.

Data parallelism only: one "data" axis of type Auto over all devices, state replicated, batches split
along their first dimension. Step code is written for the global batch, so BatchNorm statistics are
those of the global batch whatever the number of devices.
"""

import os
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Set by `use_cores`: the CPU devices of this process are its cores, and a mesh need not take them all.
_CORES = False
_IMAGES_PER_CORE = 16  # with fewer, the cores wait for each other more than they gain


def use_cores() -> None:
    """On a CPU, one device for each core that this process may use; before JAX is used.

    XLA:CPU runs the parts of a batch on several devices up to twice as fast as the whole on one. Whoever
    has said how many devices there are (JAX_NUM_CPU_DEVICES, XLA_FLAGS) is left alone, and so is a run of
    several processes. Without effect on GPUs and TPUs.
    """
    global _CORES
    said = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    told = jax.config.jax_num_cpu_devices > 0  # pyright: ignore[reportAttributeAccessIssue]  # jax adds it
    if said or told or jax.distributed.is_initialized():
        return
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", cores)
    _CORES = True


def has_cores() -> bool:
    """Whether the devices are the cores of a CPU, by `use_cores`."""
    return _CORES and jax.default_backend() == "cpu"


def make_mesh(num_devices: int = 0, batch_sizes: Iterable[int] = ()) -> Mesh:
    """Mesh of `num_devices` devices, the first ones of every host; 0 for all.

    Args:
      num_devices: of all hosts together.
      batch_sizes: batches to be split. If the devices are cores (`use_cores`), 0 means as many of them as
        divide all batches and get some images each; other devices are not left idle for a batch.

    Raises:
      ValueError: more devices asked for than there are, or not as many of each host.
    """
    if not num_devices and has_cores():
        num_devices = _cores_for(batch_sizes)
    # By host, so that the p-th slice of a batch lies on host p.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    hosts = jax.process_count()
    if num_devices > len(devices):
        raise ValueError(
            f"config.run.devices={num_devices}, but there are {len(devices)} devices; use 0 for all"
        )
    if num_devices % hosts:
        raise ValueError(
            f"config.run.devices={num_devices} does not divide by {hosts} processes; use 0 for all devices"
        )
    if num_devices:
        by_host = ([d for d in devices if d.process_index == host] for host in range(hosts))
        devices = [d for mine in by_host for d in mine[: num_devices // hosts]]
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def _cores_for(batch_sizes: Iterable[int]) -> int:
    sizes = [size for size in batch_sizes if size]
    most = min([jax.device_count(), *(max(1, size // _IMAGES_PER_CORE) for size in sizes)])
    return max(n for n in range(1, most + 1) if not any(size % n for size in sizes))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first dimension split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def split_parts(mesh: Mesh) -> NamedSharding:
    """Of parts of a batch, [parts, B, ...]: the second dimension split over the devices."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def split_array(mesh: Mesh, array: Any) -> NamedSharding:
    """Splits the first axis that divides by the devices; replicates an array without one."""
    for axis, size in enumerate(array.shape):
        if size and size % mesh.devices.size == 0:
            return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))
    return replicated(mesh)


def put_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from this host's rows of a batch."""
    sharding = split_batch(mesh)
    return {
        k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in local.items()
    }


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """The tree on every device of the mesh."""
    same = replicated(mesh)

    def place(leaf: Any) -> jax.Array:
        if not jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
                # An array that lies on one device of each host cannot be moved to those of others.
                leaf = np.asarray(leaf) if jax.process_count() > 1 else leaf
            return jax.device_put(leaf, same)
        # Of several processes device_put takes numbers alone.
        data = jax.device_put(jax.random.key_data(leaf), same)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

    return jax.tree.map(place, tree)


def gather(array: jax.Array) -> np.ndarray:
    """The whole of a split array, on every host."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def memory(mesh: Mesh) -> tuple[int | None, int]:
    """(bytes, how many devices of this host share them); None where JAX or the system does not tell."""
    devices = mesh.local_devices
    if devices[0].platform != "cpu":
        return (devices[0].memory_stats() or {}).get("bytes_limit"), 1
    known = hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(os.sysconf_names)
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else None
    return size, len(devices)


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
