"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690), as AutoAttack runs it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import losses, rng
from ard_jax.attacks import threat_model
from ard_jax.attacks.attack import Attack, Predict, create
from ard_jax.attacks.checked_predict import checked
from ard_jax.attacks.threat_model import ThreatModel
from ard_jax.losses import checks

LOSSES = ("cross_entropy", "dlr", "targeted_dlr")
_SOFT = "teacher_kl"
_MOMENTUM = 0.75  # share of the new step; the rest is the previous move


@dataclasses.dataclass(frozen=True)
class ApgdOptions:
    """How Auto-PGD runs.

    Attributes:
      loss: what is maximised: "cross_entropy", "dlr" (K >= 3), "targeted_dlr" (K >= 4), or "teacher_kl",
        KL(softmax(teacher_logits) || p(x')), which is the cross-entropy with soft labels but for a constant.
      steps: static, at least 1.
      rho: share of steps that must have raised the loss.
      eot: predictions whose gradients are averaged, for randomised networks. The loss and the
        predicted class are those of the last one.
      compat: count the first step as a rise where its loss is above 0, as fra31/auto-attack does;
        False compares it with the loss of the start.
      trace: also return the losses and step sizes.

    Raises:
      ValueError: on construction, for a bad value.
    """

    loss: str = "cross_entropy"
    steps: int = 100
    rho: float = 0.75
    eot: int = 1
    compat: bool = True
    trace: bool = False

    def __post_init__(self):
        """Checks every field."""
        checks.choice(self.loss, "APGD loss", (*LOSSES, _SOFT))
        checks.count(self.steps, "steps", 1)
        checks.number(self.rho, "rho", 0.0, 1.0)
        checks.count(self.eot, "eot", 1)
        checks.flag(self.compat, "compat")
        checks.flag(self.trace, "trace")


class ApgdResult(NamedTuple):
    """What `apgd` returns.

    Attributes:
      images: [B,H,W,C] float32, the latest misclassified iterate; the clean image where none was.
      success: [B] bool, some iterate was misclassified.
      loss: [steps+1,B] float32, the loss at every iterate, or None without `trace`.
      loss_best: [steps+1,B] float32, the largest so far, or None.
      step_size: [steps,B] float32, that every step used, or None.
      best: [B,H,W,C] float32, the iterate of the largest loss.
    """

    images: jax.Array
    success: jax.Array
    loss: jax.Array | None = None
    loss_best: jax.Array | None = None
    step_size: jax.Array | None = None
    best: jax.Array | Any = None


class _State(NamedTuple):
    """Carried from one evaluation to the next; everything is per image."""

    x: jax.Array  # where the network is evaluated next
    x_before: jax.Array  # where the last step began
    x_best: jax.Array
    gradient_best: jax.Array
    adversarial: jax.Array
    success: jax.Array
    loss: jax.Array
    loss_best: jax.Array
    loss_best_checked: jax.Array  # loss_best at the last checkpoint
    rises: jax.Array  # steps since the last checkpoint that raised the loss
    reduced: jax.Array  # the step size was halved at the last checkpoint
    step_size: jax.Array


def checkpoint_lengths(steps: int) -> np.ndarray:
    """Auto-PGD's checkpoints as fra31/auto-attack counts them (int(), not the paper's ceil()).

    Args:
      steps: number of steps N >= 1.

    Returns:
      [steps+1] int32: entry j is the number of steps since the previous checkpoint where one comes
      after step j, else 0. For 100 steps: after 22, 41, 57, 70, 80, 87, 93 and 99.
    """
    length, shortest, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    lengths, done = np.zeros(steps + 1, np.int32), length
    while done <= steps:
        lengths[done] = length
        length = max(length - less, shortest)
        done += length
    return lengths


def _first_iterate(start: jax.Array | None, key: Any, images: jax.Array, threat: ThreatModel):
    """The given start, or one whose largest entry (Linf) or length (L2) is eps, cut to the range."""
    if start is None:
        noise = threat_model.image_noise(key, images, threat.norm)
        size = threat_model.per_image(threat_model.size(noise, threat.norm), images)
        start = images + threat.eps * (noise / (size + 1e-12))
    return threat.cut(start.astype(images.dtype), images)


