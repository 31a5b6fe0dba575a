"""Makes steps_hat_slice.npz and losses_hat_slice.npz: `python tests/golden/make_slice_hat.py GOLDEN_FOLDER`.

All runs of HAT, MAIL, GAIRAT and DGAD, their entries of losses2.npz, and HAT's schedules. Left out is what
ciard_slice.npz, steps_slice.npz and losses_slice.npz have: images, labels, noise, initial networks, the
losses' inputs. The student's tensors are joined into one array, as in make_slice_steps.py. Gradients at 100
classes hold only the first rows.
"""

import sys
from pathlib import Path

import numpy as np

FILES = ("hat", "hat_at", "mail_at", "mail_trades", "mail_mart", "gairat", "dgad")
LOSSES = ("mail", "gairat", "dgad")
ROWS = 8
HERE = Path(__file__).parent


def steps_slice(steps, names):
    """Every run of one file: settings, values of each step, students, and how far right programs differ."""
    kept = {}
    for run in sorted({key.rpartition("setting/")[0] for key in steps if "setting/" in key}):
        for kind in ("setting/", "step/", "spread/", "noise/after"):
            kept |= {key: steps[key] for key in steps if key.startswith(run + kind)}
        for after in (1, 3, 6):
            tensors = [steps[f"{run}after{after}/student/{name}"] for name in names]
            kept[f"{run}after{after}/student"] = np.concatenate([t.ravel() for t in tensors])
    return kept


def losses_slice(full):
    """Entries of the losses of these methods, and their own input."""
    kept = {k: full[k] for k in full if k.split("/")[1] in LOSSES or k.endswith("in/zt_dgad")}
    cut = {k: v[:ROWS] for k, v in kept.items() if k.startswith("c100/") and "/grad_" in k}
    return kept | cut


def main(folder: Path) -> None:
    """Writes both files beside this script."""
    ciard = np.load(HERE / "ciard_slice.npz")
    names = [k.removeprefix("init/student/") for k in ciard if k.startswith("init/student/")]
    arrays = {}
    for name in FILES:
        part = steps_slice(np.load(folder / f"{name}_steps.npz"), names)
        arrays |= {f"{name}/{key}": value for key, value in part.items()}
    np.savez_compressed(HERE / "steps_hat_slice.npz", **arrays)
    losses, schedules = (np.load(folder / f"{name}2.npz") for name in ("losses", "schedules"))
    losses = losses_slice(losses) | {k: schedules[k] for k in schedules if k.startswith("hat_")}
    np.savez_compressed(HERE / "losses_hat_slice.npz", **losses)
    for name in ("steps_hat_slice.npz", "losses_hat_slice.npz"):
        print(name, (HERE / name).stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
