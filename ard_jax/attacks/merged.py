"""Evaluation attacks that differ in numbers, start, loss or order alone, through one compiled program.

Compiling the gradient of a network costs more than attacking a few hundred images with it, so what tells
FGSM, PGD, BIM, T-PGD and CW apart is an argument of the program: the loop of `loop.ascend` with a traced
number of steps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax.attacks import objectives, threat_model
from ard_jax.attacks.attack import Attack
from ard_jax.attacks.projected_gradient import PgdAttack
from ard_jax.attacks.threat_model import ThreatModel

# Losses that are functions of the logits alone; a setting chooses among them.
_LOSSES = ("cross_entropy", "cw", "least_likely")
# Not "range_only", which trains alone.
_ORDERS = ("ball_then_range", "range_then_ball", "range_at_end")


def is_mergeable(spec: Attack) -> bool:
    """Returns whether `run` can make this attack: one start, constant steps, a loss of `_LOSSES`."""
    if not isinstance(spec, PgdAttack):
        return False
    plain = spec.alpha_schedule == "const" and not spec.channel_mask_rho and spec.order in _ORDERS
    return plain and spec.loss in _LOSSES and spec.restarts == 1


def program(spec: PgdAttack) -> tuple[Any, ...]:
    """Returns what stays static, hashable: attacks with equal programs share one compiled function."""
    return ("merged", spec.norm, spec.clip_min, spec.clip_max)


def settings_of(spec: PgdAttack) -> dict[str, Any]:
    """Returns the program's scalar arguments: float32 or, for steps, loss and order, int32."""
    real = {"eps": spec.eps, "step_size": spec.step_size, "confidence": spec.confidence}
    whole = {
        "steps": spec.steps,
        "loss": _LOSSES.index(spec.loss),
        "order": _ORDERS.index(spec.order),
    }
    return {k: np.float32(v) for k, v in real.items()} | {k: np.int32(v) for k, v in whole.items()}


def run(
    predict: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    labels: jax.Array,
    start: jax.Array,
    settings: dict[str, jax.Array],
    *,
    norm: str,
    clip: tuple[float, float],
) -> jax.Array:
    """Runs any mergeable attack; equals `PgdAttack.run` up to rounding.

    Args:
      predict: images -> logits [B,K], pure, eval mode; its gradient has to be fast inside a loop.
      images: [B,H,W,C] float32.
      labels: [B] int.
      start: first iterate [B,H,W,C], `PgdAttack.own_start`.
      settings: `settings_of` the attack, traced.
      norm: "linf" or "l2".
      clip: (lowest, highest) pixel value.

    Returns:
      [B,H,W,C] float32.
    """
    clean = predict(images)
    eps, step_size = (settings[name].astype(images.dtype) for name in ("eps", "step_size"))
    values_of = [
        objectives.of_logits(objectives.Loss(loss, settings["confidence"]), lambda: clean, labels)
        for loss in _LOSSES
    ]

    def total(z: jax.Array):
        logits = predict(z).astype(jnp.float32)
        values = [value_of(logits) for value_of in values_of]
        return jnp.sum(jax.lax.select_n(settings["loss"], *values))

    def step(_: Any, z: jax.Array):
        z = z + step_size * threat_model.ascent_direction(jax.grad(total)(z), norm)
        threats = [ThreatModel(eps, norm, *clip, order) for order in _ORDERS]
        return jax.lax.select_n(settings["order"], *(t.cut(z, images) for t in threats))

    z = jax.lax.fori_loop(0, settings["steps"], step, start.astype(images.dtype))
    # The other orders cut to the range in every step.
    return jnp.where(settings["order"] == _ORDERS.index("range_at_end"), jnp.clip(z, *clip), z)
