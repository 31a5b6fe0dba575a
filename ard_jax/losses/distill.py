"""Distillation losses: KL with temperatures, entropy, and the balances of MTARD and CIARD.

One value per example; nothing here reduces over the batch except `reduce_kl`. Sources: the
inner-loss modules of eminentgu/CIARD, zhaoshiji123/MTARD and MTARD-extension (B-MTARD), and
zibojia/RSLAD.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ard_jax.losses import checks
from ard_jax.losses.robust import trades_kl

Reduction = Literal["batchmean", "mean_classes", "scaled10"]
REDUCTIONS = get_args(Reduction)
WEIGHT_RULES = ("ciard", "mtard")
_BELOW_ZERO = 1e-3  # a KL may be by rounding


def kl_divergence(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    teacher_temperature: float | jax.Array = 1.0,
    student_temperature: float | jax.Array = 1.0,
    log_eps: float = 1e-5,
) -> jax.Array:
    """KL from the teacher's to the student's distribution, in the RSLAD/MTARD/CIARD form.

    sum_j b_j (log(b_j + log_eps) - a_j) with a = log_softmax(student / student_temperature) and
    b = softmax(teacher / teacher_temperature). `log_eps` stands on the teacher's side only, so the
    value is the true KL plus at most about 1e-5 per class, and the gradient with respect to the
    student is the exact one. There is no T^2 factor, and no stop_gradient: a method that keeps its
    teacher fixed detaches the teacher's logits itself.

    Args:
      student_logits: [B,K] float.
      teacher_logits: [B,K] float.
      teacher_temperature: divides the teacher's logits; may be traced.
      student_temperature: divides the student's logits; may be traced.
      log_eps: constant inside the teacher's logarithm; 1e-5 in the papers' code.

    Returns:
      [B] float32, nats.

    Raises:
      ValueError: shapes differ, or a readable number is out of its range.
    """
    student_logits, teacher_logits = checks.same_logits(
        student_logits, teacher_logits, "kl_divergence"
    )
    batch = student_logits.shape[0]
    checks.temperature(teacher_temperature, "teacher_temperature", batch)
    checks.temperature(student_temperature, "student_temperature", batch)
    checks.number(log_eps, "log_eps")
    log_student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / student_temperature)
    teacher = jax.nn.softmax(teacher_logits.astype(jnp.float32) / teacher_temperature)
    return jnp.sum(teacher * (jnp.log(teacher + log_eps) - log_student), axis=-1)


def reduce_kl(
    per_example: jax.Array, num_classes: int, reduction: str = "mean_classes"
) -> jax.Array:
    """Mean of per-example KL values in the scale that a paper's code uses.

    Args:
      per_example: [B] float.
      num_classes: K of the logits that they come from.
      reduction: "batchmean": mean over the batch (IAD, TRADES). "mean_classes": mean over batch and
        classes, that is batchmean / K (ARD, RSLAD, MTARD, CIARD on CIFAR-10). "scaled10": batchmean
        / 10 whatever K is; "mean_classes" at K = 10, and what RSLAD and MTARD compute on CIFAR-100,
        where they multiply the mean over classes by 10.

    Returns:
      Float32 scalar.

    Raises:
      ValueError: unknown reduction, values that are not [B], or fewer than two classes.
    """
    checks.choice(reduction, "KL reduction", REDUCTIONS)
    checks.count(num_classes, "num_classes", 2)
    per_example = checks.rows(per_example, "per_example")
    divisor = {"batchmean": 1.0, "mean_classes": float(num_classes), "scaled10": 10.0}[reduction]
    return jnp.mean(per_example) / divisor


def negative_entropy(
    logits: jax.Array, temperature: float | jax.Array = 1.0, log_eps: float = 1e-5
) -> jax.Array:
    """sum_j p_j log(p_j + log_eps), p = softmax(logits / temperature): minus the entropy.

    B-MTARD and CIARD average it over batch AND classes; the caller divides by K. For a saturated
    row it is slightly positive (about +1e-5), as in the original.

    Args:
      logits: [B,K] float.
      temperature: divides the logits; may be traced.
      log_eps: constant inside the logarithm.

    Returns:
      [B] float32, nats.

    Raises:
      ValueError: no logits [B,K], or a readable number out of its range.
    """
    logits = jnp.asarray(checks.logits(logits, "logits"))
    checks.temperature(temperature, "temperature", logits.shape[0])
    checks.number(log_eps, "log_eps")
    p = jax.nn.softmax(logits.astype(jnp.float32) / temperature)
    return jnp.sum(p * jnp.log(p + log_eps), axis=-1)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy with labels.

    Args:
      logits: [B,K] float.
      labels: [B] int, or [B,K] float, a distribution for each row.

    Returns:
      [B] float32, nats.

    Raises:
      ValueError: shapes do not fit.
    """
    labels = checks.array(labels, "labels") if isinstance(labels, list | tuple) else labels
    if getattr(labels, "ndim", 0) == 2 and jnp.issubdtype(labels.dtype, jnp.floating):
        checks.probabilities(labels, "labels")
        logits = jnp.asarray(checks.logits(logits, "logits"))
        if labels.shape != logits.shape:
            raise ValueError(f"labels of shape {labels.shape} for logits of shape {logits.shape}")
        return -jnp.sum(labels * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
    logits, labels = checks.logits_and_labels(logits, labels)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]


