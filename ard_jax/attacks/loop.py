"""The projected-gradient loop that every gradient attack here runs."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax.attacks import threat_model
from ard_jax.attacks.attack import create
from ard_jax.attacks.threat_model import ThreatModel
from ard_jax.losses import checks

ALPHA_SCHEDULES = ("const", "linear", "cosine", "apgd")
_MOST_UNROLLED = 20
_APGD_RHO = 0.75  # share of steps since the last checkpoint that must have gained


def resolve_unroll(steps: int, unroll: int | bool | None) -> int | bool:
    """`unroll` argument of lax.scan; None chooses by backend.

    XLA:CPU runs the gradients of ordinary convolutions 7 to 35 times slower inside a loop than
    outside, so up to 20 steps are unrolled completely there. A network whose convolutions avoid
    that (all of `ard_jax.models`) is better off with unroll=1 everywhere: the program is smaller.
    On other backends None means 1.
    """
    if unroll is not None:
        if not isinstance(unroll, int) or unroll < 0:
            raise ValueError(f"unroll={unroll!r}: must be True, False, None or an integer >= 1")
        return unroll
    return True if jax.default_backend() == "cpu" and steps <= _MOST_UNROLLED else 1


def apgd_checkpoints(steps: int) -> list[int]:
    """Steps at which Auto-PGD reviews its step size (Croce and Hein 2020): ceil(p_j steps).

    p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06). Step 0 is not listed.
    """
    found, before, now = [], 0.0, 0.22
    while now < 1.0:
        found.append(math.ceil(round(now * steps, 6)))  # 0.57 * 100 is a little over 57
        before, now = now, now + max(now - before - 0.03, 0.06)
    return sorted({c for c in found if 0 < c < steps})


def _sum_of(objective: Callable, batch: int):
    """The objective's sum over the batch, with its shape checked."""

    def total(z: jax.Array, state: Any, i: jax.Array):
        values, aux = objective(z, state, i)
        if (shape := np.shape(values)) != (batch,):
            raise ValueError(
                f"the objective returned shape {shape} for {batch} images; it must return "
                "one value per example"
            )
        if not jnp.issubdtype(kind := jnp.result_type(values), jnp.floating):
            raise ValueError(
                f"the objective returned {kind}; it must return floats, with a gradient"
            )
        return jnp.sum(values), aux

    return total


def _fixed_factors(schedule: str, steps: int):
    """Step-size factors c_i of the schedules that do not look at the objective."""
    i = np.arange(steps)
    if schedule == "linear":
        return jnp.asarray(1.0 - i / steps, jnp.float32)
    return jnp.asarray((1.0 + np.cos(np.pi * i / steps)) / 2.0, jnp.float32)


def _halved(memory: tuple[jax.Array, ...], score: jax.Array, i: jax.Array, steps: int):
    """Auto-PGD's halving per image. memory = (factor, last score, gains since the checkpoint)."""
    factor, last, gains = memory
    gains = gains + (score > last)
    checkpoints, length = apgd_checkpoints(steps), np.zeros(steps, np.float32)
    for before, now in zip([0, *checkpoints], checkpoints, strict=False):
        length[now] = now - before
    length = jnp.asarray(length)[i]  # 0 where step i is no checkpoint
    factor = jnp.where(gains < _APGD_RHO * length, factor / 2.0, factor)
    return factor, score, jnp.where(length > 0, 0.0, gains)


def _channel_mask(gradient: jax.Array, rho: float):
    """1 for the channels whose mean |gradient| is at least rho times that of the largest one."""
    size = jnp.mean(jnp.abs(gradient), axis=tuple(range(1, gradient.ndim - 1)), keepdims=True)
    kept = size >= rho * jnp.max(size, axis=-1, keepdims=True)
    return kept.astype(gradient.dtype)


