"""Makes steps_two_slice.npz: `python tests/golden/make_slice_two.py GOLDEN_FOLDER`.

LBGAT's and PeerAiD's six steps and their losses with gradients. Left out are what other slices have, `noise`,
of which `spread` is the better measure, the average of PeerAiD's student, which is no part of a step, and the
gradients at 100 classes but for their first rows.
"""

import sys
from pathlib import Path

import numpy as np

METHODS = ("lbgat", "peeraid")
HERE = Path(__file__).parent
ROWS = 8


def main(folder: Path) -> None:
    arrays = {}
    for method in METHODS:
        steps = np.load(folder / f"{method}_steps.npz")
        kept = {k: v for k, v in steps.items() if k.split("/")[0] != "noise" and "swa" not in k}
        arrays |= {f"{method}/{key}": value for key, value in kept.items()}
    for key, value in np.load(folder / "losses2.npz").items():
        if key.split("/")[1] in METHODS or key.endswith("in/zg_nat"):
            cut = key.startswith("c100/") and "/grad_" in key
            arrays[f"losses/{key}"] = value[:ROWS] if cut else value
    np.savez_compressed(HERE / "steps_two_slice.npz", **arrays)
    print("steps_two_slice.npz", (HERE / "steps_two_slice.npz").stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
