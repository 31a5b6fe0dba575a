"""Projected gradient attacks as one record; `named` has the papers' settings as functions."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import rng
from ard_jax.attacks import loop, objectives, threat_model
from ard_jax.attacks.attack import Attack, Predict, create, part_of
from ard_jax.attacks.threat_model import ThreatModel
from ard_jax.losses import checks


def _keep_worst(predict: Predict, objective: Callable, candidates: jax.Array, labels: jax.Array):
    """Of [R,B,...] candidates the worst per example: misclassified first, then the largest loss."""
    logits = jax.vmap(predict)(candidates)
    loss = jax.vmap(lambda x: objective(x, None, 0)[1][0])(candidates)  # the scores
    wrong = jnp.argmax(logits, axis=-1) != labels
    eligible = (wrong | ~jnp.any(wrong, axis=0)) & ~jnp.isnan(loss)
    best = jnp.argmax(jnp.where(eligible, loss, -jnp.inf), axis=0)
    index = best.reshape((1, -1) + (1,) * (candidates.ndim - 2))
    return jnp.take_along_axis(candidates, index, axis=0)[0]


_LEAST_REACH = 0.01  # of eps
# Fields that may differ between two runs of one compiled program.
_TRACED = ("name", "label", "eps", "step_size")


@dataclasses.dataclass(frozen=True)
class PgdAttack(Attack):
    """A projected gradient attack with all its numbers.

    Attributes:
      name, label, eps, norm: as of every `Attack`.
      step_size: in pixel units.
      steps: number of steps.
      loss: what is maximised (`objectives.Loss`).
      start: "none", "uniform" or "gauss".
      restarts: independent starts, of which the worst is kept per example.
      order, clip_min, clip_max: of `threat_model.ThreatModel`.
      sigma: of start "gauss", in pixel units.
      start_radius: of start "uniform", as a part of eps.
      clip_start: cut a random start to the pixel range.
      alpha_schedule: how the step size changes over the steps (`loop.ascend`).
      channel_mask_rho: channels with less gradient than this part of the largest do not move.
      confidence, linear_weight, lambda_schedule, lambda_value, dice, dice_form, dice_groups, smoothing: of
        the loss (`objectives.Loss`).

    Raises:
      ValueError: on construction, for a bad value; the message names it and the fix.
    """

    name: str
    label: str
    eps: float
    step_size: float
    steps: int
    loss: str = "cross_entropy"
    start: str = "none"
    restarts: int = 1
    norm: str = ThreatModel.norm
    order: str = ThreatModel.order
    confidence: float = cast(float, objectives.Loss.confidence)
    sigma: float = 0.001
    start_radius: float = 1.0
    clip_start: bool = True
    clip_min: float = ThreatModel.clip_min
    clip_max: float = ThreatModel.clip_max
    alpha_schedule: str = "const"
    channel_mask_rho: float = 0.0
    lambda_schedule: str = objectives.Loss.lambda_schedule
    lambda_value: float = objectives.Loss.lambda_value
    dice: str = objectives.Loss.dice
    dice_form: str = objectives.Loss.dice_form
    dice_groups: int = objectives.Loss.dice_groups
    smoothing: float = objectives.Loss.smoothing
    linear_weight: float = objectives.Loss.linear_weight

    def __post_init__(self):
        """Checks every field."""
        try:
            for name in ("eps", "step_size"):
                threat_model.check_static(getattr(self, name), name)
            threat = part_of(self, ThreatModel)
            threat.check_length(self.step_size, "step_size")
            threat.check_length(self.sigma, "sigma")
            checks.number(self.start_radius, "start_radius")
            part_of(self, objectives.Loss)
            loop.check_steps(self.step_size, self.steps, self.alpha_schedule, self.channel_mask_rho)
            self._check_reach()
            checks.count(self.restarts, "restarts", 1)
            checks.choice(self.start, "start", threat_model.STARTS)
            checks.flag(self.clip_start, "clip_start")
            if self.sigma != PgdAttack.sigma and self.start != "gauss":
                raise ValueError(f"sigma={self.sigma}: of start='gauss', not {self.start!r}")
            if self.start == "none" and (self.restarts > 1 or self.start_radius != 1):
                what = "restarts" if self.restarts > 1 else "start_radius"
                raise ValueError(
                    f"{what}={getattr(self, what)}: of a random start, but start='none': every restart would "
                    "be the same; give start='uniform' too"
                )
        except ValueError as error:
            raise ValueError(f"attack {self.name!r}: {error}") from None

    takes_state = True
    keys_per_image = True

    def _check_reach(self) -> None:
        if self.steps * self.step_size < _LEAST_REACH * self.eps:
            raise ValueError(
                f"steps={self.steps} of step_size={self.step_size} go {self.steps * self.step_size:.2g} far, "
                f"next to nothing of eps={self.eps}: that is no attack; leave them out for the paper's"
            )

    @property
    def tileable(self) -> bool:
        """False where restarts run side by side, or the Dice is that of a whole batch."""
        return self.restarts == 1 and (self.loss != "dice" or self.dice != "batch")

    @property
    def bounded(self) -> bool:
        """False for an attack that trains alone, because it leaves the ball."""
        return self.order != "range_only"

    @property
    def targeted(self) -> bool:
        """Whether it moves images towards their least likely class."""
        return self.loss == "least_likely"

    @property
    def needs_labels(self) -> bool:
        """Whether `run` looks at the labels."""
        return self.loss not in objectives.WITHOUT_LABELS or self.restarts > 1

    @property
    def needs_teacher(self) -> str:
        """What `run` needs of a teacher: "" nothing, "logits" teacher_logits, "network" teacher."""
        return part_of(self, objectives.Loss).needs_teacher

    @property
    def program(self) -> tuple[tuple[str, Any], ...]:
        """Everything static, hashable: attacks with equal programs share one compiled function.

        Left out are names, eps and step_size, which `run` takes as traced values.
        """
        fields = dataclasses.fields(self)
        return tuple((f.name, getattr(self, f.name)) for f in fields if f.name not in _TRACED)

    @property
    def numbers(self) -> dict[str, float]:
        """Radius and step size."""
        return {"eps": self.eps, "step_size": self.step_size}

    def with_eps(self, eps: float) -> "PgdAttack":
        """The same attack at another radius, the step size scaled with it."""
        return dataclasses.replace(self, eps=eps, step_size=self._scaled_step(eps))

    def _scaled_step(self, eps: float | jax.Array):
        checks.number(eps, "eps")
        if self.eps == 0:
            raise ValueError(
                f"attack {self.name!r} has eps=0, so its step size cannot be scaled to eps={eps}; "
                "give step_size too"
            )
        return self.step_size / self.eps * eps

    def own_start(
        self, images: jax.Array, key: jax.Array | None, eps: float | jax.Array | None = None
    ) -> jax.Array:
        """The first iterate [B,H,W,C] that `run` takes with this key and eps, for one restart."""
        key = None if key is None else rng.fold_in(key, 0)
        return self._random_start(key, images, self.eps if eps is None else eps)

    def run(
        self,
        predict: Predict,
        images: jax.Array,
        labels: jax.Array | None,
        key: jax.Array | None = None,
        *,
        eps: float | jax.Array | None = None,
        step_size: float | jax.Array | None = None,
        start: jax.Array | None = None,
        unroll: int | bool | None = None,
        state: Any = None,
        **references: Any,
    ) -> jax.Array | tuple[jax.Array, Any]:
        """Runs the attack.

        Args:
          predict: images -> logits [B,K], pure, eval mode; with a state (images, state) ->
            (logits, state).
          images: [B,H,W,C] float32 in [clip_min, clip_max].
          labels: [B] int; may be None for the losses `objectives.WITHOUT_LABELS`.
          key: typed PRNG key; needed for a random start.
          eps: other radius, may be traced; without `step_size` the step scales with it.
          step_size: other step size, may be traced.
          start: first iterate [B,H,W,C] (or [R,B,H,W,C]) in place of the random one.
          unroll: see `loop.resolve_unroll`.
          state: pytree that predict updates once a step, threaded through the attack; None for a
            stateless predict. Not with restarts.
          **references: of `objectives.References`: targets of loss "least_likely"; teacher_logits or
            teacher, as `needs_teacher` says.

        Returns:
          [B,H,W,C] float32 with |x' - x| <= eps (up to rounding; not of order "range_only") and values in
          the range; with a state (that, the state after the last step).

        Raises:
          ValueError: a bad value, shape or dtype, or a combination that does not exist; the message names it.
        """
        if step_size is None:
            step_size = self.step_size if eps is None else self._scaled_step(eps)
        eps = self.eps if eps is None else eps
        threat = part_of(self, ThreatModel, eps=eps)
        images, labels, key = threat_model.check_batch(images, labels, key, threat)
        threat.check_length(step_size, "step_size")
        self._check_combination(labels, state)
        given = create(objectives.References, self.name, references)
        objective = objectives.make_objective(
            part_of(self, objectives.Loss), predict, images, labels, given, state=state, steps=self.steps
        )  # fmt: skip

        def climb(start: jax.Array, state: Any = None):
            return loop.ascend(
                objective, images, start, state, threat=threat, step_size=step_size, steps=self.steps,
                alpha_schedule=self.alpha_schedule, channel_mask_rho=self.channel_mask_rho, unroll=unroll,
            )  # fmt: skip

        starts = self._starts(start, key, images, eps)
        if self.restarts > 1:
            assert labels is not None  # `_check_combination`
            ends = jax.vmap(lambda s: climb(s)[0])(starts)
            return _keep_worst(predict, objective, ends, labels)
        x_adv, state = climb(starts[0], state)
        return x_adv if state is None else (x_adv, state)

    def _check_combination(self, labels: Any, state: Any) -> None:
        if self.restarts > 1 and state is not None:
            raise ValueError(
                f"restarts={self.restarts}: an attack with a state runs once; use restarts=1"
            )
        if self.restarts > 1 and labels is None:
            raise ValueError(
                f"labels are None; restarts={self.restarts} needs them to keep the worst"
            )

    def _starts(self, start: Any, key: Any, images: jax.Array, eps: Any) -> jax.Array:
        """First iterates, [R,B,...]. Restart r has the key fold_in(key, r), whatever R is."""
        if start is not None:
            start = jnp.asarray(checks.array(start, "start"), images.dtype)
            if checks.is_concrete(start) and not np.isfinite(start).all():
                raise ValueError("start holds NaN or infinite values")
            start = start[None] if start.shape == images.shape else start
            if start.shape != (self.restarts, *images.shape):
                raise ValueError(
                    f"start of shape {start.shape} for images of shape {images.shape} and "
                    f"restarts={self.restarts}; give one start for each restart, or start='uniform'"
                )
            return start
        if self.start == "none" or key is None:  # without a key random_start explains itself
            one = self._random_start(None, images, eps)
            return jnp.broadcast_to(one, (self.restarts, *images.shape))
        keys = [rng.fold_in(key, r) for r in range(self.restarts)]
        return jnp.stack([self._random_start(k, images, eps) for k in keys])

    def _random_start(self, key: Any, images: jax.Array, eps: Any) -> jax.Array:
        clip = (self.clip_min, self.clip_max) if self.clip_start else None
        radius = self.start_radius * eps
        return threat_model.random_start(
            self.start, key, images, radius, norm=self.norm, sigma=self.sigma, clip=clip
        )
