"""Evaluates any JAX function from images to logits, for notebooks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from ard_jax import attacks as attacks_lib
from ard_jax.config.build import split_names
from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation import autoattack
from ard_jax.evaluation.accuracies import summarize
from ard_jax.evaluation.evaluator import Evaluator

_MEASURED = (
    "clean", "clean_ci95", "per_class_clean", "worst_class_clean", "attacks", "worst_case", "autoattack",
)  # fmt: skip


def evaluate(
    predict: Callable[[jax.Array], jax.Array],
    dataset: ArrayDataset,
    attacks: Iterable[str] | Mapping[str, Any] = ("pgd_sat",),
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    batch_size: int = 256,
    seed: int = 0,
    unroll: int | None = None,
) -> dict[str, Any]:
    """Evaluates any JAX function from images to logits, whoever trained it.

    Args:
      predict: images float32 [B,H,W,C] in [0,1] -> logits [B,K]; pure, in evaluation mode.
      dataset: e.g. `data.load(...).test`.
      attacks: names for `attacks.make` or of `attacks.SUITES` ("autoattack", "square100", ...), or name
        -> Attack.
      eps: radius in [0,1] pixel units, for attacks given by name.
      norm: "linf" or "l2", likewise.
      batch_size: images per compiled batch.
      seed: of random starts.
      unroll: attack loop unrolling; pass 1 for networks of `ard_jax.models`, which compiles faster.

    Returns:
      The measured part of `record.NetworkResult` as a dict, and under "flags" the `ExampleResults`.

    Raises:
      ValueError: unknown attack or impossible radius.
    """
    names, suites = list(attacks), []
    if not isinstance(attacks, Mapping):
        plain, suites = split_names(names)
        attacks = {name: attacks_lib.make(name, eps=eps, norm=norm) for name in plain}
    evaluator = Evaluator(
        "predict", lambda _, x: predict(x), batch_size=batch_size, seed=seed, unroll=unroll
    )
    results, records = evaluator.run((), dataset, attacks), {}
    for name in suites:
        if ran := autoattack.run_suite(evaluator, (), dataset, name, eps=eps, norm=norm):
            autoattack.add_result(results, name, ran[0])
            records[name] = ran[1]
    found = summarize(results, dataset.num_classes, names, autoattack=records).to_json()
    return {key: found[key] for key in _MEASURED if key in found} | {"flags": results}
