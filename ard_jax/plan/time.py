"""From counts to seconds: a roofline over the kernels of a step, and a ring of reductions."""

import dataclasses
import math

from ard_jax.plan.count import Count
from ard_jax.plan.hardware import Fleet


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Numbers that are not measured here. The shares and delays are guesses; give better ones.

    Attributes:
      flops: peak FLOP/s of a device; bandwidth: of its memory, bytes/s; link: to other devices, bytes/s
        in one direction; memory: bytes of a device that a program gets. None where not known.
      utilisation: share of `flops` that convolutions reach.
      bandwidth_share, link_share: the same of `bandwidth` and `link`.
      kernel: shortest time of one kernel, seconds.
      latency: of one collective, seconds.
    """

    flops: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    memory: float | None = None
    utilisation: float = 0.35
    bandwidth_share: float = 0.7
    link_share: float = 0.6
    kernel: float = 3e-6
    latency: float = 1e-5


def assumptions(fleet: Fleet, precision: str, given: list[str]) -> Assumptions:
    """The peak numbers of the devices and the default shares, overridden by "name=number" texts.

    Raises:
      ValueError: not of that form, an unknown name, or a number that is not positive.
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
    names = [f.name for f in dataclasses.fields(Assumptions)]
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
        values[name] = value
    return Assumptions(**values)


def step_time(
    count: Count, reduced: int, collectives: int, fleet: Fleet, a: Assumptions
) -> dict[str, float] | None:
    """Seconds of one step, None where a peak number is missing.

    Args:
      count: the work of one device.
      reduced: bytes that are all-reduced.
      collectives: operations one after another.
      fleet: the devices.
      a: peaks, shares and delays.

    Returns:
      {"compute": every kernel as long as its FLOPs, its memory traffic or the shortest kernel demand;
      "communication": a ring, 2 (N-1)/N of the bytes through each link, plus the latencies;
      "total": their sum, nothing overlapped}.
    """
    if a.flops is None or a.bandwidth is None or (a.link is None and fleet.devices > 1):
        return None
    flops, bandwidth = a.flops * a.utilisation, a.bandwidth * a.bandwidth_share
    compute = sum(n * max(f / flops, b / bandwidth, a.kernel) for f, b, n in count.items)
    communication = 0.0
    if fleet.devices > 1:
        ring = 2 * (fleet.devices - 1) / fleet.devices * reduced / (a.link * a.link_share)
        communication = ring + collectives * a.latency
    return {
        "compute": compute,
        "communication": communication,
        "total": compute + communication,
    }
