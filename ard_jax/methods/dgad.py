"""DGAD (Park and Min 2024, ECCV): AdaAD without what the teacher gets wrong."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base, batch_statistics
from ard_jax.methods.options import Count, NotNegative, Options, Variant


class DgadConfig(Options):
    """Options of DGAD."""

    variant: Variant = Field(
        "paper",
        description=(
            "`paper`: the two distillation terms are added. `released`: with student_form `mobilenet_v2` "
            "they are multiplied, as a misplaced bracket in the code does."
        ),
    )
    beta: NotNegative = Field(1.0, description="Weight of the consistency term.")
    student_form: Literal["resnet", "mobilenet_v2"] = Field(
        "resnet",
        description="`mobilenet_v2` halves the distillation terms, as the code does for it.",
    )
    full_batch: Count = Field(
        0,
        description=(
            "Images of a full batch, by which the code divides also in a shorter last one; 0 divides by "
            "those of the batch at hand."
        ),
    )
    iad_begin: Count = Field(
        0,
        description=(
            "First epoch, from 1, with the further passes S(x), S(x') of the code's IAD form, whose loss "
            "terms are 0; 0 for none."
        ),
    )


def objective(config: DgadConfig, z: base.Views, soft: base.Views, batch: base.Batch):
    """Returns (the loss of `make`, metrics).

    Raises:
      ValueError: the batch is larger than `full_batch`.
    """
    labels, (size, classes) = batch["label"], z.nat.shape
    full = config.full_batch or size
    if full < size:
        raise ValueError(
            f"method.full_batch={full}: smaller than the batch of {size}; give {size}, or 0"
        )
    wrong = (jnp.argmax(soft.nat, -1) != labels).astype(jnp.float32)
    count = jnp.sum(wrong)
    kl_nat = losses.trades_kl(losses.corrected_logits(soft.nat, labels), z.nat)
    kl_adv = losses.trades_kl(losses.corrected_logits(soft.adv, labels), z.adv)
    clean = jnp.sum(wrong * kl_nat) / jnp.maximum(count, 1.0)
    robust = jnp.sum((1 - wrong) * kl_adv) / jnp.maximum(size - count, 1.0)
    share = count / full
    if config.student_form == "resnet":
        distill = share * clean + (1 - share) * robust
    elif config.variant == "paper":
        distill = 0.5 * (share * clean + (1 - share) * robust)
    else:
        distill = 0.5 * (share * clean + (1 - share)) * robust
    consistency = jnp.mean(losses.squared_error(z.adv, z.nat)) / classes
    values = {"loss_clean": clean, "loss_robust": robust, "loss_consistency": consistency}
    values |= {
        "teacher_accuracy": 1 - count / size,
        "teacher_robust_accuracy": base.accuracy(soft.adv, labels),
    }
    return distill + config.beta * consistency, values


def make(config: DgadConfig, parts: base.Parts) -> base.Method:
    """L = (n/B) Lc + (1 - n/B) La + beta mean_BC (p_S(x') - p_S(x))^2.

    n of the B examples are wrong: argmax T(x) != y. Lc is the mean of KL(p~_T(x) || p_S(x)) over them, La
    that of KL(p~_T(x') || p_S(x')) over the others; each is 0 where there are none (the code divides by 0
    where all are wrong). p~ has the logit of the label and the largest exchanged where they are two. Both p_S
    of the last term carry gradient. student_form="mobilenet_v2" halves the first two terms; with
    variant="released" they are ((n/B) Lc + (1 - n/B)) La / 2.
    Attack: AdaAD's, PGD on KL(p_T(x') || p_S(x')) with the gradient through both networks, start
    x + 0.001 N(0, I), eval mode, nothing updated. The teacher in eval mode, once more at x and at x'. Then
    the train-mode passes S(x), S(x'), in this order: two updates of the student's running statistics. From
    `iad_begin` on the code's IAD form runs S(x), S(x') once more; they have the logits of the first, so only
    their update of the statistics is repeated here.
    Cost: as AdaAD.
    Schedule: 200 epochs, rate 0.1, times 0.1 after 100 and 150, weight decay 5e-4. Source: kunsaram01/DGAD.
    """

    def repeated(before: Any, after: tuple, epoch: jax.Array):
        nat, adv = after
        more = batch_statistics.repeat(before, nat, adv)
        more = batch_statistics.repeat(nat, adv, more)
        return batch_statistics.select(epoch >= config.iad_begin, more, adv)

    return base.from_loss(
        parts, functools.partial(objective, config), passes=("nat", "adv"), teacher_at=("nat", "adv"),
        merge_stats=repeated if config.iad_begin else None,
    )  # fmt: skip


REGISTRATION = base.Registration(
    "dgad",
    DgadConfig,
    make,
    ("robust",),
    "adaad_train",
    needs_labels=lambda _: "asks whether the teacher is right",
)
