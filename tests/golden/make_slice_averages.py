"""Makes averages_slice.npz: `python tests/golden/make_slice_averages.py GOLDEN_FOLDER`.

The stochastic weight averages of SAAD's and PeerAiD's students with recomputed statistics, the students that
enter them where they are stored, and how far right programs differ. The images are in ciard_slice.npz.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
STUDENTS = {"saad": (6,), "peeraid": (3, 6)}


def main(folder: Path) -> None:
    """Writes the file beside this script."""
    arrays = {}
    for method, steps in STUDENTS.items():
        full = np.load(folder / f"{method}_steps.npz")
        wanted = ("setting/swa_steps", *(f"after{n}/student/" for n in steps))
        for key in full.files:
            average = "swa" in key and not key.startswith("noise")
            if average or key.startswith(wanted):
                arrays[f"{method}/{key}"] = full[key]
    np.savez_compressed(HERE / "averages_slice.npz", **arrays)
    print("averages_slice.npz", (HERE / "averages_slice.npz").stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