def _evaluator(
    predict: Predict, labels: jax.Array, targets: Any, soft: Any, key: Any, options: ApgdOptions
):
    """(x, j) -> (gradient, loss [B], wrong [B]), with one forward and one backward pass per key."""
    losses_of = {
        "cross_entropy": lambda z: losses.cross_entropy(z, labels),
        "dlr": lambda z: losses.dlr(z, labels),
        "targeted_dlr": lambda z: losses.targeted_dlr(z, labels, targets),
        "teacher_kl": lambda z: losses.trades_kl(jax.lax.stop_gradient(soft), z),
    }

    def once(x: jax.Array, *keys: jax.Array):
        def total(x: jax.Array):
            logits = predict(x, *keys)
            threat_model.check_logits(logits, x, labels, *(() if targets is None else (targets,)))
            values = losses_of[options.loss](logits)
            return jnp.sum(values), (values, jnp.argmax(logits, axis=-1) != labels)

        gradient, (values, wrong) = jax.grad(total, has_aux=True)(x)
        return gradient, values, wrong

    def averaged(x: jax.Array, j: jax.Array):
        first = rng.of_rows(key, jnp.arange(1))[0]
        keys = jax.random.split(jax.random.fold_in(first, j), options.eot)

        def add(total: jax.Array, one: jax.Array):
            gradient, values, wrong = once(x, one)
            return total + gradient, (values, wrong)

        total, (values, wrong) = jax.lax.scan(add, jnp.zeros_like(x), keys)
        return total / options.eot, values[-1], wrong[-1]

    return averaged if options.eot > 1 else lambda x, j: once(x)


def _review(state: _State, length: jax.Array, rho: float):
    """Where the step size is halved: `state` at a checkpoint after `length` steps -> [B] bool."""
    few_rises = state.rises <= rho * length
    stuck = ~state.reduced & (state.loss_best_checked >= state.loss_best)
    return (length > 0) & (few_rises | stuck)


def _after_evaluation(
    state: _State,
    gradient: jax.Array,
    loss: jax.Array,
    wrong: jax.Array,
    j: jax.Array,
    length: jax.Array,
    options: ApgdOptions,
):
    """Bookkeeping after evaluation j of `state.x`: (state, gradient of the iterate to step from)."""
    # Iterate 0 is no step, so it is no rise. AutoAttack compares iterate 1 with a 0 that stands in
    # its buffer, not with the loss of iterate 0.
    before = jnp.where(j == 1, 0.0, state.loss) if options.compat else state.loss
    better = loss > state.loss_best
    pick = lambda where, a, b: jnp.where(threat_model.per_image(where, a), a, b)  # noqa: E731
    state = state._replace(
        adversarial=pick(wrong, state.x, state.adversarial),
        success=state.success | wrong,
        x_best=pick(better, state.x, state.x_best),
        gradient_best=pick(better, gradient, state.gradient_best),
        loss_best=jnp.where(better, loss, state.loss_best),
        rises=state.rises + ((j > 0) & (loss > before)),
        loss=loss,
    )
    halve = _review(state, length, options.rho)
    state = state._replace(
        x=pick(halve, state.x_best, state.x),
        step_size=jnp.where(halve, state.step_size / 2.0, state.step_size),
        reduced=jnp.where(length > 0, halve, state.reduced),
        loss_best_checked=jnp.where(length > 0, state.loss_best, state.loss_best_checked),
        rises=jnp.where(length > 0, 0, state.rises),
    )
    return state, pick(halve, state.gradient_best, gradient)


def _check(
    images: jax.Array,
    labels: Any,
    key: Any,
    targets: Any,
    soft: Any,
    start: Any,
    options: ApgdOptions,
):
    if (options.loss == _SOFT) != (soft is not None):
        raise ValueError(
            f"loss={options.loss!r}: {_SOFT!r}, and it alone, takes teacher_logits, [B,K]"
        )
    if options.loss == "targeted_dlr" and targets is None:
        raise ValueError("targets are None; the loss 'targeted_dlr' needs them, [B] int")
    if targets is not None:
        if options.loss != "targeted_dlr":
            raise ValueError(
                f"targets are given, but the loss is {options.loss!r}; use loss='targeted_dlr'"
            )
        checks.check_targets(targets, labels)
    if start is not None and checks.is_concrete(start) and not np.isfinite(start).all():
        raise ValueError("start holds NaN or infinite values")
    if key is None and (start is None or options.eot > 1):
        what = "draws a random start" if start is None else "gives a key to predict (eot > 1)"
        raise ValueError(f"key is None, but APGD {what}; pass a jax PRNG key")
    if start is not None and start.shape != images.shape:
        raise ValueError(f"start of shape {start.shape} for images of shape {images.shape}")


