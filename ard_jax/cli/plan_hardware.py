"""Devices by name, such as v4-32: their public peak numbers, and from FLOPs to seconds on them."""

import dataclasses
import math
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
_MOST_DEVICES = 100_000  # several times the largest pod
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
    if number > _MOST_DEVICES:
        raise ValueError(f"--devices={name}: must be at most {_MOST_DEVICES} devices")
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


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Numbers that are not measured here. The shares and the latency are guesses; give better ones.

    Attributes:
      flops: peak FLOP/s of a device; bandwidth: of its memory, bytes/s; link: to other devices, bytes/s
        in one direction; memory: bytes of a device that a program gets. None where not known.
      utilisation, bandwidth_share, link_share: reached shares of `flops`, `bandwidth` and `link`.
      fusion: memory traffic of all operations over that of the fused program; compiled for CPU the papers'
        networks have 1.6 to 1.8.
      latency: of one collective, seconds.
    """

    flops: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    memory: float | None = None
    utilisation: float = 0.35
    bandwidth_share: float = 0.7
    link_share: float = 0.6
    fusion: float = 2.0
    latency: float = 1e-5


_SHARES = ("utilisation", "bandwidth_share", "link_share")


def assumptions(fleet: Fleet, precision: str, given: list[str]) -> Assumptions:
    """The peak numbers of the devices and the default shares, overridden by "name=number" texts.

    Raises:
      ValueError: not of that form, an unknown name or one given twice, or a number that is not positive or,
        of a share, above 1.
    """
    values, known = {}, fleet.accelerator
    if known:
        crossing = fleet.hosts > 1 and known.network is not None
        values = {
            "flops": known.bf16 if precision == "bfloat16" else known.f32,
            "bandwidth": known.bandwidth,
            "link": known.network if crossing else known.link,
            "memory": known.memory * known.usable,
        }
    names, seen = [f.name for f in dataclasses.fields(Assumptions)], set()
    for text in given:
        name, _, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if name not in names or not 0 < value < math.inf:
            raise ValueError(
                f"--assume={text}: give NAME=NUMBER with a positive number; NAME is one of "
                f"{', '.join(names)} (FLOP/s, bytes/s, bytes, shares, seconds)"
            )
        if name in _SHARES and value > 1:
            raise ValueError(
                f"--assume={text}: a share of the peak, so at most 1 (50 % is {name}=0.5)"
            )
        if name in seen:
            raise ValueError(f"--assume={text}: {name} is given twice; give it once")
        seen.add(name)
        values[name] = value
    return Assumptions(**values)


def step_time(
    flops: float, traffic: float, reduced: int, collectives: int, fleet: Fleet, a: Assumptions
) -> dict[str, float] | None:
    """Seconds of one step, None where a peak number is missing.

    Args:
      flops: of one device.
      traffic: bytes that it reads and writes.
      reduced: bytes that are all-reduced.
      collectives: operations one after another.
      fleet: the devices.
      a: peaks, shares and latency.

    Returns:
      {"compute": the longer of FLOPs and memory traffic; "communication": a ring, 2 (N-1)/N of the bytes
      through each link, plus the latencies; "total": their sum, nothing overlapped}.
    """
    several = fleet.devices > 1
    if a.flops is None or a.bandwidth is None or (a.link is None and several):
        return None
    compute = max(flops / (a.flops * a.utilisation), traffic / (a.bandwidth * a.bandwidth_share))
    communication = 0.0
    if several and a.link is not None:
        ring = 2 * (fleet.devices - 1) / fleet.devices * reduced / (a.link * a.link_share)
        communication = ring + collectives * a.latency
    return {"compute": compute, "communication": communication, "total": compute + communication}