def as_logits(probabilities: jax.Array) -> jax.Array:
    """Logits [B,K] whose softmax are these, [B,K], as an attack takes them: finite where one is 0.

    Raises:
      ValueError: readable rows that are negative or do not sum to 1.
    """
    checks.probabilities(checks.array(probabilities, "probabilities"), "soft labels")
    probabilities = jnp.asarray(probabilities, jnp.float32)
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))


def balance_temperatures(
    temp_adv: jax.Array,
    temp_nat: jax.Array,
    entropy_adv: jax.Array,
    entropy_nat: jax.Array,
    rate: float | jax.Array,
    low: float = 1.0,
    high: float = 10.0,
) -> tuple[jax.Array, jax.Array]:
    """One update of the two teacher temperatures (B-MTARD, kept by CIARD).

    T_adv <- clip(T_adv - rate sign(E_adv/E_nat - 1), low, high) and T_nat likewise with
    E_nat/E_adv, so the softer teacher is sharpened and the sharper one softened until their
    entropies agree. Deviation: where a ratio is 0/0 the temperature stays (the original would
    become NaN for good).

    Args:
      temp_adv: scalar, robust teacher's temperature.
      temp_nat: scalar, clean teacher's temperature.
      entropy_adv: scalar, mean negative entropy of the robust teacher at temp_adv.
      entropy_nat: scalar, mean negative entropy of the clean teacher at temp_nat.
      rate: step, 1e-3 in the paper's code; may be traced.
      low: smallest temperature.
      high: largest temperature.

    Returns:
      (temp_adv, temp_nat), for use from the next step on.

    Raises:
      ValueError: a temperature that is not positive, an empty range, or something that is no finite number.
    """
    for value, name in ((entropy_adv, "entropy_adv"), (entropy_nat, "entropy_nat")):
        checks.number(value, name, -math.inf)
    checks.number(rate, "rate")
    for value, name in (
        (temp_adv, "temp_adv"),
        (temp_nat, "temp_nat"),
        (low, "low"),
        (high, "high"),
    ):
        checks.positive(value, name)
    if low > high:
        raise ValueError(f"low={low}, high={high}: the range of temperatures is empty")

    def update(temperature: jax.Array, own: jax.Array, other: jax.Array):
        direction = jnp.sign(own / other - 1.0)
        direction = jnp.where(jnp.isnan(direction), 0.0, direction)
        return jnp.clip(temperature - rate * direction, low, high)

    return (
        update(temp_adv, entropy_adv, entropy_nat),
        update(temp_nat, entropy_nat, entropy_adv),
    )


