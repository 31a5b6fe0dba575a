"""Makes steps_adr_slice.npz: `python tests/golden/make_slice_steps_adr.py GOLDEN_FOLDER`.

All six steps of IGDM on three bases, of SAAD's IGDM, of SAAD, and of ADR in two forms, as in
make_slice_steps.py: what ciard_slice.npz has is left out, and the tensors of a network are joined. Left out
too are the adversarial images, and the weight averages of SAAD. Of losses2.npz the terms of these methods,
gradients at 100 classes in their first rows; of schedules2.npz ADR's.
"""

import sys
from pathlib import Path

import numpy as np

# File -> prefixes of its runs.
RUNS = {
    "igdm_adaad": ("",), "igdm_rslad": ("",), "igdm_ard": ("", "intended/"),
    "igdm_repo": ("", "intended/"), "saad": ("",), "adr_at": ("",), "adr_trades": ("",),
}  # fmt: skip
LOSSES = ("igdm", "saad", "adr", "adr_trades")
INPUTS = ("zs_minus", "zr_minus")
ROWS = 8
HERE = Path(__file__).parent


def slice_of(steps, prefix, names):
    """One run without the adversarial images and SAAD's averages, networks flat."""
    kept, flat = {}, {}
    for key, value in steps.items():
        if not key.startswith(prefix) or (not prefix and key.startswith("intended/")):
            continue
        key = key.removeprefix(prefix)
        if "/swa" in key or key.startswith("xadv"):
            continue
        if key.startswith("after"):
            after, net, name = key.split("/", 2)
            flat.setdefault(f"{after}/{net}", {})[name] = value
        else:
            kept[key] = value
    for place, tensors in flat.items():
        assert set(tensors) == set(names), place
        kept[place] = np.concatenate([tensors[name].ravel() for name in names])
    return kept


def losses_slice(full):
    """Entries of these methods' losses."""
    kept = {}
    for key, value in full.items():
        classes, group, *_ = key.split("/")
        if group in LOSSES or (group == "in" and key.split("/")[2] in INPUTS):
            kept[key] = value[:ROWS] if classes == "c100" and "/grad_" in key else value
    return kept


def main(folder: Path) -> None:
    ciard = np.load(HERE / "ciard_slice.npz")
    names = [k.removeprefix("init/student/") for k in ciard if k.startswith("init/student/")]
    arrays = {f"losses/{k}": v for k, v in losses_slice(np.load(folder / "losses2.npz")).items()}
    schedules = np.load(folder / "schedules2.npz")
    arrays |= {k: schedules[k] for k in schedules if k.startswith("adr_cosine/")}
    for file, prefixes in RUNS.items():
        steps = np.load(folder / f"{file}_steps.npz")
        for prefix in prefixes:
            part = slice_of(steps, prefix, names)
            arrays |= {f"{prefix}{file}/{key}": value for key, value in part.items()}
    np.savez_compressed(HERE / "steps_adr_slice.npz", **arrays)
    print("steps_adr_slice.npz", (HERE / "steps_adr_slice.npz").stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
