"""What a network got right, example by example, and the accuracies out of it."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ard_jax.reporting.record import Accuracy, AttackResult, NetworkResult


@dataclasses.dataclass(frozen=True)
class ExampleResults:
    """Per-example results of one network.

    Attributes:
      correct: "clean" and attack names -> bool [N], True where the prediction is the label. AutoAttack
        and its like may be [M] of the first M < N images.
      predicted: the same names -> int32.
      labels: int32 [N].
      others: further networks' results on the very same images, see `Evaluator.run`.
      suites: name -> AutoAttackResult, of those run as in `attacks.SUITES`.
      unmoved: attacks that returned every image unchanged.
    """

    correct: dict[str, np.ndarray]
    predicted: dict[str, np.ndarray]
    labels: np.ndarray
    others: dict[str, "ExampleResults"] = dataclasses.field(default_factory=dict)
    suites: dict[str, Any] = dataclasses.field(default_factory=dict)
    unmoved: tuple[str, ...] = ()

    def accuracy(self, name: str, first: int | None = None) -> float:
        """Share of correct predictions, of all images or of the `first` ones."""
        return float(np.mean(self.correct[name][:first]))

    def per_class(self, name: str, num_classes: int) -> tuple[float | None, ...]:
        """Accuracy of each class; None for one without images."""
        right = self.correct[name]
        rows = [right[self.labels[: len(right)] == c] for c in range(num_classes)]
        return tuple(float(row.mean()) if len(row) else None for row in rows)

    def arrays(self, title: str) -> dict[str, np.ndarray]:
        """The arrays of evaluation_flags.npz, see `full.save`."""
        found = {}
        for name in self.correct:
            found[f"{title}/{name}/correct"] = self.correct[name]
            found[f"{title}/{name}/predicted"] = self.predicted[name]
        for name, suite in self.suites.items():
            found[f"{title}/{name}/broken_by"] = suite.broken_by
            found[f"{title}/{name}/queries"] = suite.queries
            found |= {f"{title}/{name}/after/{stage}": kept for stage, kept in suite.stages.items()}
        return found


def confidence_interval(accuracy: float, count: int) -> tuple[float, float]:
    """95 % Wilson interval of an accuracy measured on `count` examples."""
    z, n = 1.959964, max(count, 1)
    centre = accuracy + z * z / (2 * n)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def summarize(
    results: ExampleResults, num_classes: int, white_box: Iterable[str], **about: Any
) -> NetworkResult:
    """Accuracies of one network.

    An attack on the first M images only has "num_examples" = M, and is combined with the clean accuracy on
    those. The worst case counts an example as robust only if no attack of `white_box` breaks it (and its
    clean prediction is right); it is of the images that all of them were made on, and None without any.

    Args:
      results: of the network.
      num_classes: of the dataset.
      white_box: attacks that were made on this network.
      **about: further fields of the record.
    """
    total, clean = len(results.labels), results.accuracy("clean")
    classes = results.per_class("clean", num_classes)
    attacks = {}
    for name in (name for name in results.correct if name != "clean"):
        robust, count = results.accuracy(name), len(results.correct[name])
        by_class = results.per_class(name, num_classes)
        attacks[name] = AttackResult(
            **_combined(results.accuracy("clean", count), robust),
            ci95=confidence_interval(robust, count),
            worst_class=min(c for c in by_class if c is not None),
            per_class=by_class,
            num_examples=count if count < total else None,
        )
    return NetworkResult(
        clean=clean,
        clean_ci95=confidence_interval(clean, total),
        per_class_clean=classes,
        worst_class_clean=min(c for c in classes if c is not None),
        attacks=attacks,
        worst_case=_worst_case(results, white_box),
        **about,
    )


def _worst_case(results: ExampleResults, white_box: Iterable[str]) -> Accuracy | None:
    made = [results.correct[name] for name in white_box if name in results.correct]
    if not made:
        return None
    count = min(map(len, made))
    together = np.all([right[:count] for right in (results.correct["clean"], *made)], axis=0)
    return Accuracy(
        **_combined(results.accuracy("clean", count), float(together.mean())),
        num_examples=count if count < len(results.labels) else None,
    )


def _combined(clean: float, robust: float) -> dict[str, float]:
    total = clean + robust
    nrr = 2 * clean * robust / total if total else 0.0
    return {"accuracy": robust, "weighted": total / 2, "nrr": nrr}
