"""Makes steps_fast_slice.npz: `python tests/golden/make_slice_fast.py GOLDEN_FOLDER`.

Six steps of FGSM-RS and N-FGSM as make_slice_steps.py keeps them, the losses of IKL and GKL (gradients at 100
classes: the first rows), and the cyclic schedule. The losses' inputs are in losses_slice.npz.
"""

import sys
from pathlib import Path

import numpy as np
from make_slice_steps import slice_of

METHODS = ("fgsm_rs", "n_fgsm")
HERE = Path(__file__).parent
ROWS = 8


def main(folder: Path) -> None:
    ciard, losses = np.load(HERE / "ciard_slice.npz"), np.load(folder / "losses2.npz")
    schedules = np.load(folder / "schedules2.npz")
    arrays = {k: v for k, v in schedules.items() if k.startswith("fgsm_cyclic/")}
    for key, value in losses.items():
        if key.split("/")[1] == "dkl":
            arrays[key] = value[:ROWS] if key.startswith("c100/") and "/grad_" in key else value
    for method in METHODS:
        part = slice_of(np.load(folder / f"{method}_steps.npz"), ciard)
        arrays |= {f"{method}/{key}": value for key, value in part.items()}
    np.savez_compressed(HERE / "steps_fast_slice.npz", **arrays)
    print("steps_fast_slice.npz", (HERE / "steps_fast_slice.npz").stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
