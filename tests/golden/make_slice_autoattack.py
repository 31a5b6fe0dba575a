"""Cuts autoattack_slice.npz, which the tests carry, out of the full golden file.

    python tests/golden/make_slice_autoattack.py DIRECTORY_WITH_THE_FULL_FILES

Eight of the sixteen traced images, chosen so that some stay correct under APGD and one falls to Square
early; the first box projections. Images are kept as grey levels, the random start as the integers that
it was made of, both exact. The network's weights are in attacks_slice.npz. Masks of whole attacks are
left out: they belong to 256 images of the CIFAR-10 test set, which the repository does not have.
"""

import sys
from pathlib import Path

import numpy as np

ROWS = [0, 1, 2, 6, 8, 9, 11, 15]
PROJECTIONS = 8
SCALARS = ("apgd/eps", "square/eps", "fab/target_rank")
SHARED = ("square/row", "square/col", "square/side", "square/sign")
PER_IMAGE = (
    "apgd/test_index", "apgd/y", "apgd/dlr-targeted/y_target", "fab/y_target", "fab/final_dist",
    "square/init_sign", "square/final_margin", "square/n_queries_used",
)  # fmt: skip
PER_STEP = ("fab/best_dist_before_iter", "square/margin_min")
LOSSES = ("ce", "dlr", "dlr-targeted")
DLR_STEPS = 10  # of plain dlr only the start can be compared
LEVELS = 128  # the uniform start is x + eps * k / 128


def start_of(images, noise, eps):
    """The stored start from its integers (-128 to 128)."""
    step = np.float32(eps) * (noise.astype(np.float32) / np.float32(LEVELS))
    return np.clip(images + step, np.float32(0), np.float32(1))


def images_slice(full):
    """Clean images, starts."""
    x, start = full["apgd/x"][ROWS], full["apgd/x_init"][ROWS]
    levels = np.round(x * 255).astype(np.uint8)
    assert np.array_equal(levels.astype(np.float32) / np.float32(255), x)
    noise = np.round((start.astype(np.float64) - x) / full["apgd/eps"] * LEVELS).astype(np.int16)
    assert np.array_equal(start_of(x, noise, full["apgd/eps"]), start)
    return {"apgd/x": levels, "apgd/x_init_k": noise}


def traces_slice(full):
    """Losses and step sizes by iteration; noise fields are over all sixteen images."""
    kept = {}
    for loss in LOSSES:
        rows = None if loss != "dlr" else DLR_STEPS + 1
        for name in ("loss", "loss_best", "step_size"):
            kept[f"apgd/{loss}/{name}"] = full[f"apgd/{loss}/{name}"][:rows, ROWS]
        for name in ("noise_loss_best_abs", "noise_step_mismatch"):
            kept[f"apgd/{loss}/{name}"] = full[f"apgd/{loss}/{name}"]
        kept[f"apgd/{loss}/still_correct"] = full[f"apgd/{loss}/still_correct"][ROWS]
    return kept


def main(source):
    """Writes the file beside this script."""
    full = dict(np.load(Path(source) / "autoattack.npz"))
    kept = images_slice(full) | traces_slice(full)
    kept |= {name: full[name] for name in (*SCALARS, *SHARED)}
    kept |= {name: full[name][ROWS] for name in PER_IMAGE}
    kept |= {name: full[name][:, ROWS] for name in PER_STEP}
    kept |= {f"proj_linf/{name}": full[f"proj_linf/{name}"][:PROJECTIONS] for name in "twbd"}
    path = Path(__file__).parent / "autoattack_slice.npz"
    np.savez_compressed(path, **kept)
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1])
