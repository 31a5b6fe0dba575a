"""Agreement of two predictions of one image."""

import jax
import jax.numpy as jnp

from ard_jax.losses import checks


def jensen_shannon(
    first_logits: jax.Array, second_logits: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """(KL(p || m) + KL(q || m)) / 2 with m = max((p + q) / 2, 1e-8), with gradient through both.

    p and q are the softmax of the logits divided by `temperature`. Source: Tack et al. 2022 (AAAI),
    alinlab/consistency-adversarial.

    Args:
      first_logits: [B,K] float.
      second_logits: [B,K] float.
      temperature: divides both logits.

    Returns:
      [B] float32, nats, in [0, log 2].

    Raises:
      ValueError: shapes differ, or a temperature that is not positive.
    """
    first, second = checks.same_logits(first_logits, second_logits, "jensen_shannon")
    checks.temperature(temperature, "temperature", first.shape[0])
    log_p, log_q = (
        jax.nn.log_softmax(z.astype(jnp.float32) / temperature) for z in (first, second)
    )
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    log_m = jnp.log(jnp.maximum((p + q) / 2, 1e-8))
    return jnp.sum(p * (log_p - log_m) + q * (log_q - log_m), axis=-1) / 2
