"""What devices send each other in a compiled program, which XLA's analyses do not say."""

import collections
import math
import re

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "u64": 8}


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Counts the collectives in a program's text, `compiled.as_text()`; those in loops and branches once.

    Returns:
      kind -> {"count": operations, "small": those of them on vectors and scalars (BatchNorm statistics,
      metrics), "bytes": of their results on one device}; kinds that do not occur are left out.
    """
    found: dict[str, collections.Counter] = {}
    for results, kind in re.findall(rf"= (.*?) ({_KINDS})(?:-start)?\(", text):
        shapes = [
            (t, [int(d) for d in s.split(",") if d])
            for t, s in re.findall(r"(\w+)\[([\d,]*)\]", results)
        ]
        tally = found.setdefault(kind, collections.Counter(count=0, small=0, bytes=0))
        tally["count"] += 1
        tally["small"] += all(len(dims) <= 1 for _, dims in shapes)
        tally["bytes"] += sum(_BYTES.get(t, 4) * math.prod(dims) for t, dims in shapes)
    return {kind: dict(tally) for kind, tally in found.items()}
