"""Made-up evaluations and metrics, as evaluation.json, evaluation_flags.npz and metrics.jsonl hold them."""

import math

import numpy as np

ATTACKS = {"fgsm": "FGSM", "pgd_sat": "PGD_sat", "pgd_trades": "PGD_trades"}
SPEC = {"norm": "linf", "eps": 0.2, "step_size": 2 / 255, "steps": 20, "restarts": 1}


def attack(clean, accuracy, **fields):
    return {
        "accuracy": accuracy,
        "weighted": (clean + accuracy) / 2,
        "nrr": 2 * clean * accuracy / (clean + accuracy),
        "ci95": [accuracy - 0.05, accuracy + 0.05],
        "worst_class": accuracy / 2,
        "per_class": [accuracy / 2, accuracy],
    } | fields


def net(clean, robust, role="student", attacks=ATTACKS, **fields):
    """One network; each attack is 0.02 stronger than the one before."""
    return {
        "role": role,
        "model": "small_resnet",
        "num_params": 123456,
        "step": 600,
        "epoch": 75,
        "clean": clean,
        "clean_ci95": [clean - 0.02, clean + 0.01],
        "per_class_clean": [clean - 0.1, clean],
        "worst_class_clean": clean - 0.1,
        "attacks": {name: attack(clean, robust - 0.02 * i) for i, name in enumerate(attacks)},
        "worst_case": {"accuracy": robust - 0.07, "weighted": 0.5, "nrr": 0.6},
    } | fields


def evaluation(**fields):
    """Two students and two teachers."""
    sweep = {"attack": "pgd_sat", "eps": [0.0, 0.2, 0.4], "accuracy": [0.95, 0.6, 0.1]}
    nets = {
        "student (best)": net(0.95, 0.6125, eps_sweep=sweep),
        "student (last)": net(0.9611, 0.57),
        "robust teacher": net(0.92, 0.65, "teacher"),
        "clean teacher": net(0.99, 0.08, "teacher"),
    }
    nets["student (best)"]["attacks"]["transfer_pgd_trades_robust"] = {"accuracy": 0.8123}
    attacks = {name: {"label": label} | SPEC for name, label in ATTACKS.items()}
    attacks["fgsm"] = {"label": "FGSM", "eps": 8 / 255, "steps": 1, "loss": "cross-entropy"}
    attacks["transfer_pgd_trades_robust"] = {"label": "PGD_trades through robust teacher"} | SPEC
    return {
        "schema": 1,
        "name": "ciard_digits",
        "created": "2025-11-21T06:40:00",
        "seed": 0,
        "dataset": {"name": "digits", "split": "test", "num_examples": 360, "num_classes": 10,
                    "class_names": ["zero", "one"], "image_shape": [8, 8, 1]},
        "eps": 0.2,
        "norm": "linf",
        "select_on": "validation",
        "command": "python -m ard_jax.main --config=configs/ciard_digits.py",
        "versions": {"ard_jax": "0.1.0", "jax": "0.10.2"},
        "config": {"method": {"name": "ciard", "itt_start": 51}},
        "attacks": attacks,
        "teachers": {
            "robust": {"source": "trained by recipe trades", "model": "small_resnet",
                       "accuracy": {"clean": 0.92, "pgd_sat": 0.63}},
            "clean": {"source": "checkpoint clean.ckpt", "accuracy": {"clean": 0.99}},
        },
        "nets": nets,
        "timing": {"train_seconds": 143.2, "images_per_second": 5120.0},
        "warnings": ["The clean teacher is not robust."],
        "notes": ["A note."],
    } | fields  # fmt: skip


def suite(*stages, upper_bound=False, clean=0.9, **fields):
    """AutoAttack's record of one network; stages: (attack, accuracy)."""
    found = [{"attack": name, "accuracy": value, "ci95": None} for name, value in stages]
    return {"label": "AutoAttack", "version": "standard", "upper_bound": upper_bound,
            "num_examples": 100, "clean": clean, "stages": found, "broken_by": {},
            "warnings": []} | fields  # fmt: skip


def arrays(values, n=40):
    """What became of n images under the attacks on each network of `evaluation`, by chance."""
    rng, classes = np.random.default_rng(0), values["dataset"]["num_classes"]
    found = {"labels": np.arange(n) % classes}
    for title, one in values["nets"].items():
        for attack in ("clean", *one["attacks"]):
            predicted = np.where(rng.random(n) < 0.6, found["labels"], rng.integers(0, classes, n))
            found[f"{title}/{attack}/predicted"] = predicted
            found[f"{title}/{attack}/correct"] = predicted == found["labels"]
    return found


def make_metrics(steps=1000):
    records = []
    for step in range(1, steps + 1):
        fade = math.exp(-step / 300)
        records.append({
            "kind": "train", "step": step, "epoch": step // 8, "time": 1.7e9 + step, "loss": 0.2 + fade,
            "loss_push": -0.05 * (1 - fade), "accuracy": 0.97 - 0.8 * fade,
            "robust_accuracy": 0.7 - 0.6 * fade, "lr_student": 0.1 if step < 700 else 1e-4,
            "push_scale": 10.0 ** (step // 250), "temp_nat": 1 + fade, "images_per_second": 5000.0,
        })  # fmt: skip
        if step % 50 == 0:
            scores = {"clean": 0.95 - 0.7 * fade, "pgd_trades": 0.6 * (1 - fade)}
            common = {"kind": "eval", "step": step, "split": "validation"} | scores
            records += [common | {"net": name} for name in ("student", "robust")]
    return [*records, {"kind": "event", "step": 400, "event": "itt_started"}]