def ascend(  # noqa: D417 (the other arguments are those of `pgd_loop`)
    objective: Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, tuple[jax.Array, Any]]],
    x: jax.Array,
    x_start: jax.Array,
    state: Any = None,
    *,
    threat: ThreatModel,
    step_size: float | jax.Array,
    steps: int,
    alpha_schedule: str = "const",
    channel_mask_rho: float = 0.0,
    unroll: int | bool | None = None,
) -> tuple[jax.Array, Any]:
    """`pgd_loop` with a state that every evaluation of the objective updates, once a step.

    Args:
      objective: (x' [B,...], state, i) -> (values [B], (score [B], state)); the sum of the values
        is ascended. i is the step's number from 0 (int32, traced). Scores are values that may be
        compared between steps; only alpha_schedule "apgd" reads them.
      state: any pytree of arrays, or None.
      threat: ball, range, and the order of cutting to them.
      alpha_schedule: step i has the length step_size * c_i. "const": c_i = 1. "linear":
        c_i = 1 - i/steps. "cosine": (1 + cos(pi i/steps))/2. "apgd": c_i is kept per image and
        halves at Auto-PGD's checkpoints where fewer than 75 % of the steps since the last one
        raised the score (only the halving of Auto-PGD; no momentum, no return to the best iterate).
      channel_mask_rho: a channel whose mean |gradient| is under rho times that of the image's
        largest channel does not move; 0 moves all.
      The other arguments: as `pgd_loop`.

    Returns:
      (x' [B,...], the state after the last step); no gradient flows through either.

    Raises:
      ValueError: bad static values, or an objective that does not return [B].
    """
    check_steps(step_size, steps, alpha_schedule, channel_mask_rho)
    if x_start.shape != x.shape:
        raise ValueError(f"start of shape {x_start.shape} for images of shape {x.shape}")
    threat, step_size = threat.astype(x.dtype), jnp.asarray(step_size, x.dtype)
    total, batch = _sum_of(objective, x.shape[0]), x.shape[0]
    per_image = (batch,) + (1,) * (x.ndim - 1)

    def one_step(carry: tuple, i: jax.Array):
        z, state, memory = carry
        gradient, (score, state) = jax.grad(total, has_aux=True)(z, state, i)
        # The attack is a constant for whoever differentiates through its caller.
        gradient, score, state = jax.lax.stop_gradient((gradient, score, state))
        if channel_mask_rho:
            gradient = gradient * _channel_mask(gradient, channel_mask_rho)
        length = step_size
        if alpha_schedule == "apgd":
            memory = _halved(memory, score, i, steps)
            length = step_size * memory[0].reshape(per_image)
        elif alpha_schedule != "const":
            length = step_size * _fixed_factors(alpha_schedule, steps)[i]
        z = z + length * threat_model.ascent_direction(gradient, threat.norm)
        return (threat.cut(z, x), state, memory), None

    z = jax.lax.stop_gradient(x_start.astype(x.dtype))
    if steps == 0:
        z = threat.cut(z, x)
    else:
        memory = None
        if alpha_schedule == "apgd":
            # Nothing comes before iterate 0, so it is no gain.
            memory = (jnp.ones(batch), jnp.full(batch, jnp.inf), jnp.zeros(batch))
        (z, state, _), _ = jax.lax.scan(
            one_step, (z, state, memory), jnp.arange(steps), unroll=resolve_unroll(steps, unroll)
        )
    if threat.order == "range_at_end":
        z = threat.clip(z)
    return jax.lax.stop_gradient((z, state))


def check_steps(step_size: Any, steps: int, alpha_schedule: str, channel_mask_rho: float) -> None:
    """Raises ValueError for a bad value; a traced step_size passes."""
    checks.count(steps, "steps", 0)
    checks.number(step_size, "step_size")
    checks.choice(alpha_schedule, "alpha_schedule", ALPHA_SCHEDULES)
    checks.number(channel_mask_rho, "channel_mask_rho", 0.0, 1.0)


def pgd_loop(
    objective: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    x_start: jax.Array,
    *,
    eps: float | jax.Array,
    step_size: float | jax.Array,
    steps: int,
    unroll: int | bool | None = None,
    **options: Any,
) -> jax.Array:
    """Maximises a per-example objective inside the eps-ball by `steps` steps of constant size.

    x' <- cut(x' + step_size * direction), direction = sign ("linf") or normalised ("l2") gradient
    of the SUM of the objective. The result is a constant for later gradients. Only x' is carried:
    the memory is that of one backward pass.

    Args:
      objective: x' [B,...] -> [B], the loss to be maximised; pure (networks in eval mode).
      x: [B,...] float32 clean images, centre of the ball.
      x_start: [B,...] first iterate; used as it is, even outside ball or range (TRADES).
      eps: radius in pixel units; may be traced.
      step_size: length of a step in pixel units; may be traced.
      steps: static; 0 returns `x_start` cut to ball and range (x itself when x_start is x).
      unroll: of lax.scan; None chooses by backend (`resolve_unroll`).
      **options: norm, clip_min, clip_max and order of `threat_model.ThreatModel`.

    Returns:
      [B,...] like x, with |x' - x| <= eps up to rounding, in the range if x is.

    Raises:
      ValueError: bad static values, or an objective that does not return [B].
    """

    def stateless(z: jax.Array, state: Any, i: jax.Array):
        values = objective(z)
        return values, (values, state)

    threat = create(ThreatModel, "pgd_loop", options, eps=eps)
    if not callable(objective):
        raise ValueError(f"objective is {type(objective).__name__}; give a function x' -> [B]")
    x, x_start = (jnp.asarray(checks.float_images(one)) for one in (x, x_start))
    threat.check_reach(x.shape[1:])
    threat.check_length(step_size, "step_size")
    for name, value in (("eps", eps), ("step_size", step_size)):
        if isinstance(value, int | float) and value == 0:
            warnings.warn(
                f"pgd_loop: {name}=0, so no image can change; is 8/255 meant, where 8//255 is 0?",
                stacklevel=2,
            )
    return ascend(
        stateless, x, x_start, threat=threat, step_size=step_size, steps=steps, unroll=unroll
    )[0]
