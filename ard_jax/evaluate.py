"""Evaluates any JAX function from images to logits: the door for notebooks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from ard_jax import attacks as attacks_lib
from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation import autoattack as suites
from ard_jax.evaluation.accuracies import summarize
from ard_jax.evaluation.evaluator import Evaluator


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
      `summarize`'s record, and under "flags" the per-example `Flags`.

    Raises:
      ValueError: unknown attack or impossible radius.
    """
    names, chosen = list(attacks), []
    if not isinstance(attacks, Mapping):
        plain, chosen = suites.split_names(names)
        attacks = {name: attacks_lib.make(name, eps=eps, norm=norm) for name in plain}
    evaluator = Evaluator(
        "predict", lambda _, x: predict(x), batch_size=batch_size, seed=seed, unroll=unroll
    )
    flags, records = evaluator.run((), dataset, attacks), {}
    for name in chosen:
        if ran := suites.run_suite(evaluator, (), dataset, name, eps=eps, norm=norm):
            suites.add_result(flags, name, ran[0])
            records[name] = ran[1]
    record = summarize(flags, dataset.num_classes, names)
    return record | {"flags": flags} | ({"autoattack": records} if records else {})
