"""Friendly PGD (Zhang et al. 2020, ICML, arXiv 2002.11242): an image stops soon after it is misclassified."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ard_jax import rng
from ard_jax.attacks import loop, objectives, threat_model
from ard_jax.attacks.attack import Attack, Predict
from ard_jax.attacks.threat_model import ThreatModel
from ard_jax.losses import checks


@dataclasses.dataclass(frozen=True)
class FriendlyAttack(Attack):
    """PGD on cross-entropy that freezes an image at the iterate at which it has been wrong too often.

    Attributes:
      name, label, eps, norm: as of every `Attack`.
      step_size: in pixel units.
      steps: most steps of an image.
      start: "none", "uniform" (cut to the pixel range) or "gauss".
      sigma: standard deviation of the noise that every step adds before the cut, and of start "gauss", in
        pixel units.
      patience: an image is frozen at its first iterate after so many misclassified ones that is misclassified
        too (tau); 0 for the first of all.

    Raises:
      ValueError: on construction, for a bad value.
    """

    name: str
    label: str
    eps: float
    step_size: float
    steps: int
    start: str = "uniform"
    norm: str = ThreatModel.norm
    sigma: float = 0.001
    patience: int = 0

    takes_state = True
    keys_per_image = True

    @property
    def numbers(self) -> dict[str, float]:
        """Radius and step size."""
        return {"eps": self.eps, "step_size": self.step_size}

    def __post_init__(self):
        """Checks every field."""
        threat = self.threat
        threat.check_length(self.step_size, "step_size")
        threat.check_length(self.sigma, "sigma")
        checks.count(self.steps, "steps", 1)
        checks.count(self.patience, "patience", 0)
        checks.choice(self.start, "start", threat_model.STARTS)

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
        patience: int | jax.Array | None = None,
        unroll: int | bool | None = None,
        state: Any = None,
        **ignored: Any,
    ) -> jax.Array | tuple[jax.Array, Any]:
        """Runs the attack; arguments and result as of `Attack.run`, but for these.

        Args:
          predict: see `Attack.run`.
          images: see `Attack.run`.
          labels: [B] int.
          key: needed for a random start and for the noise.
          eps: another radius; may be traced.
          step_size: another step size; may be traced.
          start: first iterate [B,H,W,C] in place of the random one.
          patience: another one, scalar; may be traced.
          unroll: see `Attack.run`.
          state: see `Attack.run`.
          **ignored: what other attacks need of a teacher.

        Raises:
          ValueError: a bad value, shape or dtype, or no key for random numbers.
        """
        threat = ThreatModel(self.eps if eps is None else eps, self.norm)
        images, labels, key = threat_model.check_batch(images, labels, key, threat, labelled=True)
        patience = self.patience if patience is None else patience
        step_size = self.step_size if step_size is None else step_size
        threat = threat.astype(images.dtype)

        def counting(x: jax.Array, carried: Any):
            inner, wrong = carried
            logits, inner = (predict(x), None) if inner is None else predict(x, inner)
            return logits, (inner, wrong + (jnp.argmax(logits, -1) != labels))

        carried = state, jnp.zeros(images.shape[0], jnp.int32)
        objective = objectives.make_objective(
            objectives.Loss("cross_entropy"), counting, images, labels, objectives.References(),
            state=carried,
        )  # fmt: skip

        def total(z: jax.Array, carried: Any):
            values, (_, carried) = objective(z, carried, jnp.zeros((), jnp.int32))
            return jnp.sum(values), carried

        def one_step(carry: tuple[jax.Array, Any], i: jax.Array):
            z, carried = carry
            gradient, carried = jax.lax.stop_gradient(jax.grad(total, has_aux=True)(z, carried))
            moved = z + step_size * threat_model.ascent_direction(gradient, self.norm)
            moved = threat.cut(moved + self._noise(key, i, z), images)
            frozen = threat_model.per_image(carried[1] > patience, z)
            return (jnp.where(frozen, z, moved), carried), None

        first = (
            self._first(key, images, threat.eps)
            if start is None
            else jnp.asarray(start, images.dtype)
        )
        if first.shape != images.shape:
            raise ValueError(f"start of shape {first.shape} for images of shape {images.shape}")
        (z, (state, _)), _ = jax.lax.scan(
            one_step, (jax.lax.stop_gradient(first), carried), jnp.arange(self.steps),
            unroll=loop.resolve_unroll(self.steps, unroll),
        )  # fmt: skip
        return z if state is None else (z, state)

    def _first(self, key: Any, images: jax.Array, eps: float | jax.Array) -> jax.Array:
        key = None if key is None else rng.fold_in(key, self.steps)  # the steps have those before
        return threat_model.random_start(
            self.start, key, images, eps, norm=self.norm, sigma=self.sigma, clip=(0.0, 1.0)
        )

    def _noise(self, key: Any, step: jax.Array, like: jax.Array) -> jax.Array | float:
        if not self.sigma:
            return 0.0
        if key is None:
            raise ValueError(
                f"sigma={self.sigma} draws random numbers but key is None; pass a jax PRNG key"
            )

        def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.normal(key, shape, like.dtype)

        return self.sigma * rng.draw(normal, rng.fold_in(key, step), like.shape)
