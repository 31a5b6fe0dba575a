"""What an attack maximises: functions of x' built from a predict function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import losses
from ard_jax.attacks import threat_model

LOSSES = (
    "cross_entropy", "cw", "least_likely", "kl", "teacher_kl", "teacher_moving_kl", "squared",
    "dice",
)  # fmt: skip
WITHOUT_LABELS = ("kl", "teacher_kl", "teacher_moving_kl", "squared")
LAMBDA_SCHEDULES = ("paper", "cad", "const")
# Options of loss "dice", with their defaults; explained in `ard_jax.attacks.dpgd`.
DICE_OPTIONS = {
    "lambda_schedule": "paper", "lambda_value": 0.25, "dice": "batch", "dice_form": "stable",
    "dice_groups": 1, "smoothing": 1e-5,
}  # fmt: skip


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


def lambda_values(schedule: str, steps: int, value: float = 0.25) -> np.ndarray:
    """Weight lambda_i of the misclassified images at every step of DPGD, [steps] float32.

    Args:
      schedule: "paper": i / (2 steps), SegPGD's (t-1)/(2T) with t = i + 1. "cad": (i-1) / (2 steps),
        the off-by-one of the CIFAR-100 scripts, negative in step 0. "const": `value` in every step.
      steps: T.
      value: of "const".

    Raises:
      ValueError: unknown schedule.
    """
    threat_model.check_choice("lambda_schedule", schedule, LAMBDA_SCHEDULES)
    i = np.arange(steps)
    if schedule == "const":
        return np.full(steps, value, np.float32)
    return ((i if schedule == "paper" else i - 1) / (2.0 * steps)).astype(np.float32)


def check_dice_options(options: dict[str, Any]) -> None:
    """Raises ValueError for a bad value among `DICE_OPTIONS`."""
    threat_model.check_choice("lambda_schedule", options["lambda_schedule"], LAMBDA_SCHEDULES)
    threat_model.check_number("lambda_value", options["lambda_value"], -1.0, 1.0)
    threat_model.check_choice("dice", options["dice"], losses.DICE_KINDS)
    threat_model.check_choice("dice_form", options["dice_form"], losses.DICE_FORMS)
    threat_model.check_count("dice_groups", options["dice_groups"], 1)
    threat_model.check_number("smoothing", options["smoothing"])


def check_available(
    loss: str,
    labels: jax.Array | None,
    teacher_logits: jax.Array | None,
    teacher: Callable | None,
    dice: str = "batch",
) -> None:
    """Raises ValueError when an argument that the loss needs is None."""
    threat_model.check_choice("attack loss", loss, LOSSES)
    if labels is None and loss not in WITHOUT_LABELS:
        raise ValueError(f"labels are None; the attack loss {loss!r} needs them")
    if loss == "teacher_moving_kl" and teacher is None:
        raise ValueError(
            f"teacher is None; the attack loss {loss!r} needs a predict function (images -> logits)"
        )
    if teacher_logits is None and (loss == "teacher_kl" or (loss == "dice" and dice == "soft")):
        soft = " with dice='soft'" if loss == "dice" else ""
        raise ValueError(
            f"teacher_logits are None; the attack loss {loss!r}{soft} needs them, [B,K]"
        )


def of_logits(
    loss: str,
    clean_logits: Callable[[], jax.Array],
    labels: Any,
    confidence: float | jax.Array = 50.0,
    targets: jax.Array | None = None,
    teacher_logits: Any = None,
):
    """Returns z(x') -> [B] for a loss that is a function of the logits alone; see `make_objective`.

    `clean_logits()` gives those of the clean images; only the losses that read them call it.
    """
    if loss == "cross_entropy":
        return lambda z: losses.cross_entropy(z, labels)
    if loss == "cw":
        return lambda z: -losses.cw_margin(z, labels, confidence)
    if loss == "teacher_kl":
        fixed = jax.lax.stop_gradient(teacher_logits)
        return lambda z: losses.trades_kl(fixed, z)
    if loss == "least_likely" and targets is not None:
        return lambda z: -losses.cross_entropy(z, targets)
    clean = jax.lax.stop_gradient(clean_logits())
    if loss == "kl":
        return lambda z: losses.trades_kl(clean, z)
    if loss == "squared":
        return lambda z: losses.squared_error(z, clean)
    targets = least_likely_class(clean, labels)
    return lambda z: -losses.cross_entropy(z, targets)


def make_objective(
    loss: str,
    predict: Callable,
    images: jax.Array,
    labels: jax.Array | None,
    *,
    state: Any = None,
    steps: int = 1,
    confidence: float = 50.0,
    targets: jax.Array | None = None,
    teacher_logits: jax.Array | None = None,
    teacher: Callable[[jax.Array], jax.Array] | None = None,
    dice_options: dict[str, Any] | None = None,
) -> Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, tuple[jax.Array, Any]]]:
    """Objective to be maximised, for `loop.ascend`.

    Args:
      loss: "cross_entropy": CE with the label. "cw": minus the CW margin with `confidence`.
        "least_likely": minus CE with a target class. "kl": KL(p(x) || p(x')), TRADES.
        "teacher_kl": KL(softmax(teacher_logits) || p(x')), RSLAD. "teacher_moving_kl":
        KL(softmax(teacher(x')) || p(x')) with gradient through both networks, AdaAD. "squared":
        sum_k (p_k(x') - p_k(x))^2, SCORE. "dice": DPGD (`ard_jax.attacks.dpgd`).
      predict: images -> logits [B,K], pure; with a state: (images, state) -> (logits, state).
      images: [B,...] clean images; read by "least_likely", "kl" and "squared", once, outside the
        loop; the state of that evaluation is thrown away.
      labels: [B] int; may be None for the losses in `WITHOUT_LABELS`.
      state: the state that `predict` starts from, or None for a stateless one.
      steps: of the loop, for the lambda schedule of "dice".
      confidence: of "cw", in logit units.
      targets: [B] int, classes to drive towards, for "least_likely"; default: least likely class.
      teacher_logits: [B,K], constant; for "teacher_kl" and for "dice" with soft targets.
      teacher: images -> logits [B,K] of the teacher; for "teacher_moving_kl".
      dice_options: of "dice"; missing ones as in `DICE_OPTIONS`.

    Returns:
      (x', state, i) -> (values [B] float32, (score [B] float32, state)). The score orders iterates
      and restarts; it is the value itself except for "dice", whose values depend on i and the batch.

    Raises:
      ValueError: unknown loss, or something that it needs is missing; names both.
    """
    options = DICE_OPTIONS | (dice_options or {})
    check_available(loss, labels, teacher_logits, teacher, options["dice"])

    def apply(x: jax.Array, state: Any):
        logits, state = (predict(x), None) if state is None else predict(x, state)
        return logits.astype(jnp.float32), state

    if loss == "dice":
        return _dice_objective(apply, labels, steps, teacher_logits, **options)
    if loss == "teacher_moving_kl":
        assert teacher is not None  # `check_available`

        def moving(x: jax.Array, state: Any, i: Any):
            logits, state = apply(x, state)
            values = losses.trades_kl(teacher(x).astype(jnp.float32), logits)
            return values, (values, state)

        return moving
    value_of = of_logits(
        loss, lambda: apply(images, state)[0], labels, confidence, targets, teacher_logits
    )

    def objective(x: jax.Array, state: Any, i: Any):
        logits, state = apply(x, state)
        values = value_of(logits)
        return values, (values, state)

    return objective


def _dice_objective(
    apply: Callable, labels: Any, steps: int, teacher_logits: Any, *, lambda_schedule: str,
    lambda_value: float, dice: str, dice_form: str, dice_groups: int, smoothing: float,
):  # fmt: skip
    """DPGD's J in shares of the images; the score is the Dice loss of each image on its own."""
    lambdas = jnp.asarray(lambda_values(lambda_schedule, max(steps, 1), lambda_value))
    teacher = None
    if dice == "soft":
        teacher = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32))
    alone = "per_sample" if dice == "batch" else dice

    def objective(x: jax.Array, state: Any, i: Any):
        logits, state = apply(x, state)
        values = losses.dpgd_objective(
            logits, labels, lambdas[i], dice=dice, form=dice_form, smoothing=smoothing,
            groups=dice_groups, targets=teacher,
        )  # fmt: skip
        if teacher is not None:
            score = losses.soft_dice(logits, teacher, smoothing, dice_form)
        else:
            score = losses.dice_loss(
                logits, labels, kind=alone, form=dice_form, smoothing=smoothing
            )
        return values, (score, state)

    return objective
