"""Soft Dice losses of class probabilities: what DPGD ascends, and a bounded distillation loss.

For a set of images with masks m_b in {0,1}, p_b = softmax(z_b), e_b the one-hot label:

    I = sum_b m_b <p_b, e_b>    A = sum_b m_b    Q = sum_b m_b ||p_b||^2
    L = 1 - (2 I + s) / (A + Q + s) = sum_b m_b ||p_b - e_b||^2 / (A + Q + s)

One scalar for the whole set, so the gradient of an image depends on its batch mates through A and Q.
In float32 the first form ("plain") loses accuracy where an image is right by 15 logit units or more:
p_y rounds to 1, and from a gap of 17 on its gradient for an image on its own is wrong by a factor of
ten. The second ("stable"), with ||p - e||^2 = u^2 + sum_{k != y} p_k^2 and u = sum_{k != y} p_k, is exact
until p_k^2 underflows, at a gap of about 43. Everything is computed in float32. Sources: the public
DPGD scripts of DARD (arXiv 2509.11525), which follow the volumetric SegPGD of asif-hanif/segpgd; they
use the plain form.
"""

import jax
import jax.numpy as jnp

from ard_jax.losses import checks

DICE_KINDS = ("batch", "per_sample", "unsquared", "soft")
DICE_FORMS = ("stable", "plain")


