"""CW_inf: Carlini and Wagner's margin loss under an Linf bound, by sign steps."""

import jax

from ard_jax.attacks.pgd import Predict, pgd


def cw_linf(
    predict: Predict,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array = 8 / 255,
    steps: int = 30,
    confidence: float = 50.0,
    **options,
) -> jax.Array:
    """Minimises max(z_y - max_{j != y} z_j + confidence, 0): 30 steps of eps/4 (2/255).

    As CIARD's evaluation script: zero start; the perturbation is cut to eps after every step, the
    image to [0,1] only once at the end, so that the network sees values slightly outside the range
    on the way. The number of classes is that of the logits (hard-coded to 10 in the original).

    Arguments, result and errors as `ard_jax.attacks.pgd`; `key` is not used.
    """
    options = {"loss": "cw", "start": "none", "order": "range_at_end"} | options
    return pgd(predict, images, labels, key, eps=eps, steps=steps, confidence=confidence, **options)
