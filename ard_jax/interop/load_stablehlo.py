"""Runs a network exported as StableHLO. Needs jax and flatbuffers, not ard_jax.

from load_stablehlo import load
logits = load("student.stablehlo")(images)  # float32 [B, H, W, C] in [0, 1], any B -> [B, K]
"""

from pathlib import Path

import jax
from jax import export


def load(path: str | Path):
    """The network of the file, as a function: images float32 [B, H, W, C] in [0, 1] -> logits [B, K]."""
    return jax.jit(export.deserialize(bytearray(Path(path).read_bytes())).call)
