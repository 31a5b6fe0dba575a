"""Where golden numbers come from: the full files beside the repository, or the slices in it."""

import os
from pathlib import Path

import numpy as np
from make_slice_autoattack import ROWS

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("ARD_SHARED", HERE.parents[2] / "shared"))


def load(full: str, part: str):
    """(arrays, True when they are the full ones)."""
    path = SHARED / "golden" / full
    if path.is_file():
        return np.load(path), True
    return np.load(HERE / part), False


def autoattack_rounding(name: str, images: int):
    """How far one right float32 run may be off the float64 run, [...,images] (make_rounding.py)."""
    spread = np.load(HERE / "rounding_slice.npz")[name]
    return spread if spread.shape[-1] == images else spread[..., ROWS]
