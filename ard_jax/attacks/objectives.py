"""What an attack maximises: functions of x' built from a predict function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import losses
from ard_jax.attacks import threat_model
from ard_jax.losses import checks

LOSSES = (
    "cross_entropy", "cw", "least_likely", "kl", "teacher_kl", "teacher_moving_kl", "teacher_linear_kl",
    "squared", "dice",
)  # fmt: skip
WITHOUT_LABELS = ("kl", "teacher_kl", "teacher_moving_kl", "squared")
LAMBDA_SCHEDULES = ("paper", "cad", "const")


@dataclasses.dataclass(frozen=True)
class Loss:
    """What an attack maximises.

    Attributes:
      loss: "cross_entropy": CE with the label. "cw": minus the CW margin with `confidence`.
        "least_likely": minus CE with a target class. "kl": KL(p(x) || p(x')), TRADES.
        "teacher_kl": KL(softmax(teacher_logits) || p(x')), RSLAD. "teacher_moving_kl":
        KL(softmax(teacher(x')) || p(x')) with gradient through both networks, AdaAD.
        "teacher_linear_kl": the same with `linear_teacher` in place of the teacher, SAAD. "squared":
        sum_k (p_k(x') - p_k(x))^2, SCORE. "dice": DPGD (`ard_jax.attacks.dpgd`).
      confidence: of "cw", in logit units.
      linear_weight: of "teacher_linear_kl", on the change of the label's logit.
      lambda_schedule, lambda_value, dice, dice_form, dice_groups, smoothing: of "dice"
        (`ard_jax.attacks.dpgd`); with another loss they must keep their defaults.

    Raises:
      ValueError: on construction, for a bad value.
    """

    loss: str
    confidence: float | jax.Array = 50.0
    linear_weight: float = 1.0
    lambda_schedule: str = "paper"
    lambda_value: float = 0.25
    dice: str = "batch"
    dice_form: str = "stable"
    dice_groups: int = 1
    smoothing: float = 1e-5

    def __post_init__(self):
        """Checks every field."""
        checks.choice(self.loss, "attack loss", LOSSES)
        checks.number(self.confidence, "confidence")
        checks.number(self.linear_weight, "linear_weight")
        if self.linear_weight != 1 and self.loss != "teacher_linear_kl":
            raise ValueError(
                f"linear_weight: an option of loss 'teacher_linear_kl', not {self.loss!r}"
            )
        checks.choice(self.lambda_schedule, "lambda_schedule", LAMBDA_SCHEDULES)
        checks.number(self.lambda_value, "lambda_value", -1.0, 1.0)
        checks.choice(self.dice, "dice", losses.DICE_KINDS)
        checks.choice(self.dice_form, "dice_form", losses.DICE_FORMS)
        checks.count(self.dice_groups, "dice_groups", 1)
        checks.number(self.smoothing, "smoothing")
        of_dice = dataclasses.fields(self)[3:]
        changed = [f.name for f in of_dice if getattr(self, f.name) != f.default]
        if changed and self.loss != "dice":
            raise ValueError(f"{', '.join(changed)}: options of loss 'dice', not {self.loss!r}")
        if "lambda_value" in changed and self.lambda_schedule != "const":
            raise ValueError(
                f"lambda_value={self.lambda_value}: of lambda_schedule='const', not {self.lambda_schedule!r}"
            )
        if "dice_groups" in changed and self.dice != "batch":
            raise ValueError(f"dice_groups={self.dice_groups}: of dice='batch', not {self.dice!r}")
        # The merged program has one traced confidence for all its losses.
        fixed = isinstance(self.confidence, int | float)
        if fixed and self.confidence != Loss.confidence and self.loss != "cw":
            raise ValueError(f"confidence={self.confidence}: of loss 'cw', not {self.loss!r}")

    @property
    def needs_teacher(self) -> str:
        """What it needs of a teacher: "" nothing, "logits" teacher_logits, "network" teacher."""
        if self.loss in ("teacher_moving_kl", "teacher_linear_kl"):
            return "network"
        soft = self.loss == "dice" and self.dice == "soft"
        return "logits" if soft or self.loss == "teacher_kl" else ""


@dataclasses.dataclass(frozen=True)
class References:
    """What a loss compares the network's logits with, besides labels and clean images.

    Attributes:
      targets: [B] int, classes to drive towards, for "least_likely"; default: least likely class.
      teacher_logits: [B,K], constant; where the loss needs "logits" of a teacher.
      teacher: images -> logits [B,K]; where it needs a "network".
    """

    targets: jax.Array | None = None
    teacher_logits: jax.Array | Any = None
    teacher: Callable[[jax.Array], jax.Array] | None = None


def least_likely_class(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Class with the smallest logit, the true label excluded (torchattacks' least-likely mode).

    Args:
      logits: [B,K] float.
      labels: [B] int.

    Returns:
      [B] int32.
    """
    logits, labels = checks.logits_and_labels(logits, labels)
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.bool_)
    return jnp.argmin(jnp.where(is_label, jnp.inf, logits), axis=-1).astype(jnp.int32)


def linear_teacher(
    teacher: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    labels: Any,
    weight: float = 1.0,
) -> Callable[[jax.Array], jax.Array]:
    """Returns x' -> the teacher's logits T(x) with T_y(x) + weight <grad_x T_y(x), x' - x> at the label y.

    One pass of the teacher forward and back serves every x': the attack of SAAD (arXiv 2512.10275).

    Args:
      teacher: images -> logits [B,K]; an image's logits must not depend on the others.
      images: [B,...], x.
      labels: [B] int.
      weight: on the change of the label's logit; the paper's lambda.
    """
    logits, pullback = jax.vjp(lambda x: teacher(x).astype(jnp.float32), images)
    label = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    logits, (slope,) = jax.lax.stop_gradient((logits, pullback(label)))

    def linear(x: jax.Array) -> jax.Array:
        change = jnp.sum((slope * (x - images)).reshape(x.shape[0], -1), axis=1)
        return logits + weight * change[:, None] * label

    return linear


def lambda_values(schedule: str, steps: int, value: float = 0.25) -> np.ndarray:
    """Weight lambda_i of the misclassified images at every step of DPGD, [steps] float32.

    Args:
      schedule: "paper": i / (2 steps), SegPGD's (t-1)/(2T) with t = i + 1. "cad": (i-1) / (2 steps),
        the off-by-one of the CIFAR-100 scripts, negative in step 0. "const": `value` in every step.
      steps: T.
      value: of "const".

    Raises:
      ValueError: unknown schedule, no steps, or a value outside [-1, 1].
    """
    checks.choice(schedule, "lambda_schedule", LAMBDA_SCHEDULES)
    checks.count(steps, "steps", 1)
    checks.number(value, "value", -1.0, 1.0)
    i = np.arange(steps)
    if schedule == "const":
        return np.full(steps, value, np.float32)
    return ((i if schedule == "paper" else i - 1) / (2.0 * steps)).astype(np.float32)


def check_available(loss: Loss, labels: jax.Array | None, given: References) -> None:
    """Raises ValueError when an argument that the loss needs is missing or of another kind."""
    if labels is None and loss.loss not in WITHOUT_LABELS:
        raise ValueError(f"labels are None; the attack loss {loss.loss!r} needs them")
    if given.targets is not None:
        if loss.loss != "least_likely":
            raise ValueError(
                f"targets are given, but the loss is {loss.loss!r}: only 'least_likely' has them"
            )
        checks.check_targets(given.targets, labels)
    if loss.needs_teacher == "network" and not callable(given.teacher):
        raise ValueError(
            f"teacher is {type(given.teacher).__name__.removesuffix('Type')}; the attack loss {loss.loss!r} "
            "needs a predict function (images -> logits)"
        )
    if loss.needs_teacher == "logits" and given.teacher_logits is None:
        soft = " with dice='soft'" if loss.loss == "dice" else ""
        raise ValueError(
            f"teacher_logits are None; the attack loss {loss.loss!r}{soft} needs them, [B,K]"
        )
    if loss.needs_teacher == "logits":
        soft = checks.logits(given.teacher_logits, "teacher_logits")
        if checks.is_concrete(soft) and not np.isfinite(soft).all():
            raise ValueError(
                "teacher_logits hold NaN or infinite values; look for them in the teacher"
            )


def of_logits(
    loss: Loss,
    clean_logits: Callable[[], jax.Array],
    labels: Any,
    given: References = References(),  # noqa: B008 (frozen)
):
    """Returns z(x') -> [B] for a loss that is a function of the logits alone; see `make_objective`.

    `clean_logits()` gives those of the clean images; only the losses that read them call it.
    """
    kind = loss.loss
    if kind == "cross_entropy":
        return lambda z: losses.cross_entropy(z, labels)
    if kind == "cw":
        return lambda z: -losses.cw_margin(z, labels, loss.confidence)
    if kind == "teacher_kl":
        fixed = jax.lax.stop_gradient(given.teacher_logits)

        def towards_teacher(z: jax.Array) -> jax.Array:
            if fixed.shape != z.shape:
                raise ValueError(
                    f"teacher_logits have shape {fixed.shape}, but predict returns {z.shape}; give those "
                    "of the same images and classes"
                )
            return losses.trades_kl(fixed, z)

        return towards_teacher
    targets = given.targets
    if kind == "least_likely" and targets is not None:
        return lambda z: -losses.cross_entropy(z, targets)
    clean = jax.lax.stop_gradient(clean_logits())
    if kind == "kl":
        return lambda z: losses.trades_kl(clean, z)
    if kind == "squared":
        return lambda z: losses.squared_error(z, clean)
    least_likely = least_likely_class(clean, labels)
    return lambda z: -losses.cross_entropy(z, least_likely)


def make_objective(
    loss: Loss,
    predict: Callable,
    images: jax.Array,
    labels: jax.Array | None,
    given: References,
    *,
    state: Any = None,
    steps: int = 1,
) -> Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, tuple[jax.Array, Any]]]:
    """Objective to be maximised, for `loop.ascend`.

    Args:
      loss: with its options.
      predict: images -> logits [B,K], pure; with a state: (images, state) -> (logits, state).
      images: [B,...] clean images; read by "least_likely", "kl" and "squared", once, outside the
        loop; the state of that evaluation is thrown away.
      labels: [B] int; may be None for the losses in `WITHOUT_LABELS`.
      given: what the loss compares with.
      state: the state that `predict` starts from, or None for a stateless one.
      steps: of the loop, for the lambda schedule of "dice".

    Returns:
      (x', state, i) -> (values [B] float32, (score [B] float32, state)). The score orders iterates
      and restarts; it is the value itself except for "dice", whose values depend on i and the batch.

    Raises:
      ValueError: something that the loss needs is missing; names both.
    """
    check_available(loss, labels, given)

    def apply(x: jax.Array, state: Any):
        logits, state = (predict(x), None) if state is None else predict(x, state)
        threat_model.check_logits(logits, x)
        checks.labels_in_range(given.targets, logits.shape[1], "targets")
        return logits.astype(jnp.float32), state

    if loss.loss == "dice":
        return _dice_objective(loss, apply, labels, steps, given.teacher_logits)
    if (teacher := given.teacher) is not None and loss.needs_teacher == "network":
        if loss.loss == "teacher_linear_kl":
            teacher = linear_teacher(teacher, images, labels, loss.linear_weight)

        def moving(x: jax.Array, state: Any, i: Any):
            logits, state = apply(x, state)
            values = losses.trades_kl(teacher(x).astype(jnp.float32), logits)
            return values, (values, state)

        return moving
    value_of = of_logits(loss, lambda: apply(images, state)[0], labels, given)

    def objective(x: jax.Array, state: Any, i: Any):
        logits, state = apply(x, state)
        values = value_of(logits)
        return values, (values, state)

    return objective


def _dice_objective(loss: Loss, apply: Callable, labels: Any, steps: int, teacher_logits: Any):
    """DPGD's J in shares of the images; the score is the Dice loss of each image on its own."""
    lambdas = lambda_values(loss.lambda_schedule, max(steps, 1), loss.lambda_value)
    lambdas, form, smoothing = jnp.asarray(lambdas), loss.dice_form, loss.smoothing
    teacher = None
    if loss.dice == "soft":
        teacher = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32))
    alone = "per_sample" if loss.dice == "batch" else loss.dice

    def objective(x: jax.Array, state: Any, i: Any):
        logits, state = apply(x, state)
        values = losses.dpgd_objective(
            logits, labels, lambdas[i], dice=loss.dice, form=form, smoothing=smoothing,
            groups=loss.dice_groups, targets=teacher,
        )  # fmt: skip
        if teacher is not None:
            score = losses.soft_dice(logits, teacher, smoothing, form)
        else:
            score = losses.dice_loss(logits, labels, kind=alone, form=form, smoothing=smoothing)
        return values, (score, state)

    return objective
