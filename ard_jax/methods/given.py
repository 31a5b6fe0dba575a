"""What a batch may bring beside images and labels, so that a method need not make it anew."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ard_jax.attacks import AttackSpec


def logits_column(role: str) -> str:
    """Key of a batch under which the eval-mode logits [B,K] of a teacher at the clean images are."""
    return f"{role}_natural_logits"


@dataclasses.dataclass(frozen=True)
class KeptStart:
    """Where the attack on each image of a batch ended the last time; in a batch under "kept_start".

    Attributes:
      perturbation: [B,H,W,C] float32, pixel units, for the images as they are augmented now.
      known: bool [B]; False where there is none: the attack draws its own start.
      ended: empty list, into which `ended` puts the adversarial images [B,H,W,C]. A method's step returns
        nothing but state and metrics; within one trace a list carries the images past it.
    """

    perturbation: jax.Array
    known: jax.Array
    ended: list[jax.Array]


def start(batch: dict[str, Any], spec: AttackSpec, key: jax.Array) -> dict[str, jax.Array]:
    """{"start": first iterate [B,H,W,C] of the attack on the student}; {}: the attack draws its own."""
    images = batch["image"]
    if "start_noise" in batch:
        return {"start": images + batch["start_noise"]}
    if "kept_start" not in batch:
        return {}
    kept: KeptStart = batch["kept_start"]
    # Cut: rounding can lead out of the range of pixels.
    again = jnp.clip(images + kept.perturbation, spec.clip_min, spec.clip_max)
    known = kept.known.reshape(-1, 1, 1, 1)
    return {"start": jnp.where(known, again, spec.own_start(images, key))}


def ended(batch: dict[str, Any], images: jax.Array) -> jax.Array:
    """Notes where the attack on the student ended, if the batch asks for it; returns `images`."""
    if "kept_start" in batch:
        batch["kept_start"].ended.append(images)
    return images