def balance_weights(
    w_adv: jax.Array,
    w_nat: jax.Array,
    loss_adv: jax.Array,
    loss_nat: jax.Array,
    first_adv: jax.Array,
    first_nat: jax.Array,
    rate: float | jax.Array,
    rule: str = "ciard",
) -> tuple[jax.Array, jax.Array]:
    """One update of MTARD's loss weights ("normalisation loss balance").

    With r = loss / first loss, each weight moves towards its share r / (r_adv + r_nat) by `rate`,
    so the branch that has fallen less gains weight.

    Args:
      w_adv: scalar weight of the robust branch; starts at 0.5.
      w_nat: scalar weight of the clean branch; starts at 0.5.
      loss_adv: scalar, this step's robust loss.
      loss_nat: scalar, this step's clean loss.
      first_adv: scalar, the first step's robust loss.
      first_nat: scalar, the first step's clean loss.
      rate: 0.025 in the papers' code; may be traced.
      rule: "ciard" (B-MTARD and CIARD: both weights move, are clipped at 0 and renormalised to sum
        1) or "mtard" (w_nat moves, w_adv = 1 - w_nat).

    Returns:
      (w_adv, w_nat).

    Raises:
      ValueError: unknown rule, or a readable number out of its range: weights that are negative or do not sum
        to 1, a loss or a rate that is negative, a first loss that is not positive.
    """
    checks.choice(rule, "weight rule", WEIGHT_RULES)
    for value, name in ((w_adv, "w_adv"), (w_nat, "w_nat")):
        checks.number(value, name, 0.0, 1.0)
    checks.number(rate, "rate")
    for value, name in ((loss_adv, "loss_adv"), (loss_nat, "loss_nat")):
        checks.number(value, name, -_BELOW_ZERO)
    if not isinstance(total := w_adv + w_nat, Tracer) and abs(float(total) - 1.0) > 1e-3:
        raise ValueError(f"w_adv={w_adv}, w_nat={w_nat}: the weights must sum to 1")
    checks.positive(first_adv, "first_adv")
    checks.positive(first_nat, "first_nat")
    ratio_adv, ratio_nat = loss_adv / first_adv, loss_nat / first_nat
    total = ratio_adv + ratio_nat
    w_nat = w_nat - rate * (w_nat - ratio_nat / total)
    if rule == "mtard":
        return 1.0 - w_nat, w_nat
    w_adv = w_adv - rate * (w_adv - ratio_adv / total)
    w_adv, w_nat = jnp.maximum(w_adv, 0.0), jnp.maximum(w_nat, 0.0)
    return w_adv / (w_adv + w_nat), w_nat / (w_adv + w_nat)


def softened_kl(
    teacher_logits: jax.Array, student_logits: jax.Array, temperature: float
) -> jax.Array:
    """t^2 KL(p_T^t || p_S^t), both softened; [B] float32. Gradient flows through both arguments.

    Raises:
      ValueError: shapes differ, or a temperature that is not positive.
    """
    teacher_logits, student_logits = checks.same_logits(
        teacher_logits, student_logits, "softened_kl"
    )
    checks.temperature(temperature, "temperature", student_logits.shape[0])
    kl = trades_kl(teacher_logits / temperature, student_logits / temperature)
    return temperature**2 * kl


def corrected_logits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """A teacher's logits with that of the label and the largest exchanged; right rows stay as they are.

    Source: kunsaram01/DGAD, before the softmax. Of equal largest logits the first is exchanged.

    Args:
      logits: [B,K] float.
      labels: [B] int.

    Returns:
      [B,K] like `logits`; the label's is the largest, or one of the largest.

    Raises:
      ValueError: shapes do not fit.
    """
    logits, labels = checks.logits_and_labels(logits, labels)
    largest = jnp.argmax(logits, -1)
    is_label, is_largest = (
        jax.nn.one_hot(c, logits.shape[-1], dtype=jnp.bool_) for c in (labels, largest)
    )
    of_label = jnp.take_along_axis(logits, labels[:, None], -1)
    return jnp.where(
        is_label, jnp.max(logits, -1, keepdims=True), jnp.where(is_largest, of_label, logits)
    )