def apgd(
    predict: Callable[..., jax.Array],
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array,
    norm: str = "linf",
    targets: jax.Array | None = None,
    teacher_logits: jax.Array | None = None,
    start: jax.Array | None = None,
    **options: Any,
) -> ApgdResult:
    """One run of Auto-PGD: momentum, a step size that halves per image, return to the best iterate.

    The first step size is 2 eps. At the checkpoints (`checkpoint_lengths`) it halves where at most
    rho of the steps since the last one raised the loss, or where the best loss has not grown since
    and it was not halved then; such an image goes on from its best iterate. Everything follows
    fra31/auto-attack (commit a392200) but for two things: a given start is cut to the ball as well
    as to the range, and in L2 a tiny gradient is normalised too (there 1e-12 is added to its length).

    All steps run, for all images: 1 + steps forward and backward passes in one loop, of which the
    program holds one copy. On CPU stock convolutions, whose gradients are slow inside a loop, are
    rewritten (`convolutions.rewrite`).

    Args:
      predict: images [B,H,W,C] -> logits [B,K], pure, eval mode; with eot > 1 (images, key) ->
        logits, called with another key every time.
      images: [B,H,W,C] float32 in [0,1].
      labels: [B] int. An image that is misclassified when clean is attacked like any other, but only
        the iterates decide on its `success`.
      key: typed PRNG key, or [B] of them, one per image (the start of an image then depends on
        nothing but its key; predict gets keys made from the first one).
      eps: radius in pixel units (8/255); may be traced.
      norm: "linf" or "l2".
      targets: [B] int, of loss "targeted_dlr". Success is any misclassification.
      teacher_logits: [B,K], constant, of loss "teacher_kl".
      start: [B,H,W,C] first iterate in place of the random one.
      **options: fields of `ApgdOptions`: loss, steps, rho, eot, compat, trace.

    Returns:
      ApgdResult.

    Raises:
      ValueError: a bad argument, logits of a wrong shape, or too few classes for the loss.
    """
    threat = ThreatModel(eps, norm)
    images, labels, key = threat_model.check_batch(images, labels, key, threat, labelled=True)
    start = None if start is None else checks.array(start, "start")
    chosen = create(ApgdOptions, "apgd", options)
    _check(images, labels, key, targets, teacher_logits, start, chosen)
    threat = threat.astype(images.dtype)
    predict = checked(predict, images, *((jax.random.key(0),) if chosen.eot > 1 else ()))
    evaluate = _evaluator(predict, labels, targets, teacher_logits, key, chosen)

    def one_step(state: _State, inputs: tuple[jax.Array, jax.Array]):
        j, length = inputs
        gradient, value, wrong = evaluate(state.x, j)
        state, gradient = _after_evaluation(state, gradient, value, wrong, j, length, chosen)
        x, share = state.x, jnp.where(j == 0, 1.0, _MOMENTUM)
        direction = threat_model.ascent_direction(gradient, norm)
        plain = threat.cut(x + threat_model.per_image(state.step_size, x) * direction, images)
        moved = x + (plain - x) * share + (x - state.x_before) * (1.0 - share)
        state = state._replace(x=threat.cut(moved, images), x_before=x)
        return state, (value, state.loss_best, state.step_size) if chosen.trace else None

    x, batch = _first_iterate(start, key, images, threat), images.shape[0]
    row = jnp.zeros(batch, jnp.float32)
    state = _State(
        x=x, x_before=x, x_best=x, gradient_best=jnp.zeros_like(x), adversarial=images,
        success=jnp.zeros(batch, jnp.bool_), loss=row, loss_best=row - jnp.inf,
        loss_best_checked=row, rises=jnp.zeros(batch, jnp.int32),
        reduced=jnp.ones(batch, jnp.bool_), step_size=row + 2.0 * threat.eps,
    )  # fmt: skip
    schedule: Any = (jnp.arange(chosen.steps + 1), jnp.asarray(checkpoint_lengths(chosen.steps)))
    state, traces = jax.lax.scan(one_step, state, schedule)
    result = ApgdResult(state.adversarial, state.success, best=state.x_best)
    if traces is not None:
        result = result._replace(loss=traces[0], loss_best=traces[1], step_size=traces[2][:-1])
    return jax.lax.stop_gradient(result)


@dataclasses.dataclass(frozen=True)
class ApgdAttack(Attack):
    """Auto-PGD as an attack of its own, for training and selection: gives the iterate of the largest loss.

    In an evaluation the name runs AutoAttack's cascade, which stops at the first misclassified iterate.

    Attributes:
      steps: number of steps, at least 1.
      loss: "cross_entropy", "dlr" or "teacher_kl".
      start: "uniform", AutoAttack's random one, or "none" for the image itself.

    Raises:
      ValueError: on construction, for a bad value.
    """

    name: str
    label: str
    eps: float
    norm: str = "linf"
    steps: int = 10
    loss: str = "cross_entropy"
    start: str = "uniform"
    keys_per_image = True

    def __post_init__(self):
        """Checks every field."""
        self.threat  # noqa: B018 (for its checks)
        ApgdOptions(steps=self.steps)
        checks.choice(self.loss, "loss", (*LOSSES[:2], _SOFT))
        checks.choice(self.start, "start", ("uniform", "none"))

    @property
    def needs_labels(self) -> bool:
        """Whether `run` looks at the labels."""
        return self.loss != _SOFT

    @property
    def needs_teacher(self) -> str:
        """What `run` needs of a teacher."""
        return "logits" if self.loss == _SOFT else ""

    def run(
        self,
        predict: Predict,
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array,
        *,
        teacher_logits: jax.Array | None = None,
        **_: Any,
    ) -> jax.Array:
        """Runs the attack; see `Attack.run`."""
        return apgd(
            predict, images, labels, key, eps=self.eps, norm=self.norm, loss=self.loss,
            steps=self.steps, start=images if self.start == "none" else None,
            teacher_logits=teacher_logits if self.needs_teacher else None,
        ).best  # fmt: skip
