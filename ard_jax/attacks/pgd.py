"""Projected gradient attacks. Every one is a setting of `pgd`, named and with its paper's numbers.

All are called as attack(predict, images, labels, key, ...) -> x_adv, are pure, and jit with eps and
step_size as traced values; wrap the call in jax.jit when it is made more than once. `predict`
closes over batch statistics in eval mode, so an attack never changes them, unless `state` is used.

Options that all of them take:
  eps: radius in pixel units, [0,1] for usual images ("l2": length of the whole perturbation).
  step_size: in pixel units; None keeps the paper's ratio to eps.
  steps: static number of steps.
  start: "none", "uniform" or "gauss" (`threat_model.random_start`); or an array, the first iterate itself
    ([B,...], or [R,B,...] for restarts=R), taken as it is.
  restarts: independent starts, run side by side by vmap (memory grows with them). Per example the
    worst is kept: misclassified first, then the largest loss. The first restart is the run that
    restarts=1 would make, so more restarts are never weaker.
  norm: "linf" or "l2".
  loss: what is maximised (`objectives.make_objective`): "cross_entropy", "cw", "least_likely", "kl",
    "teacher_kl", "teacher_moving_kl", "squared" or "dice".
  confidence: of loss "cw", in logit units.
  targets: [B] int for loss "least_likely"; None takes the least likely class.
  sigma: of start "gauss", in pixel units.
  clip_start: cut a random start to the pixel range.
  clip_min, clip_max: the pixel range.
  order: of cutting to ball and range (`threat_model.ORDERS`).
  alpha_schedule, channel_mask_rho: step sizes that change over the steps, and channels that do not
    move (`loop.ascend`); both are off by default, no paper's training here uses them.
  teacher_logits: [B,K], of loss "teacher_kl" and of loss "dice" with dice="soft".
  teacher: images -> logits, of loss "teacher_moving_kl".
  state: None, or a pytree of arrays that every evaluation of the network in the loop updates (one a
    step): predict is then (images, state) -> (logits, state) and the attack returns (x', state). For
    train-mode BatchNorm inside the attack, or to count something over the iterates. One restart only.
  **dice_options: of loss "dice" (`dpgd`).
  unroll: of the loop (`loop.resolve_unroll`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ard_jax.attacks import loop, objectives, threat_model

Predict = Callable[..., Any]  # images -> logits, or (images, state) -> (logits, state)


def _starts(start, key, images, eps, restarts, norm, sigma, clip):
    """First iterates, [R,B,...]. Restart r has the key fold_in(key, r), whatever R is."""
    if not isinstance(start, str):
        start = jnp.asarray(start, images.dtype)
        start = start[None] if start.shape == images.shape else start
        if start.shape != (restarts, *images.shape):
            raise ValueError(
                f"start of shape {start.shape} for images of shape {images.shape} and "
                f"restarts={restarts}; give one start for each restart, or start='uniform'"
            )
        return start
    threat_model.check_choice("start", start, threat_model.STARTS)
    make = functools.partial(
        threat_model.random_start, start, images=images, eps=eps, norm=norm, sigma=sigma, clip=clip
    )
    if start == "none" or key is None:  # without a key random_start explains itself
        return jnp.broadcast_to(make(key=None), (restarts, *images.shape))
    keys = [jax.random.fold_in(key, r) for r in range(restarts)]
    return jnp.stack([make(key=k) for k in keys])


def _keep_worst(predict, objective, candidates, labels):
    """Of [R,B,...] candidates the worst per example: misclassified first, then the largest loss."""
    logits = jax.vmap(predict)(candidates)
    loss = jax.vmap(lambda x: objective(x, None, 0)[1][0])(candidates)  # the scores
    wrong = jnp.argmax(logits, axis=-1) != labels
    eligible = (wrong | ~jnp.any(wrong, axis=0)) & ~jnp.isnan(loss)
    best = jnp.argmax(jnp.where(eligible, loss, -jnp.inf), axis=0)
    index = best.reshape((1, -1) + (1,) * (candidates.ndim - 2))
    return jnp.take_along_axis(candidates, index, axis=0)[0]


def _check_combination(loss, labels, restarts, state, dice_options):
    """Refuses options that do not go together."""
    unknown = sorted(set(dice_options) - set(objectives.DICE_OPTIONS))
    if unknown:
        raise TypeError(f"unknown option {', '.join(unknown)}")
    if dice_options and loss != "dice":
        raise ValueError(f"{', '.join(sorted(dice_options))}: options of loss 'dice', not {loss!r}")
    objectives.check_dice_options(objectives.DICE_OPTIONS | dice_options)
    if restarts > 1 and state is not None:
        raise ValueError(f"restarts={restarts}: an attack with a state runs once; use restarts=1")
    if restarts > 1 and labels is None:
        raise ValueError(f"labels are None; restarts={restarts} needs them to keep the worst")


def pgd(  # noqa: D417 (the options are described at the top of this file)
    predict: Predict,
    images: jax.Array,
    labels: jax.Array | None,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array = 8 / 255,
    step_size: float | jax.Array | None = None,
    steps: int = 20,
    start: str | jax.Array = "uniform",
    restarts: int = 1,
    norm: str = "linf",
    loss: str = "cross_entropy",
    confidence: float = 50.0,
    targets: jax.Array | None = None,
    sigma: float = 0.001,
    clip_start: bool = True,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
    order: str = "range_then_ball",
    alpha_schedule: str = "const",
    channel_mask_rho: float = 0.0,
    teacher_logits: jax.Array | None = None,
    teacher: Callable[[jax.Array], jax.Array] | None = None,
    state: Any = None,
    unroll: int | bool | None = None,
    **dice_options: Any,
) -> jax.Array | tuple[jax.Array, Any]:
    """PGD (Madry et al. 2018). The defaults are CIARD's and MTARD's evaluation attack PGD_sat.

    Args:
      predict: images -> logits [B,K], pure, eval mode; see `state` for the other form.
      images: [B,H,W,C] float32 in [clip_min, clip_max].
      labels: [B] int; may be None for the losses `objectives.WITHOUT_LABELS` with one restart.
      key: typed PRNG key; needed for a random start only.
      The options: see the top of this file.

    Returns:
      [B,H,W,C] float32 with |x' - x| <= eps (up to rounding) and values in the range; with a state
      (that, the state after the last step).

    Raises:
      ValueError: a bad value, shape or dtype; the message names it.
    """
    threat_model.check_images(images, labels)
    threat_model.check_count("restarts", restarts, 1)
    threat_model.check_number("eps", eps)
    step_size = eps / 4 if step_size is None else step_size
    threat_model.check_threat(eps, step_size, steps, norm, clip_min, clip_max)
    _check_combination(loss, labels, restarts, state, dice_options)
    objective = objectives.make_objective(
        loss, predict, images, labels, state=state, steps=steps, confidence=confidence,
        targets=targets, teacher_logits=teacher_logits, teacher=teacher, dice_options=dice_options,
    )  # fmt: skip
    clip = (clip_min, clip_max) if clip_start else None
    starts = _starts(start, key, images, eps, restarts, norm, sigma, clip)
    run = functools.partial(
        loop.ascend, objective, images, eps=eps, step_size=step_size, steps=steps, norm=norm,
        clip_min=clip_min, clip_max=clip_max, order=order, alpha_schedule=alpha_schedule,
        channel_mask_rho=channel_mask_rho, unroll=unroll,
    )  # fmt: skip
    if restarts > 1:
        return _keep_worst(predict, objective, jax.vmap(lambda s: run(s)[0])(starts), labels)
    x_adv, state = run(starts[0], state)
    return x_adv if state is None else (x_adv, state)


def fgsm(
    predict: Predict,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array = 8 / 255,
    **options,
) -> jax.Array:
    """FGSM (Goodfellow et al. 2015): one step of length eps from the clean image, CE.

    Arguments, result and errors as `pgd`; `key` is not used.
    """
    options = {"step_size": eps, "steps": 1, "start": "none", "order": "ball_then_range"} | options
    return pgd(predict, images, labels, key, eps=eps, **options)


def bim(
    predict: Predict,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array = 8 / 255,
    steps: int = 10,
    **options,
) -> jax.Array:
    """BIM (Kurakin et al. 2017) as in torchattacks: 10 steps of eps/4 (2/255), no random start.

    Arguments, result and errors as `pgd`; `key` is not used.
    """
    options = {"start": "none", "order": "ball_then_range"} | options
    return pgd(predict, images, labels, key, eps=eps, steps=steps, **options)


def targeted_pgd(
    predict: Predict,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array = 8 / 255,
    steps: int = 10,
    targets: jax.Array | None = None,
    **options,
) -> jax.Array:
    """T-PGD: PGD towards the least likely class of the clean image, the true label excluded.

    torchattacks' PGD in targeted least-likely mode: 10 steps of eps/4 (2/255), uniform start.
    `targets` [B] int names other target classes. Arguments, result and errors otherwise as `pgd`.
    """
    options = {"loss": "least_likely", "order": "ball_then_range"} | options
    return pgd(predict, images, labels, key, eps=eps, steps=steps, targets=targets, **options)


def ciard_pgd(
    predict: Predict,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array = 8 / 255,
    steps: int = 10,
    **options,
) -> jax.Array:
    """Training attack of MTARD and CIARD: 10 steps of eps/4 (2/255) on CE.

    Start x + 0.001 N(0, I), not clipped before the first step; then ball, then range. Source:
    eminentgu/CIARD. Arguments, result and errors as `pgd`.
    """
    options = {"start": "gauss", "clip_start": False, "order": "ball_then_range"} | options
    return pgd(predict, images, labels, key, eps=eps, steps=steps, **options)


def trades_pgd(
    predict: Predict,
    images: jax.Array,
    labels: jax.Array | None = None,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array = 0.031,
    step_size: float | jax.Array | None = None,
    steps: int = 10,
    **options,
) -> jax.Array:
    """Training attack of TRADES: maximises KL(p(x) || p(x')), 10 steps of 0.007 at eps 0.031.

    Start x + 0.001 N(0, I), not clipped before the first step; then ball, then range. step_size
    None keeps the ratio 7/31 to eps. `labels` are not used. Source: yaodongyu/TRADES, trades.py.
    Arguments, result and errors otherwise as `pgd`.
    """
    threat_model.check_number("eps", eps)
    step_size = eps * (0.007 / 0.031) if step_size is None else step_size
    options = {
        "start": "gauss", "clip_start": False, "order": "ball_then_range", "loss": "kl",
    } | options  # fmt: skip
    return pgd(predict, images, labels, key, eps=eps, step_size=step_size, steps=steps, **options)
