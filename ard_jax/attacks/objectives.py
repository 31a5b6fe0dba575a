"""What an attack maximises: functions x' -> [B] built from a predict function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ard_jax import losses
from ard_jax.attacks import base

LOSSES = ("cross_entropy", "cw", "least_likely", "kl")


def least_likely_class(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Class with the smallest logit, the true label excluded (torchattacks' least-likely mode).

    Args:
      logits: [B,K] float.
      labels: [B] int.

    Returns:
      [B] int32.
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.bool_)
    return jnp.argmin(jnp.where(is_label, jnp.inf, logits), axis=-1).astype(jnp.int32)


def make_objective(
    loss: str,
    predict: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    labels: jax.Array | None,
    confidence: float = 50.0,
    targets: jax.Array | None = None,
) -> Callable[[jax.Array], jax.Array]:
    """Objective to be maximised.

    Args:
      loss: "cross_entropy": CE with the label. "cw": minus the CW margin with `confidence`.
        "least_likely": minus CE with a target class. "kl": KL(p(x) || p(x')), TRADES.
      predict: images -> logits [B,K], pure.
      images: [B,...] clean images; read by "least_likely" and "kl", once, outside the loop.
      labels: [B] int; may be None for "kl".
      confidence: of "cw", in logit units.
      targets: [B] int, classes to drive towards, for "least_likely"; default: least likely class.

    Returns:
      x' [B,...] -> [B] float32.

    Raises:
      ValueError: unknown loss, or labels missing.
    """
    base.check_choice("attack loss", loss, LOSSES)
    if labels is None and loss != "kl":
        raise ValueError(f"labels are None; the attack loss {loss!r} needs them")

    def logits_of(x):
        return predict(x).astype(jnp.float32)

    if loss == "cross_entropy":
        return lambda x: losses.cross_entropy(logits_of(x), labels)
    if loss == "cw":
        return lambda x: -losses.cw_margin(logits_of(x), labels, confidence)
    if loss == "kl":
        clean = jax.lax.stop_gradient(logits_of(images))
        return lambda x: losses.trades_kl(clean, logits_of(x))
    if targets is None:
        targets = least_likely_class(jax.lax.stop_gradient(logits_of(images)), labels)
    return lambda x: -losses.cross_entropy(logits_of(x), targets)
