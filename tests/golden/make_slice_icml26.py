"""Makes steps_icml26_slice.npz: `python tests/golden/make_slice_icml26.py GOLDEN_FOLDER`.

All runs of icml26_steps.npz after the first and the sixth step: what ciard_slice.npz and steps_slice.npz have
is left out, and the student's tensors are joined, as in make_slice_steps.py. Left out are the adversarial
images too.
"""

import sys
from pathlib import Path

import numpy as np

RUNS = ("pgd", "trades", "ard", "rslad", "iad", "adaad", "igdm")
HERE = Path(__file__).parent


def main(folder: Path) -> None:
    ciard = np.load(HERE / "ciard_slice.npz")
    names = [k.removeprefix("init/student/") for k in ciard if k.startswith("init/student/")]
    steps, arrays = np.load(folder / "icml26_steps.npz"), {}
    for run in RUNS:
        for kind in ("setting/", "step/", "spread/"):
            kept = [key for key in steps if key.startswith(f"{run}/{kind}")]
            arrays |= {key.replace(f"{run}/", f"{run}/icml26/", 1): steps[key] for key in kept}
        for after in (1, 6):
            tensors = [steps[f"{run}/after{after}/student/{name}"] for name in names]
            joined = np.concatenate([t.ravel() for t in tensors])
            arrays[f"{run}/icml26/after{after}/student"] = joined
    np.savez_compressed(HERE / "steps_icml26_slice.npz", **arrays)
    print("steps_icml26_slice.npz", (HERE / "steps_icml26_slice.npz").stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
