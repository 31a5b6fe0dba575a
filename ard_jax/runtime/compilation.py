"""Compilation: how often programs are traced, and how long it takes, by JAX's own events."""

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax

# How often each program of this process was traced, by name; a run traces each exactly once.
TRACES: Counter[str] = Counter()

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
    def duration(event: str, duration_secs: float, **_: Any) -> None:
        if name := _DURATIONS.get(event):
            for one in _measured:
                setattr(one, name, getattr(one, name) + duration_secs)

    def count(event: str, **_: Any) -> None:
        # JAX counts requests where it has no folder to keep programs in, too.
        folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]  # jax adds it
        if (name := _COUNTS.get(event)) and folder:
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
