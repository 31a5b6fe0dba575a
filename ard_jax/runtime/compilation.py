"""Where the time of a run goes: compilation, by JAX's own events, and the speed of training."""

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

import jax

_DURATIONS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace_seconds",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace_seconds",
    # The time to read it where the persistent cache has it.
    "/jax/core/compile/backend_compile_duration": "backend_seconds",
}
_COUNTS = {
    "/jax/compilation_cache/compile_requests_use_cache": "requests",
    "/jax/compilation_cache/cache_hits": "hits",
}


@dataclasses.dataclass
class Compilation:
    """What it took to get one program ready to run.

    Attributes:
      program: its name.
      trace_seconds: Python to StableHLO.
      backend_seconds: StableHLO to machine code, or the time to read that from the persistent cache.
      requests: programs that the persistent cache was asked for; 0 where there is none.
      hits: those of them that it had.
    """

    program: str
    trace_seconds: float = 0.0
    backend_seconds: float = 0.0
    requests: int = 0
    hits: int = 0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.trace_seconds + self.backend_seconds

    def describe(self) -> str:
        """For people: "student train_step: compiled in 12.3 s"."""
        cached = self.hits and self.hits == self.requests
        how = "read from the compilation cache" if cached else "compiled"
        return f"{self.program}: {how} in {self.seconds:.1f} s"

    def record(self) -> dict[str, Any]:
        """For the log."""
        return {
            "program": self.program,
            "compile_seconds": self.seconds,
            "trace_seconds": self.trace_seconds,
            "cache_hits": self.hits,
            "cache_misses": self.requests - self.hits,
        }


_measured: list[Compilation] = []


@functools.cache
def _listen() -> None:
    def duration(event: str, seconds: float, **_: Any) -> None:
        if name := _DURATIONS.get(event):
            for one in _measured:
                setattr(one, name, getattr(one, name) + seconds)

    def count(event: str, **_: Any) -> None:
        # JAX counts requests where it has no folder to keep programs in, too.
        if (name := _COUNTS.get(event)) and jax.config.jax_compilation_cache_dir:
            for one in _measured:
                setattr(one, name, getattr(one, name) + 1)

    jax.monitoring.register_event_duration_secs_listener(duration)
    jax.monitoring.register_event_listener(count)


@contextlib.contextmanager
def compilation(program: str) -> Iterator[Compilation]:
    """Measures the first call of a jitted function, which compiles before it runs."""
    _listen()
    found = Compilation(program)
    _measured.append(found)
    try:
        yield found
    finally:
        # By identity: equal records are not the same one.
        _measured[:] = [one for one in _measured if one is not found]


def of_training(
    records: Iterable[dict[str, Any]], seconds: float, images: int, images_per_epoch: int
) -> dict[str, Any]:
    """A finished training's times, over all its restarts.

    Args:
      records: of its metrics.jsonl.
      seconds: of wall time, evaluation and compilation included.
      images: that it trained on, repeats included.
      images_per_epoch: likewise in one epoch.

    Returns:
      "train_seconds", "images_per_second", "seconds_per_epoch" (without compilation and evaluation: the
      images of an epoch over the median of the speeds that were logged after the first epoch, which
      compiles; left out when there is no second epoch), "compile_seconds" of the train step, and
      "compilation_cache": {"hits", "misses"} of it.
    """
    timing: dict[str, Any] = {
        "train_seconds": seconds,
        "images_per_second": images / max(seconds, 1e-9),
    }
    records = list(records)
    speeds = [r["images_per_second"] for r in records if r["kind"] == "train" and r["epoch"] > 1]
    if speeds:
        timing["seconds_per_epoch"] = images_per_epoch / statistics.median(speeds)
    compiled = [r for r in records if r["kind"] == "event" and r["event"] == "compiled"]
    if compiled:
        timing["compile_seconds"] = sum(r["compile_seconds"] for r in compiled)
        timing["compilation_cache"] = {
            name: sum(r[f"cache_{name}"] for r in compiled) for name in ("hits", "misses")
        }
    return timing
