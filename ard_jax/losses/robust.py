"""Losses of robust training methods that need no teacher."""

import jax
import jax.numpy as jnp

from ard_jax.losses import checks


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
    logits_nat, logits_adv = checks.same_logits(logits_nat, logits_adv, "trades_kl")
    log_nat = jax.nn.log_softmax(logits_nat.astype(jnp.float32))
    log_adv = jax.nn.log_softmax(logits_adv.astype(jnp.float32))
    return jnp.sum(jnp.exp(log_nat) * (log_nat - log_adv), axis=-1)


def boosted_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """CE(z, y) - log(1.0001 - max_{c != y} p_c + 1e-12): MART's "boosted" cross-entropy.

    The second term is a margin: it also pushes the best wrong class down. Wang et al. 2020 (ICLR),
    YisenWang/MART; both constants are those of the released code.

    Args:
      logits: [B,K] float, at the adversarial image.
      labels: [B] int.

    Returns:
      [B] float32, nats.

    Raises:
      ValueError: shapes do not fit.
    """
    logits, labels = checks.logits_and_labels(logits, labels)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    is_label = jax.nn.one_hot(labels, log_p.shape[-1], dtype=jnp.bool_)
    other = jnp.argmax(jnp.where(is_label, -jnp.inf, jax.lax.stop_gradient(log_p)), axis=-1)
    p_other = jnp.exp(jnp.take_along_axis(log_p, other[:, None], axis=-1)[:, 0])
    ce = -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    return ce - jnp.log(1.0001 - p_other + 1e-12)


def mart_kl(logits_nat: jax.Array, logits_adv: jax.Array, labels: jax.Array) -> jax.Array:
    """KL(p(x) || p(x')) (1.0000001 - p_y(x)): MART's regulariser, stronger where x is misclassified.

    Gradient flows through both distributions and through the weight. The logarithm is that of
    p(x') + 1e-12, as in YisenWang/MART, so it stays finite; the batch mean times beta enters the loss.

    Args:
      logits_nat: [B,K] float, at the clean image.
      logits_adv: [B,K] float, at the adversarial image.
      labels: [B] int.

    Returns:
      [B] float32, nats.

    Raises:
      ValueError: shapes do not fit.
    """
    logits_nat, logits_adv = checks.same_logits(logits_nat, logits_adv, "mart_kl")
    logits_nat, labels = checks.logits_and_labels(logits_nat, labels)
    log_nat = jax.nn.log_softmax(logits_nat.astype(jnp.float32))
    p_nat, p_adv = jnp.exp(log_nat), jax.nn.softmax(logits_adv.astype(jnp.float32))
    kl = jnp.sum(p_nat * (log_nat - jnp.log(p_adv + 1e-12)), axis=-1)
    p_label = jnp.take_along_axis(p_nat, labels[:, None], axis=-1)[:, 0]
    return kl * (1.0000001 - p_label)


def squared_error(first_logits: jax.Array, second_logits: jax.Array) -> jax.Array:
    """sum_k (p_k - p'_k)^2 of two predictions, with gradient through both (SCORE).

    Pang et al. 2022 (ICML, arXiv 2202.10103), P2333/SCORE: the consistency term of training, and what
    its attack maximises.

    Args:
      first_logits: [B,K] float.
      second_logits: [B,K] float.

    Returns:
      [B] float32, in [0, 2].

    Raises:
      ValueError: shapes differ.
    """
    first_logits, second_logits = checks.same_logits(first_logits, second_logits, "squared_error")
    first = jax.nn.softmax(first_logits.astype(jnp.float32))
    second = jax.nn.softmax(second_logits.astype(jnp.float32))
    return jnp.sum(jnp.square(first - second), axis=-1)


def label_squared_error(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """sum_k (p_k - y_k)^2 with y = (1 - a) onehot + a/K: SCORE's accuracy term (a Brier score).

    Args:
      logits: [B,K] float.
      labels: [B] int.
      label_smoothing: a in [0,1); 0 in the published runs.

    Returns:
      [B] float32.

    Raises:
      ValueError: shapes do not fit, or a label_smoothing outside [0, 1).
    """
    logits, labels = checks.logits_and_labels(logits, labels)
    checks.number(label_smoothing, "label_smoothing", 0.0, 1.0)
    if label_smoothing == 1:
        raise ValueError("label_smoothing=1: the labels would be lost; give less than 1")
    p = jax.nn.softmax(logits.astype(jnp.float32))
    onehot = jax.nn.one_hot(labels, p.shape[-1], dtype=jnp.float32)
    target = (1.0 - label_smoothing) * onehot + label_smoothing / p.shape[-1]
    return jnp.sum(jnp.square(p - target), axis=-1)
