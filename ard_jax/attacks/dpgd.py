"""DPGD: projected gradient ascent on a soft Dice loss, the attack of DARD (arXiv 2509.11525)."""

from typing import Any

import jax

from ard_jax.attacks.pgd import Predict, pgd


def dpgd(
    predict: Predict,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array = 8 / 255,
    step_size: float | jax.Array | None = None,
    steps: int = 10,
    start: str | jax.Array = "none",
    lambda_schedule: str = "paper",
    lambda_value: float = 0.25,
    dice: str = "batch",
    dice_form: str = "stable",
    dice_groups: int = 1,
    smoothing: float = 1e-5,
    alpha_schedule: str = "const",
    channel_mask_rho: float = 0.0,
    teacher_logits: jax.Array | None = None,
    **options: Any,
) -> jax.Array | tuple[jax.Array, Any]:
    """Linf PGD that ascends J_i = (1 - lambda_i) L(right) + lambda_i L(misclassified).

    L is the soft Dice loss (`ard_jax.losses.dice_loss`) of the images that the network gets right,
    and of those that it gets wrong, at the current iterate x'_i; the sets are found anew in every
    step. i = 0..T-1, lambda_i = i/(2T), hard labels, no random start, constant step eps/4 (2/255),
    last iterate. In pixel space; the public scripts work on normalised images with eps and step
    divided by each channel's deviation, which is the same because only the sign is used.

    What lambda does: almost nothing. Every image is in one of the two sets, so lambda_i is one
    positive factor on its whole gradient, which the sign removes: with evaluation-mode BatchNorm the
    values 0.05, 0.25 and 0.45 give the same steps. Only its sign matters: lambda_i = 0 (step 0 of
    "paper") leaves misclassified images where they are, and lambda_i < 0 (step 0 of "cad") moves them
    back towards their label. With train-mode BatchNorm (`state`) every image moves the others through
    the batch statistics, and the value does matter.

    So DPGD is PGD without random start on a Dice loss whose scale two sums over the batch set: with
    dice="batch" the result depends on the size, the composition and the padding of the batch. Under
    jit with a sharded batch the sums are global.

    Do not use it as the only attack of a report. Where a network is very confident the gradient of
    the Dice loss underflows in float32 (an image on its own: at a gap of the logits of about 43), the
    step is sign(0) = 0, and without a random start the image never moves: that is gradient masking.

    Args:
      predict: images -> logits [B,K], pure; with `state` as in `pgd`.
      images: [B,H,W,C] float32 in [0,1].
      labels: [B] int.
      key: typed PRNG key; needed for start "uniform" only.
      eps: radius in pixel units.
      step_size: in pixel units; None is eps/4.
      steps: T, static.
      start: "none", or "uniform" (the strong preset), or an array as in `pgd`.
      lambda_schedule: "paper": i/(2T). "cad": (i-1)/(2T), the CIFAR-100 scripts' off-by-one. "const":
        `lambda_value` in every step, for ablation.
      lambda_value: of "const"; 0.25 is the middle of the paper's range.
      dice: "batch": squared Dice, one scalar per set, as released. "per_sample": every image has its
        own, so batch mates and padding do not matter; for evaluation. "unsquared": 1 - p_y. "soft":
        per image towards softmax(teacher_logits); the sets still follow the labels.
      dice_form: "stable", or "plain" as released, which is inexact from a gap of 15 on.
      dice_groups: number of equal runs of consecutive images with a Dice of their own. 1: the whole
        batch. The number of devices gives the Dice per shard of data-parallel training.
      smoothing: s of the Dice loss.
      alpha_schedule: "const", "linear", "cosine" or "apgd" (`loop.ascend`). The paper's summaries
        speak of a dynamic step size, the scripts have none; the last three are our reading.
      channel_mask_rho: channels with less than this part of the largest channel's mean |gradient| do
        not move; 0 is off. Likewise our reading of "channel-wise gradient mask".
      teacher_logits: [B,K], for dice="soft".
      **options: of `pgd` (norm, restarts, state, unroll, ...).

    Returns:
      [B,H,W,C] float32; with `state` (that, the state after the last step).

    Raises:
      ValueError: as `pgd`.
    """
    options = {"order": "ball_then_range"} | options
    return pgd(
        predict, images, labels, key, eps=eps, step_size=step_size, steps=steps, start=start,
        loss="dice", lambda_schedule=lambda_schedule, lambda_value=lambda_value, dice=dice,
        dice_form=dice_form, dice_groups=dice_groups, smoothing=smoothing,
        alpha_schedule=alpha_schedule, channel_mask_rho=channel_mask_rho,
        teacher_logits=teacher_logits, **options,
    )  # fmt: skip
