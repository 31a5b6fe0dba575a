"""The projected-gradient loop that every gradient attack here runs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ard_jax.attacks import base

_MOST_UNROLLED = 20


def resolve_unroll(steps: int, unroll: int | bool | None) -> int | bool:
    """`unroll` argument of lax.scan; None chooses by backend.

    XLA:CPU runs the gradients of ordinary convolutions 7 to 35 times slower inside a loop than
    outside, so up to 20 steps are unrolled completely there. A network whose convolutions avoid
    that (all of `ard_jax.models`) is better off with unroll=1 everywhere: the program is smaller.
    On other backends None means 1.
    """
    if unroll is not None:
        return unroll
    return True if jax.default_backend() == "cpu" and steps <= _MOST_UNROLLED else 1


def _cut(z, x, eps, norm, order, clip):
    """`z` cut back to the ball around `x` and to the range, in the given order."""
    if order == "range_then_ball":
        return base.project(jnp.clip(z, *clip), x, eps, norm)
    z = base.project(z, x, eps, norm)
    return z if order == "range_at_end" else jnp.clip(z, *clip)


def _sum_of(objective, batch):
    """The objective's sum over the batch, with its shape checked."""

    def total(z):
        values = objective(z)
        if values.shape != (batch,):
            raise ValueError(
                f"the objective returned shape {values.shape} for {batch} images; it must return "
                "one value per example"
            )
        return jnp.sum(values)

    return total


def pgd_loop(
    objective: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    x_start: jax.Array,
    *,
    eps: float | jax.Array,
    step_size: float | jax.Array,
    steps: int,
    norm: str = "linf",
    clip_min: float = 0.0,
    clip_max: float = 1.0,
    order: str = "ball_then_range",
    unroll: int | bool | None = None,
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
      norm: "linf" or "l2".
      clip_min: lowest pixel value.
      clip_max: highest pixel value.
      order: one of `base.ORDERS`.
      unroll: of lax.scan; None chooses by backend (`resolve_unroll`).

    Returns:
      [B,...] like x, with |x' - x| <= eps up to rounding, in the range if x is.

    Raises:
      ValueError: bad static values, or an objective that does not return [B].
    """
    base.check_threat(eps, step_size, steps, norm, clip_min, clip_max)
    base.check_choice("order", order, base.ORDERS)
    if x_start.shape != x.shape:
        raise ValueError(f"start of shape {x_start.shape} for images of shape {x.shape}")
    eps, step_size = jnp.asarray(eps, x.dtype), jnp.asarray(step_size, x.dtype)
    total, clip = _sum_of(objective, x.shape[0]), (clip_min, clip_max)

    def one_step(z, _):
        # The attack is a constant for whoever differentiates through its caller.
        gradient = jax.lax.stop_gradient(jax.grad(total)(z))
        z = z + step_size * base.ascent_direction(gradient, norm)
        return _cut(z, x, eps, norm, order, clip), None

    z = jax.lax.stop_gradient(x_start.astype(x.dtype))
    if steps == 0:
        z = _cut(z, x, eps, norm, order, clip)
    else:
        z, _ = jax.lax.scan(one_step, z, None, steps, unroll=resolve_unroll(steps, unroll))
    if order == "range_at_end":
        z = jnp.clip(z, *clip)
    return jax.lax.stop_gradient(z)
