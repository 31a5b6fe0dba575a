"""Makes ciard_slice.npz: `python tests/golden/make_slice_ciard.py GOLDEN_FOLDER`.

All 12 steps; of the arrays only those that the test reads.
"""

import sys
from pathlib import Path

import numpy as np

SHARED_KEYS = ("images_u8", "labels", "gauss_k")


def main(folder: Path) -> None:
    steps = np.load(folder / "ciard_steps.npz")
    data = np.load(folder / "steps_data.npz")
    arrays = {k: steps[k] for k in steps.files if k != "xadv_step1"}
    arrays |= {k: data[k] for k in SHARED_KEYS}
    np.savez_compressed(Path(__file__).with_name("ciard_slice.npz"), **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
