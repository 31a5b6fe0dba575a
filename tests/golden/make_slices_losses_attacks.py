"""Cuts the small files that the tests carry out of the full golden files.

    python tests/golden/make_slices_losses_attacks.py DIRECTORY_WITH_THE_FULL_FILES

losses_slice.npz: the entries that the library implements; gradients at 100 classes hold only the first
rows (their inputs and values are whole, and so are the gradients at 10 classes). attacks_slice.npz: the
first images of the start noise and of each adversarial batch, with both networks' weights. The scores
over all 64 images are kept too: without the other images they only feed the tolerances. DPGD couples
the whole batch, so for it all 64 clean images (uint8, exact), labels and scores are kept. Adversarial
images of attacks without a random start, whose steps are whole grey levels, are multiples of 1/255.
"""

import sys
from pathlib import Path

import numpy as np

IMAGES = 6
ATTACKS = ("fgsm", "bim", "pgd_sat", "pgd_trades", "cw_inf", "tpgd", "ciard_train", "trades_train",
           "dpgd")  # fmt: skip
LOSSES = ("in", "kl", "push", "temps", "cw", "trades", "trades_kl", "dlr", "dlr_targeted",
          "mart", "mart_bce", "rslad", "ard", "iad1", "iad2", "adaad", "dice")  # fmt: skip
ON_GRID = ("fgsm", "bim", "cw_inf", "dpgd")
ROWS = 8


def losses_slice(full):
    """Entries of the losses that the library has."""
    kept = {k: full[k] for k in full if k.startswith("weights/") or k.split("/")[1] in LOSSES}
    cut = {k: v[:ROWS] for k, v in kept.items() if k.startswith("c100/") and "/grad_" in k}
    return kept | cut


def grid(images):
    """Images in [0,1] as the grey levels that they are."""
    levels = np.round(images * 255).astype(np.uint8)
    assert np.max(np.abs(images - levels / 255.0)) < 1e-6
    return levels


def attacks_slice(full, cnn_a):
    """First images of everything, and both networks."""
    kept = {k: full[k] for k in full if k.startswith("hp/") or "/weights/" in k}
    kept |= {"x_u8": grid(full["x"]), "y": full["y"]}
    assert np.array_equal(kept["x_u8"].astype(np.float32) / np.float32(255), full["x"])
    for name in ("start_uniform_k", "start_gauss_k"):
        kept[name] = full[name][:IMAGES]
    for net in ("small", "cnn_a"):
        for name in ("logits", "grad_ce_sum", "tpgd_target"):
            kept[f"{net}/{name}"] = full[f"{net}/{name}"][:IMAGES]
        for attack in ATTACKS:
            x_adv = full[f"{net}/adv/{attack}"][:IMAGES]
            kept[f"{net}/adv/{attack}"] = grid(x_adv) if attack in ON_GRID else x_adv
            rows = None if attack == "dpgd" else IMAGES
            kept[f"{net}/adv_logits/{attack}"] = full[f"{net}/adv_logits/{attack}"][:rows]
            for name in ("noise_frac_px", "noise_ce_abs"):
                kept[f"{net}/{name}/{attack}"] = full[f"{net}/{name}/{attack}"]
        for name in ("adv_acc", "adv_ce"):
            kept[f"{net}/{name}/dpgd"] = full[f"{net}/{name}/dpgd"]
    return kept | {f"cnn_a/weights/{k}": v for k, v in cnn_a.items()}


def main(source):
    """Writes both files beside this script."""
    here = Path(__file__).parent
    load = {n: dict(np.load(Path(source) / f"{n}.npz")) for n in
            ("losses", "attacks", "cnn_a_adv_weights")}  # fmt: skip
    np.savez_compressed(here / "losses_slice.npz", **losses_slice(load["losses"]))
    attacks = attacks_slice(load["attacks"], load["cnn_a_adv_weights"])
    np.savez_compressed(here / "attacks_slice.npz", **attacks)
    for name in ("losses_slice.npz", "attacks_slice.npz"):
        print(name, (here / name).stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1])
