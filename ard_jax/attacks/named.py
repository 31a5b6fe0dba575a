"""The papers' attacks as functions: shorthands for attacks of the registry, which has their numbers.

All are called as attack(predict, images, labels, key, ...) -> x_adv, are pure, and jit with eps and step_size
as traced values. Options are the fields of `projected_gradient.PgdAttack` and the arguments of its `run`;
`start` may be an array, the first iterate itself ([B,...], or [R,B,...] for restarts=R). Result and errors as
`PgdAttack.run`.
"""

from collections.abc import Callable
from typing import Any, cast

import jax

from ard_jax.attacks.attack import Predict
from ard_jax.attacks.projected_gradient import PgdAttack
from ard_jax.attacks.registry import make
from ard_jax.losses import checks

# Arguments of `PgdAttack.run`; every other option is a field of the record.
_RUN = ("step_size", "targets", "teacher_logits", "teacher", "state", "unroll")


def _run(
    name: str,
    predict: Predict,
    images: jax.Array,
    labels: jax.Array | None,
    key: jax.Array | None,
    eps: float | jax.Array,
    options: dict[str, Any],
) -> Any:
    arguments = {k: options.pop(k) for k in _RUN if k in options}
    if "start" in options and not isinstance(options["start"], str):
        arguments["start"] = options.pop("start")
    if isinstance(eps, jax.Array):  # traced, or to be: the record holds Python numbers
        attack = cast(PgdAttack, make(name, **options))
        checks.number(eps, "eps")
        return attack(predict, images, labels, key, eps=eps, **arguments)
    if not isinstance(arguments.get("step_size"), jax.Array | None):
        options["step_size"] = arguments.pop("step_size")
    return make(name, eps=eps, **options)(predict, images, labels, key, **arguments)


def _function(attack: str, name: str, doc: str, eps: float = 8 / 255) -> Callable[..., Any]:
    """Returns the function `name` that runs the registry's `attack`; `eps` is its default radius."""
    default = eps

    def run(
        predict: Predict,
        images: jax.Array,
        labels: jax.Array | None = None,
        key: jax.Array | None = None,
        *,
        eps: float | jax.Array = default,
        **options: Any,
    ) -> Any:
        return _run(attack, predict, images, labels, key, eps, options)

    run.__name__, run.__qualname__, run.__doc__ = name, name, doc
    return run


pgd = _function(
    "pgd_sat",
    "pgd",
    """PGD (Madry et al. 2018). The defaults are CIARD's and MTARD's evaluation attack PGD_sat.

20 steps of eps/4 from a uniform start on CE, cut to the range, then to the ball.
""",
)
fgsm = _function(
    "fgsm",
    "fgsm",
    """FGSM (Goodfellow et al. 2015): one step of length eps from the clean image, CE.""",
)
bim = _function(
    "bim",
    "bim",
    """BIM (Kurakin et al. 2017) as in torchattacks: 10 steps of eps/4 (2/255), no random start.""",
)
targeted_pgd = _function(
    "tpgd",
    "targeted_pgd",
    """T-PGD: PGD towards the least likely class of the clean image, the true label excluded.

torchattacks' PGD in targeted least-likely mode: 10 steps of eps/4 (2/255), uniform start.
`targets` [B] int names other target classes.
""",
)
ciard_pgd = _function(
    "ciard_train",
    "ciard_pgd",
    """Training attack of MTARD and CIARD: 10 steps of eps/4 (2/255) on CE.

Start x + 0.001 N(0, I), not clipped before the first step; then ball, then range. Source:
eminentgu/CIARD.
""",
)
trades_pgd = _function(
    "trades_train",
    "trades_pgd",
    """Training attack of TRADES: maximises KL(p(x) || p(x')), 10 steps of 0.007 at eps 0.031.

Start x + 0.001 N(0, I), not clipped before the first step; then ball, then range. The step keeps the
ratio 7/31 to eps. `labels` are not used. Source: yaodongyu/TRADES, trades.py.
""",
    eps=0.031,
)
cw_linf = _function(
    "cw_inf",
    "cw_linf",
    """CW_inf: minimises max(z_y - max_{j != y} z_j + confidence, 0): 30 steps of eps/4 (2/255).

As CIARD's evaluation script: zero start; the perturbation is cut to eps after every step, the
image to [0,1] only once at the end, so that the network sees values slightly outside the range
on the way. The number of classes is that of the logits (hard-coded to 10 in the original).

`confidence` (50) is in logit units.
""",
)
dpgd = _function(
    "dpgd",
    "dpgd",
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
  **options: of `pgd` (steps, step_size, start "none" or "uniform", norm, restarts, state, unroll), and:
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

Returns:
  [B,H,W,C] float32; with `state` (that, the state after the last step).

Raises:
  ValueError: as `pgd`.
""",
)
