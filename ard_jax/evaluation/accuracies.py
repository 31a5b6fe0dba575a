"""Accuracies out of per-example flags (`evaluator.Flags`)."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np


def confidence_interval(accuracy: float, count: int) -> list[float]:
    """95 % Wilson interval of an accuracy measured on `count` examples."""
    z, n = 1.959964, max(count, 1)
    centre, spread = (
        accuracy + z * z / (2 * n),
        z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n)),
    )
    return [(centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)]


def summarize(flags: Any, num_classes: int, white_box: Iterable[str]) -> dict[str, Any]:
    """Accuracies of one network out of its flags.

    weighted = (clean + robust)/2; nrr = 2 clean robust/(clean + robust), the harmonic mean; the worst
    class is the least accurate one; "worst_case" counts an example as robust only if no attack of
    `white_box` breaks it (and its clean prediction is right). An attack on the first M images only has
    "num_examples" = M, is combined with the clean accuracy on those, and is no part of the worst case.
    """
    clean, classes = flags.accuracy("clean"), _per_class(flags, "clean", num_classes)
    record = {
        "clean": clean,
        "clean_ci95": confidence_interval(clean, len(flags.labels)),
        "per_class_clean": classes,
        "worst_class_clean": min(c for c in classes if c is not None),
        "attacks": {},
    }
    for name in flags.correct:
        if name == "clean":
            continue
        robust, classes = flags.accuracy(name), _per_class(flags, name, num_classes)
        count = len(flags.correct[name])
        record["attacks"][name] = _combined(
            float(flags.correct["clean"][:count].mean()), robust
        ) | {
            "ci95": confidence_interval(robust, count),
            "worst_class": min(c for c in classes if c is not None),
            "per_class": classes,
        }
        if count < len(flags.labels):
            record["attacks"][name]["num_examples"] = count
    seen = [flags.correct[n] for n in ("clean", *white_box) if n in flags.correct]
    together = np.all([right for right in seen if len(right) == len(flags.labels)], axis=0)
    record["worst_case"] = _combined(clean, float(together.mean()))
    return record


def _combined(clean: float, robust: float) -> dict[str, float]:
    total = clean + robust
    return {
        "accuracy": robust,
        "weighted": total / 2,
        "nrr": 2 * clean * robust / total if total else 0.0,
    }


def _per_class(flags: Any, name: str, num_classes: int) -> list[float | None]:
    right = flags.correct[name]
    rows = [right[flags.labels[: len(right)] == c] for c in range(num_classes)]
    return [float(r.mean()) if len(r) else None for r in rows]
