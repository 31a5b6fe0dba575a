"""Accelerators by name: their public peak numbers, and what a name such as v4-32 stands for."""

import dataclasses
import re

_TPU = "https://cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device as JAX counts them, by its maker's numbers.

    Attributes:
      bf16, f32: peak FLOP/s of matrix products in the network's compute type. For float32 what XLA
        does by default: TPUs round the factors to bfloat16, NVIDIA GPUs to TF32 (no sparsity).
      memory: bytes; usable: share of them that a program gets (JAX takes 75 % of a GPU by default).
      bandwidth: of that memory, bytes/s.
      link: bytes/s out of one device to its neighbours, one direction.
      network: the same to other hosts, per device; None where `link` reaches them (a TPU slice).
      per_host: devices of a host; single_host: largest slice that is one host.
      cores: what the number in the name counts, per device (v4-32: 32 TensorCores, 2 per chip).
      source: where the numbers are from.
    """

    bf16: float
    f32: float
    memory: float
    usable: float
    bandwidth: float
    link: float
    network: float | None
    per_host: int
    single_host: int
    cores: int
    source: str


# TPU link: half of the documented bidirectional bandwidth; v4: 6 links of 45 GB/s
# (https://jax-ml.github.io/scaling-book/tpus/), which agrees with its pod's all-reduce bandwidth.
# GPU link: half of NVLink's total; network: one 200 (A100) or 400 Gbit/s adapter per GPU, as in a DGX.
ACCELERATORS = {
    "v4": Accelerator(275e12, 275e12, 32 * 2**30, 0.95, 1.2e12, 270e9, None, 4, 4, 2, _TPU + "v4"),
    "v5e": Accelerator(197e12, 197e12, 16e9, 0.95, 819e9, 200e9, None, 4, 8, 1, _TPU + "v5e"),
    "v5p": Accelerator(459e12, 459e12, 95e9, 0.95, 2.765e12, 600e9, None, 4, 4, 2, _TPU + "v5p"),
    "v6e": Accelerator(918e12, 918e12, 32e9, 0.95, 1.638e12, 400e9, None, 4, 8, 1, _TPU + "v6e"),
    "a100": Accelerator(
        312e12, 156e12, 80e9, 0.75, 2.039e12, 300e9, 25e9, 8, 8, 1, _NVIDIA + "a100/ (SXM, 80 GB)"
    ),
    "h100": Accelerator(
        989e12, 494e12, 80e9, 0.75, 3.35e12, 450e9, 50e9, 8, 8, 1, _NVIDIA + "h100/ (SXM)"
    ),
    "h200": Accelerator(
        989e12, 494e12, 141e9, 0.75, 4.8e12, 450e9, 50e9, 8, 8, 1, _NVIDIA + "h200/ (SXM)"
    ),
}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e"}


@dataclasses.dataclass(frozen=True)
class Fleet:
    """The devices of a run.

    Attributes:
      name: as asked for.
      kind: a key of `ACCELERATORS`, "cpu", or "" where only a number was given.
      devices: as JAX counts them; hosts: machines (1 where unknown).
      explanation: one sentence for people.
    """

    name: str
    kind: str
    devices: int
    hosts: int
    explanation: str

    @property
    def accelerator(self) -> Accelerator | None:
        """Its peak numbers, None where they are not known."""
        return ACCELERATORS.get(self.kind)


def parse(name: str) -> Fleet:
    """What `--devices` stands for: "v4-32", "v5e-16", "h100-8", "cpu-2", or a number alone.

    Raises:
      ValueError: not of that form, an unknown kind, or no whole number of chips.
    """
    match = re.fullmatch(r"(?:([a-z][a-z0-9]*)-)?(\d+)", name.strip().lower())
    kind = _ALIASES.get(match[1] or "", match[1] or "") if match else None
    if match is None or kind not in ("", "cpu", *ACCELERATORS) or int(match[2]) < 1:
        raise ValueError(
            f"--devices={name}: give a number of devices, such as 8, or a kind and a number, such as "
            f"v4-32 or h100-8; the kinds are {', '.join(ACCELERATORS)}, cpu"
        )
    number, known = int(match[2]), ACCELERATORS.get(kind)
    if known is None:
        what = "CPU devices" if kind else "devices of a kind that was not named"
        return Fleet(name, kind, number, 1, f"{number} {what}")
    if number % known.cores:
        raise ValueError(
            f"--devices={name}: the number counts TensorCores, {known.cores} to a {kind} chip; "
            f"use {kind}-{number + number % known.cores}"
        )
    devices = number // known.cores
    single = devices <= known.single_host
    hosts = 1 if single else -(-devices // known.per_host)
    cores = f"{number} TensorCores = " if known.cores > 1 else ""
    unit = "chip" if kind.startswith("v") else "GPU"
    text = f"{cores}{devices} {unit}{'s' * (devices > 1)} = {devices} JAX devices"
    return Fleet(name, kind, devices, hosts, f"{text} on {hosts} host{'s' * (hosts > 1)}")
