"""Margins of logits: Carlini-Wagner, AutoAttack's difference-of-logits ratios; of probabilities: MAIL."""

import jax
import jax.numpy as jnp

from ard_jax.losses import checks


def _of_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """z_y, [B]."""
    return jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


def _best_other(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """max_{j != y} z_j, [B]. Of equal logits the first gets the whole gradient, as in PyTorch."""
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.bool_)
    other = jnp.argmax(jnp.where(is_label, -jnp.inf, jax.lax.stop_gradient(logits)), axis=-1)
    return _of_label(logits, other)


def cw_margin(
    logits: jax.Array, labels: jax.Array, confidence: float | jax.Array = 50.0
) -> jax.Array:
    """max(z_y - max_{j != y} z_j + confidence, 0): Carlini and Wagner's margin (2017).

    An attack MINIMISES it. With confidence 50 (MTARD, CIARD) it is nearly always positive, so the
    gradient stays alive long after the label is lost.

    Args:
      logits: [B,K] float, K >= 2.
      labels: [B] int.
      confidence: margin beyond the decision boundary, in logit units.

    Returns:
      [B] float32.

    Raises:
      ValueError: shapes do not fit, or a confidence that is negative or not finite.
    """
    logits, labels = checks.logits_and_labels(logits, labels)
    checks.number(confidence, "confidence")
    logits = logits.astype(jnp.float32)
    return jnp.maximum(_of_label(logits, labels) - _best_other(logits, labels) + confidence, 0.0)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Difference-of-logits ratio, -(z_y - max_{j != y} z_j) / (z_(1) - z_(3) + 1e-12).

    An attack MAXIMISES it; it is positive exactly when the label is lost. Croce and Hein 2020
    (arXiv 2003.01690), fra31/auto-attack. Invariant to scaling and shifting of the logits.

    Args:
      logits: [B,K] float, K >= 3.
      labels: [B] int.

    Returns:
      [B] float32.

    Raises:
      ValueError: shapes do not fit, or K < 3.
    """
    logits, labels = checks.logits_and_labels(logits, labels, 3)
    logits = logits.astype(jnp.float32)
    ordered = jnp.sort(logits, axis=-1)
    margin = _of_label(logits, labels) - _best_other(logits, labels)
    return -margin / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def targeted_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Targeted form, -(z_y - z_t) / (z_(1) - (z_(3) + z_(4))/2 + 1e-12).

    An attack MAXIMISES it. Croce and Hein 2020, fra31/auto-attack.

    Args:
      logits: [B,K] float, K >= 4.
      labels: [B] int.
      targets: [B] int.

    Returns:
      [B] float32.

    Raises:
      ValueError: shapes do not fit, or K < 4.
    """
    logits, labels = checks.logits_and_labels(logits, labels, 4)
    checks.check_targets(targets, labels)
    targets = checks.logits_and_labels(logits, targets, 4)[1]
    logits = logits.astype(jnp.float32)
    ordered = jnp.sort(logits, axis=-1)
    margin = _of_label(logits, labels) - _of_label(logits, targets)
    return -margin / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12)


def probability_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """max_{j != y} p_j - p_y of p = softmax(logits): how wrong, and how certain (MAIL).

    Wang et al. 2021 (arXiv 2106.07904), QizhouWang/MAIL, at the adversarial image. The paper calls its
    negative the probability margin.

    Args:
      logits: [B,K] float, K >= 2.
      labels: [B] int.

    Returns:
      [B] float32, from -1 (certain and right) to 1 (certain and wrong).

    Raises:
      ValueError: shapes do not fit.
    """
    logits, labels = checks.logits_and_labels(logits, labels)
    p = jax.nn.softmax(logits.astype(jnp.float32))
    return _best_other(p, labels) - _of_label(p, labels)
