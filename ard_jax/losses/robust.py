"""Losses of robust training methods that need no teacher."""

import jax
import jax.numpy as jnp

from ard_jax.losses import _checks


def trades_kl(logits_nat: jax.Array, logits_adv: jax.Array) -> jax.Array:
    """KL(p(x) || p(x')), with gradient through BOTH arguments.

    Source: yaodongyu/TRADES, trades.py. The target p(x) is not detached there; detaching it is a
    known mistake that costs robustness. TRADES adds beta times the batch mean of this.

    Args:
      logits_nat: [B,K] float, at the clean image.
      logits_adv: [B,K] float, at the adversarial image.

    Returns:
      [B] float32, nats.

    Raises:
      ValueError: shapes differ.
    """
    _checks.same_logits(logits_nat, logits_adv, "trades_kl")
    log_nat = jax.nn.log_softmax(logits_nat.astype(jnp.float32))
    log_adv = jax.nn.log_softmax(logits_adv.astype(jnp.float32))
    return jnp.sum(jnp.exp(log_nat) * (log_nat - log_adv), axis=-1)
