"""Makes steps_slice.npz: `python tests/golden/make_slice_steps.py GOLDEN_FOLDER`.

All six steps of the eight methods. Left out is what ciard_slice.npz has: images, labels, Gaussian noise
and the initial networks, which are the same. The tensors of one network are joined into one flat array, in
the order of `init/student/...`: a zip entry costs more than most of them.
"""

import sys
from pathlib import Path

import numpy as np

METHODS = ("mtard", "bmtard", "rslad", "trades", "mart", "ard", "iad1", "adaad")
HERE = Path(__file__).parent


def slice_of(steps, ciard):
    """One method's file without the initial networks, networks flat."""
    names = [k.removeprefix("init/student/") for k in ciard if k.startswith("init/student/")]
    kept = {}
    for key, value in steps.items():
        if key.startswith("init/"):
            assert np.array_equal(value, ciard[key]), key
        elif not key.startswith("after"):
            kept[key] = value
    for after in (1, 3, 6):
        tensors = [steps[f"after{after}/student/{name}"] for name in names]
        kept[f"after{after}/student"] = np.concatenate([t.ravel() for t in tensors])
    expected = sum(k.startswith("after") for k in steps)
    assert expected == 3 * len(names), "networks other than the student are not kept"
    return kept


def main(folder: Path) -> None:
    ciard = np.load(HERE / "ciard_slice.npz")
    arrays = {"uniform_k": np.load(folder / "steps_data.npz")["uniform_k"]}
    for method in METHODS:
        part = slice_of(np.load(folder / f"{method}_steps.npz"), ciard)
        arrays |= {f"{method}/{key}": value for key, value in part.items()}
    np.savez_compressed(HERE / "steps_slice.npz", **arrays)
    print("steps_slice.npz", (HERE / "steps_slice.npz").stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
