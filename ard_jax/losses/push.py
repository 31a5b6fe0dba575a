"""CIARD's contrastive push: the student is driven away from a clean teacher that is fooled.

L3 = mean over W and classes of KL(softmax(N(x')) -> S(x')/5), W = {i : argmax N(x')_i != y_i},
enters the total as -s L3 with a scale s that brings it to the decade of the distillation losses.
Source: eminentgu/CIARD, CIARD.py and mtard_loss.py; `continuous_scale` and `bounded_push` are
alternatives.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax.losses import checks
from ard_jax.losses.distill import kl_divergence

_LOWEST, _HIGHEST = -37, 38  # the decades of normal float32 numbers
_ZERO_STANDS_FOR = 1e-7


def _thresholds() -> np.ndarray:
    """Smallest float32 that is >= 10**k, for every decade k."""
    exact = np.array([float(f"1e{k}") for k in range(_LOWEST, _HIGHEST + 1)])
    rounded = exact.astype(np.float32)
    below = rounded.astype(np.float64) < exact
    return np.where(below, np.nextafter(rounded, np.float32(np.inf)), rounded).astype(np.float32)


_DECADE_STARTS = _thresholds()
_POWERS = np.array([float(f"1e{k}") for k in range(_LOWEST, _HIGHEST + 1)], np.float32)


def push_loss(
    student_logits_adv: jax.Array,
    clean_teacher_logits_adv: jax.Array,
    labels: jax.Array,
    student_temperature: float | jax.Array = 5.0,
    teacher_temperature: float | jax.Array = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """KL of every example towards the clean teacher at x', and which examples W selects.

    The temperature 5 divides the student's logits only. The teacher is a constant. A row with
    non-finite logits gets the value NaN and the gradient 0, so that `masked_class_mean` can drop it
    without poisoning the gradient of the other rows.

    Args:
      student_logits_adv: [B,K] float, S(x').
      clean_teacher_logits_adv: [B,K] float, N(x').
      labels: [B] int.
      student_temperature: 5 in the paper's code.
      teacher_temperature: 1 in the paper's code.

    Returns:
      (kl [B] float32, wrong [B] bool): feed both to `masked_class_mean`.

    Raises:
      ValueError: shapes do not fit.
    """
    student_logits_adv, labels = checks.logits_and_labels(student_logits_adv, labels)
    student_logits_adv, clean_teacher_logits_adv = checks.same_logits(
        student_logits_adv, clean_teacher_logits_adv, "push_loss"
    )
    teacher = jax.lax.stop_gradient(clean_teacher_logits_adv)
    wrong = jnp.argmax(teacher, axis=-1) != labels
    finite = jnp.all(jnp.isfinite(student_logits_adv) & jnp.isfinite(teacher), axis=-1)
    # Two selections: the inner one keeps NaN out of the backward pass, the outer one shows it.
    student = jnp.where(finite[:, None], student_logits_adv, 0.0)
    teacher = jnp.where(finite[:, None], teacher, 0.0)
    kl = kl_divergence(student, teacher, teacher_temperature, student_temperature)
    return jnp.where(finite, kl, jnp.nan), wrong


def masked_class_mean(kl: jax.Array, mask: jax.Array, num_classes: int) -> jax.Array:
    """sum_i m_i kl_i / (n K), n = number of selected examples: the mean over W and classes.

    0, with gradient 0, when nothing is selected or when any selected value is not finite (the
    original drops the whole term for that step). Under jit with a sharded batch, n and the sum run
    over the global batch.

    Args:
      kl: [B] float.
      mask: [B] bool.
      num_classes: K.

    Returns:
      Float32 scalar.

    Raises:
      ValueError: shapes do not fit, or a mask that is not boolean.
    """
    kl, mask = checks.rows(kl, "kl"), checks.per_example(kl, mask, "mask")
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask is {mask.dtype}; give booleans, such as mask > 0")
    checks.count(num_classes, "num_classes", 2)
    usable = jnp.all(jnp.isfinite(kl) | ~mask)
    count = jnp.sum(mask.astype(jnp.float32))
    total = jnp.sum(jnp.where(mask & usable, kl, 0.0))
    return total / (jnp.maximum(count, 1.0) * num_classes)


def _decade(value: jax.Array) -> jax.Array:
    """floor(log10(value)) for positive float32, exact also next to powers of ten."""
    return jnp.searchsorted(_DECADE_STARTS, value, side="right").astype(jnp.int32) + (_LOWEST - 1)


def _magnitude(value: jax.Array) -> jax.Array:
    """|value|, with 1e-7 for an exact zero, and no gradient."""
    value = jnp.asarray(checks.array(value, "a loss"), jnp.float32)
    value = jnp.abs(jax.lax.stop_gradient(value))
    return jnp.where(value == 0.0, _ZERO_STANDS_FOR, value)


def decade_scale(l1: jax.Array, l2: jax.Array, l3: jax.Array) -> jax.Array:
    """10 ** (min(floor(log10 |L1|), floor(log10 |L2|)) - floor(log10 |L3|)), without gradient.

    Exact zeros count as 1e-7. The original takes Python logarithms of float32 values; here the
    decade is found by comparison with a table of the powers of ten, because a float32 log10 rounds
    to the wrong side next to a border, where the scale jumps tenfold. The caller drops the term
    when no sample is misclassified.

    Args:
      l1: scalar, robust distillation loss.
      l2: scalar, clean distillation loss.
      l3: scalar, push loss.

    Returns:
      Float32 scalar, a power of ten; 0 when a loss is not finite. Losses under 1e-37 count as
      1e-38, and the result stays within 1e-37 and 1e38.
    """
    l1, l2, l3 = map(_magnitude, (l1, l2, l3))
    exponent = jnp.minimum(_decade(l1), _decade(l2)) - _decade(l3)
    scale = jnp.asarray(_POWERS)[jnp.clip(exponent, _LOWEST, _HIGHEST) - _LOWEST]
    finite = jnp.isfinite(l1) & jnp.isfinite(l2) & jnp.isfinite(l3)
    return jnp.where(finite, scale, 0.0)


def continuous_scale(
    l1: jax.Array, l2: jax.Array, l3: jax.Array, kappa: float = 1.0, max_scale: float = 10.0
) -> jax.Array:
    """The decade scale without its jumps: kappa min(|L1|, |L2|) / |L3|, clipped to [0, max_scale].

    The scaled push is kappa times the smaller distillation loss. No gradient flows through it.

    Args:
      l1: scalar, robust distillation loss.
      l2: scalar, clean distillation loss.
      l3: scalar, push loss.
      kappa: size of the push relative to the smaller distillation loss.
      max_scale: bound for very small L3; our choice, no paper gives one.

    Returns:
      Float32 scalar; 0 when a loss is not finite.

    Raises:
      ValueError: a kappa or max_scale that is negative, or no number.
    """
    checks.number(kappa, "kappa")
    checks.number(max_scale, "max_scale")
    l1, l2, l3 = map(_magnitude, (l1, l2, l3))
    finite = jnp.isfinite(l1) & jnp.isfinite(l2) & jnp.isfinite(l3)
    scale = jnp.clip(kappa * jnp.minimum(l1, l2) / l3, 0.0, max_scale)
    return jnp.where(finite, scale, 0.0)


def bounded_push(
    student_logits_adv: jax.Array,
    clean_teacher_logits_adv: jax.Array,
    mask: jax.Array,
    student_temperature: float | jax.Array = 5.0,
) -> jax.Array:
    """Student's softened probability of the clean teacher's top class, where `mask` is set.

    The bounded replacement of the push in llmnjust-afk/IJCV_KD: it is ADDED to the loss (weight .05
    to .08 after a warm-up), with `mask` = clean teacher wrong and robust teacher right at x'. The
    values lie in [0, 1], so the term cannot dominate.

    Args:
      student_logits_adv: [B,K] float, S(x').
      clean_teacher_logits_adv: [B,K] float, N(x'); only its top class is used.
      mask: [B] bool, or float weights w_i in [0, 1].
      student_temperature: divides the student's logits.

    Returns:
      [B] float32, exactly 0 (with gradient 0) where the mask is 0.

    Raises:
      ValueError: shapes do not fit.
    """
    student_logits_adv, clean_teacher_logits_adv = checks.same_logits(
        student_logits_adv, clean_teacher_logits_adv, "bounded_push"
    )
    weights = checks.shares(student_logits_adv, mask, "mask")
    checks.temperature(student_temperature, "student_temperature", weights.shape[0])
    chosen = weights > 0
    student = jnp.where(chosen[:, None], student_logits_adv.astype(jnp.float32), 0.0)
    pushed_from = jnp.argmax(jax.lax.stop_gradient(clean_teacher_logits_adv), axis=-1)
    p = jax.nn.softmax(student / student_temperature)
    return weights * jnp.take_along_axis(p, pushed_from[:, None], axis=-1)[:, 0]
