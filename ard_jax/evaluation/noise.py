"""Accuracy under noise of the attacks' size: the weakest attack of the same budget."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ard_jax import rng
from ard_jax.attacks import threat_model
from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation.evaluator import Evaluator

NOISES = ("uniform", "gaussian")


def noise_accuracy(
    evaluator: Evaluator, variables: Any, dataset: ArrayDataset, eps: float, norm: str
) -> dict[str, float]:
    """Accuracy under one draw of noise for each image: {"uniform": ..., "gaussian": ...}.

    Linf: uniform in [-eps, eps], or normal with standard deviation eps cut to that. L2: a uniform or a
    normal direction of length eps. Both are then cut to [0, 1]. A robust accuracy above them is a fault
    of the attack.
    """
    found = {}
    for kind in NOISES:
        right = []
        for batch, host in evaluator.batches(dataset):
            noisy = noisy_images(evaluator, variables, batch, kind, eps, norm)
            predicted = evaluator.predict(variables, noisy)
            right.append((predicted == host["label"])[host["mask"]])
        found[kind] = float(np.concatenate(right).mean())
    return found


def noisy_images(
    evaluator: Evaluator, variables: Any, batch: dict[str, Any], kind: str, eps: float, norm: str
) -> jax.Array:
    """Images [B,H,W,C] of a batch of `Evaluator.batches` under noise, see `noise_accuracy`."""
    keys = evaluator.keys(f"{kind} noise", batch["index"])
    name, images = f"{kind} noise {norm}", batch["image"]
    return evaluator.transform(name, _program(kind, norm), variables, images, keys, eps)


def _program(kind: str, norm: str) -> Callable[..., jax.Array]:
    def noisy(_: Any, images: jax.Array, key: jax.Array, eps: float | jax.Array):
        draw = jax.random.uniform if kind == "uniform" else jax.random.normal
        limits: dict[str, Any] = {"minval": -1.0, "maxval": 1.0} if kind == "uniform" else {}
        noise = rng.draw(lambda k, s: draw(k, s, images.dtype, **limits), key, images.shape)
        noise = noise if norm == "linf" else threat_model.ascent_direction(noise, "l2")
        return threat_model.ThreatModel(eps, norm).cut(images + eps * noise, images)

    return noisy
