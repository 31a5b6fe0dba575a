"""KL(p(x) || p(x')) decoupled into an error of logit differences and a soft cross-entropy (DKL).

Cui et al. 2024 (NeurIPS, arXiv 2305.13948) and its successor GKL, jiequancui/DKL.
"""

import jax
import jax.numpy as jnp

from ard_jax.losses import checks


def weighted_mse(
    logits_nat: jax.Array, logits_adv: jax.Array, class_weights: jax.Array
) -> jax.Array:
    """1/4 sum_jk w_j w_k ((z_j - z_k) - (z'_j - z'_k))^2, with gradient through both logits.

    Computed from K terms rather than K^2: with D = z - z' and U = sum_j w_j it is
    U/2 sum_j w_j (D_j - mean D)^2, where the mean has the weights w. IKL takes the mean over the batch, GKL
    the sum divided by the batch's sum of U^2.

    Args:
      logits_nat: [B,K] float, z, at the clean image.
      logits_adv: [B,K] float, z', at the adversarial image.
      class_weights: [B,K] float, not negative, constants for the gradient; the weights of each example's
        class.

    Returns:
      [B] float32.

    Raises:
      ValueError: shapes differ, or a negative weight.
    """
    logits_nat, logits_adv = checks.same_logits(logits_nat, logits_adv, "weighted_mse")
    class_weights = checks.array(class_weights, "class_weights")
    if class_weights.shape != logits_nat.shape:
        raise ValueError(
            f"class_weights have shape {class_weights.shape}; give that of the logits, {logits_nat.shape}"
        )
    if checks.is_concrete(class_weights) and checks.extremes(class_weights)[0] < 0:
        raise ValueError("class_weights must not be negative")
    weights = jax.lax.stop_gradient(class_weights.astype(jnp.float32))
    change = logits_nat.astype(jnp.float32) - logits_adv.astype(jnp.float32)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    center = jnp.sum(weights * change, axis=-1, keepdims=True) / jnp.maximum(total, 1e-30)
    return total[:, 0] / 2 * jnp.sum(weights * jnp.square(change - center), axis=-1)


def soft_cross_entropy(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
    """- sum_k p_k log p'_k with the target p = softmax(target_logits) a constant for the gradient.

    Args:
      logits: [B,K] float, of p'.
      target_logits: [B,K] float, of p.

    Returns:
      [B] float32, nats.

    Raises:
      ValueError: shapes differ.
    """
    logits, target_logits = checks.same_logits(logits, target_logits, "soft_cross_entropy")
    target = jax.nn.softmax(jax.lax.stop_gradient(target_logits).astype(jnp.float32))
    return -jnp.sum(target * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