def _group_sum(values: jax.Array, groups: int) -> jax.Array:
    """Every example's sum over its group of consecutive examples, [B] -> [B]."""
    sums = jnp.sum(values.reshape(groups, -1), axis=1)
    return jnp.repeat(sums, values.shape[0] // groups)


def dice_loss(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array | None = None,
    *,
    kind: str = "batch",
    form: str = "stable",
    smoothing: float = 1e-5,
    groups: int = 1,
) -> jax.Array:
    """Dice loss with hard labels.

    Args:
      logits: [B,K] float.
      labels: [B] int.
      mask: [B] float or bool, which examples belong to the set; None means all.
      kind: "batch": squared Dice with ONE scalar per set; the value of an example is its share, and
        the SUM over the batch is the loss. (The documented exception to "one loss per example".)
        "per_sample": squared Dice of every example on its own, take the mean. "unsquared":
        1 - p_y, what the Dice with un-squared denominator is, take the mean.
      form: "stable" or "plain", the same in exact arithmetic (see the top of this file). In "plain"
        the loss of a set is divided equally among its members.
      smoothing: s.
      groups: of "batch": number of equal runs of consecutive examples that have a Dice of their own;
        1 is the whole batch. Under jit the batch is the global one, whatever its sharding.

    Returns:
      [B] float32, 0 where the mask is 0; an empty set has value 0 and gradient 0.

    Raises:
      ValueError: shapes do not fit, unknown kind or form, a mask outside [0, 1], a negative smoothing, or B
        is not divisible by groups.
    """
    logits, labels = checks.logits_and_labels(logits, labels)
    checks.choice(kind, "dice kind", DICE_KINDS[:3])
    checks.choice(form, "dice form", DICE_FORMS)
    checks.number(smoothing, "smoothing")
    batch = logits.shape[0]
    if batch % checks.count(groups, "groups", 1):
        raise ValueError(f"groups={groups}: a batch of {batch} cannot be cut into equal groups")
    mask = jnp.ones(batch) if mask is None else checks.shares(logits, mask, "mask")
    p = jax.nn.softmax(logits.astype(jnp.float32))
    p_label = jnp.take_along_axis(p, labels[:, None], axis=-1)[:, 0]
    q = p * (1.0 - jax.nn.one_hot(labels, p.shape[-1], dtype=jnp.float32))
    u, squares = jnp.sum(q, axis=-1), jnp.sum(jnp.square(p), axis=-1)
    if kind == "unsquared":
        return mask * (u if form == "stable" else 1.0 - p_label)
    error = jnp.square(u) + jnp.sum(jnp.square(q), axis=-1)  # ||p - e||^2
    if kind == "per_sample":
        whole = 1.0 + squares + smoothing
        return mask * (
            error / whole if form == "stable" else 1.0 - (2.0 * p_label + smoothing) / whole
        )
    count = _group_sum(mask, groups)
    whole = count + _group_sum(mask * squares, groups) + smoothing
    if form == "stable":
        return mask * error / whole
    dice = (2.0 * _group_sum(mask * p_label, groups) + smoothing) / whole
    return mask * (1.0 - dice) / jnp.maximum(count, 1.0)


def soft_dice(
    logits: jax.Array, targets: jax.Array, smoothing: float = 1e-5, form: str = "stable"
) -> jax.Array:
    """Dice loss of every example towards soft targets, 1 - (2<p,t> + s) / (||p||^2 + ||t||^2 + s).

    Equal to ||p - t||^2 / (||p||^2 + ||t||^2 + s): bounded by 1, symmetric, 0 only where p = t. As a
    distillation loss it replaces the KL; its gradient vanishes where p is one-hot. Temperatures are
    the caller's: pass logits / T and softmax(teacher / T). No source trains with it.

    Args:
      logits: [B,K] float.
      targets: [B,K] float, probabilities t; gradient flows through them unless they are detached.
      smoothing: s.
      form: "stable" computes the second expression, "plain" the first.

    Returns:
      [B] float32.

    Raises:
      ValueError: shapes differ, targets that are no probabilities, unknown form, or a negative smoothing.
    """
    logits, targets = jnp.asarray(checks.logits(logits, "logits")), checks.array(targets, "targets")
    if logits.shape != targets.shape:
        raise ValueError(
            f"soft_dice: logits {logits.shape} and targets {targets.shape} must be as many"
        )
    checks.choice(form, "dice form", DICE_FORMS)
    checks.number(smoothing, "smoothing")
    checks.probabilities(targets, "targets")
    p, t = jax.nn.softmax(logits.astype(jnp.float32)), targets.astype(jnp.float32)
    whole = jnp.sum(jnp.square(p), -1) + jnp.sum(jnp.square(t), -1) + smoothing
    if form == "stable":
        return jnp.sum(jnp.square(p - t), axis=-1) / whole
    return 1.0 - (2.0 * jnp.sum(p * t, axis=-1) + smoothing) / whole


def dpgd_objective(
    logits: jax.Array,
    labels: jax.Array,
    lam: float | jax.Array,
    *,
    dice: str = "batch",
    form: str = "stable",
    smoothing: float = 1e-5,
    groups: int = 1,
    targets: jax.Array | None = None,
) -> jax.Array:
    """What DPGD ascends: J = (1 - lam) L(right images) + lam L(misclassified images).

    Which images are right is read off these logits, without gradient.

    Args:
      logits: [B,K] float, at the current iterate.
      labels: [B] int; -1 is padding, which belongs to neither set.
      lam: weight of the misclassified images; may be traced, may be negative.
      dice: "batch" (the released scripts), "per_sample", "unsquared" or "soft". The last three do not
        couple the images; there L is the SUM over its set, not the mean: the factor is positive, so no
        sign step changes, and an image's gradient does not depend on its batch.
      form: "stable" or "plain".
      smoothing: s.
      groups: of "batch", as in `dice_loss`.
      targets: [B,K] probabilities, for "soft" only.

    Returns:
      [B] float32, the shares of the images; their SUM is J.

    Raises:
      ValueError: shapes do not fit, an unknown name, a number out of its range, or targets missing.
    """
    given = None if labels is None else jnp.asarray(checks.array(labels, "labels"))
    padding = jnp.asarray(False) if given is None else given == -1
    logits, labels = checks.logits_and_labels(
        logits, None if given is None else jnp.where(padding, 0, given)
    )
    checks.choice(dice, "dice kind", DICE_KINDS)
    checks.number(lam, "lam", -1.0, 1.0)
    is_right = jax.lax.stop_gradient(jnp.argmax(logits, axis=-1) == labels)
    right, wrong = (jnp.where(padding, 0.0, m.astype(jnp.float32)) for m in (is_right, ~is_right))
    if dice == "soft":
        if targets is None:
            raise ValueError("targets are None; dice='soft' needs the teacher's probabilities")
        share = jnp.where(padding, 0.0, jnp.where(is_right, 1.0 - lam, lam))
        return share * soft_dice(logits, targets, smoothing, form)
    loss = [
        dice_loss(logits, labels, m, kind=dice, form=form, smoothing=smoothing, groups=groups)
        for m in (right, wrong)
    ]
    return (1.0 - lam) * loss[0] + lam * loss[1]
