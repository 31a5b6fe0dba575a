"""What devices say to each other in a compiled program: its collectives, loops at their full length."""

import collections
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1,
    "bf16": 2,
    "f16": 2,
    "f64": 8,
    "s64": 8,
    "u64": 8,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
}
_OP = re.compile(r"= (.*?) (" + "|".join(KINDS) + r")(?:-start)?\(")
_CALL = re.compile(
    r"(?:calls|body|condition|to_apply|branch_computations)=\{?([^,}]+(?:, %[^,}]+)*)"
)


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Counts the collectives of one execution.

    Args:
      text: of a compiled program, `compiled.as_text()`.

    Returns:
      kind -> {"count": operations, "small": those of them on vectors and scalars (BatchNorm statistics,
      metrics), "bytes": of their results on one device}; kinds that do not occur are left out. All
      branches of a conditional are counted.
    """
    bodies: dict[str, list[str]] = {}
    entry = lines = None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            lines = bodies.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif lines is not None:
            lines.append(line)
    found: dict[str, collections.Counter] = {}
    _walk(bodies, entry, 1, found)
    return {kind: dict(c) for kind, c in found.items()}


def _walk(bodies: dict[str, list[str]], name: str | None, times: int, found: dict) -> None:
    for line in bodies.get(name or "", ()):
        if op := _OP.search(line):
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", op[1])
            dims = [[int(d) for d in s.split(",") if d] for _, s in shapes]
            size = sum(
                _BYTES.get(t, 4) * math.prod(d) for (t, _), d in zip(shapes, dims, strict=True)
            )
            tally = found.setdefault(op[2], collections.Counter(count=0, small=0, bytes=0))
            tally["count"] += times
            tally["small"] += times * all(len(d) <= 1 for d in dims)
            tally["bytes"] += times * size
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
        for names in _CALL.findall(line):
            for called in re.findall(r"%?([\w.\-]+)", names):
                if called in bodies:
                    _walk(bodies, called, times * int(trips[1]) if trips else times, found)
