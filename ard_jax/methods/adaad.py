"""AdaAD and AdaIAD (Huang et al. 2023, CVPR): the teacher is asked at the moving x', inside the attack."""

from typing import Any

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base, batch_statistics
from ard_jax.methods.options import Count, NotNegative, Options, Positive, Reduction, Share, Variant


class AdaadConfig(Options):
    """Options of AdaAD."""

    alpha: Share = Field(
        1.0,
        description="Weight of the adversarial term; the clean one has 1 - alpha. 1 in the code.",
    )
    kl_reduction: Reduction = Field(
        "mean_classes",
        description="The code has `mean_classes` on CIFAR-10 and `batchmean` on CIFAR-100.",
    )
    kl_scale: NotNegative = Field(1.0, description="Factor on both terms.")


class AdaiadConfig(Options):
    """Options of AdaIAD, that is IAD-I on AdaAD's examples."""

    variant: Variant = Field(
        "paper",
        description=(
            "`paper`: the teacher's term is weighted by its reliability a, and two train-mode passes of "
            "the student. `released`: no a on the teacher's term, and the code's further passes at x."
        ),
    )
    alpha: Share = Field(
        1.0,
        description="Weight of the distillation terms; cross-entropy at x has 1 - alpha. 1 in the code.",
    )
    beta: NotNegative = Field(0.1, description="Exponent of the reliability.")
    temperature: Positive = Field(30.0, description="Of the teacher's term, teacher and student.")
    begin_epoch: Count = Field(
        60,
        description=(
            "Epochs, from 1, up to which the reliability counts as 1 (the code counts from 0 and begins "
            "with number 60)."
        ),
    )


# Passes of the public codes with IGDM on AdaAD.
_IGDM = {"released": ("plus", "nat", "minus", "adv"), "saad": ("plus", "minus")}


def make(config: AdaadConfig, parts: base.Parts) -> base.Method:
    """L = alpha mean_BC KL(p_T(x') || p_S(x')) + (1 - alpha) mean_BC KL(p_T(x) || p_S(x)).

    Attack: PGD on KL(p_T(x') || p_S(x')) with the gradient through both networks, start x + 0.001 N(0, I),
    eval mode, nothing updated. The teacher in eval mode, once more at x' and once at x. Then the train-mode
    passes S(x), S(x'), in this order, whatever alpha is: two updates of the student's running statistics.
    Cost with K attack steps: K passes of student and teacher forward and back to the input, 2 of the
    student forward and back to the weights, 2 forward of the teacher.
    The paper describes alpha as adaptive; the code has the constant 1, users ask about it without an answer
    (boyellow/AdaAD, issue 5), and no formula is public. So alpha is a constant here.
    Schedule: 200 epochs, rate 0.1, times 0.1 after 100 and 150, weight decay 5e-4. The README's runs use
    eps 8/255 with steps of 2/255, and 16/255 with 4/255, which is also the code's default. Source:
    boyellow/AdaAD, main.py and AT_helper.py.
    """

    def distillation(z_teacher: jax.Array, z_student: jax.Array):
        kl = losses.reduce_kl(
            losses.trades_kl(z_teacher, z_student), z_student.shape[-1], config.kl_reduction
        )
        return config.kl_scale * kl

    if config.alpha < 1 and parts.igdm and parts.igdm.weight and parts.igdm.variant == "saad":
        raise ValueError(f"alpha={config.alpha}: igdm.variant='saad' has no pass at x; use alpha=1")

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        robust = distillation(soft.adv, z.adv)
        if z.nat is None:  # gradient matching as in SAAD's code
            return robust, {"loss_robust": robust}
        clean = distillation(soft.nat, z.nat)
        total = config.alpha * robust + (1 - config.alpha) * clean
        return total, {"loss_robust": robust, "loss_clean": clean}

    return base.from_loss(parts, loss, passes=("nat", "adv"), teacher_at=("nat", "adv"), igdm=_IGDM)


def make_adaiad(config: AdaiadConfig, parts: base.Parts) -> base.Method:
    """L = alpha mean_B [a t^2 KL(p_T^t(x') || p_S^t(x')) + (1 - a) KL(p_S(x) || p_S(x'))] + (1-alpha) CE.

    a = p_T(y|x')^beta (at temperature 1), and 1 up to `begin_epoch`; the self-target p_S(x) is NOT
    detached; CE = mean_B CE(S(x), y).
    Attack: as AdaAD. The teacher in eval mode, once more at x'. Then the train-mode passes S(x), S(x'),
    in this order: two updates of the student's running statistics.
    variant="released": the teacher's term has no factor a, and the code runs S(x) again for the
    cross-entropy (also with alpha = 1) and, past begin_epoch, once more for the self-target: passes S(x),
    S(x'), S(x) and then one more S(x). In train mode these give the logits of the first, so S(x) is
    computed once here and its update of the statistics is repeated; the numbers are those of the passes.
    Schedule: as AdaAD. Source: boyellow/AdaAD, main.py, method "AdaAD_with_IAD1".
    """

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        active = batch["epoch"] > config.begin_epoch
        a = base.reliability(soft.adv, batch["label"], config.beta, active)
        trust = a if config.variant == "paper" else 1.0
        distill = jnp.mean(trust * losses.softened_kl(soft.adv, z.adv, config.temperature))
        own = jnp.mean((1 - a) * losses.trades_kl(z.nat, z.adv))
        ce = jnp.mean(losses.cross_entropy(z.nat, base.targets(batch)))
        total = config.alpha * (distill + own) + (1 - config.alpha) * ce
        values = {"loss_distill": distill, "loss_own": own, "loss_ce": ce}
        return total, values | {"reliability": jnp.mean(a)}

    def repeated(before: Any, after: Any, epoch: jax.Array):
        once = batch_statistics.repeat(before, *after)
        twice = batch_statistics.repeat(before, after[0], once)
        return batch_statistics.select(epoch > config.begin_epoch, twice, once)

    return base.from_loss(
        parts, loss, passes=("nat", "adv"), teacher_at=("adv",),
        merge_stats=repeated if config.variant == "released" else None,
    )  # fmt: skip


REGISTRATION = (
    base.Registration("adaad", AdaadConfig, make, ("robust",), "adaad_train", igdm=_IGDM),
    base.Registration(
        "adaiad",
        AdaiadConfig,
        make_adaiad,
        ("robust",),
        "adaad_train",
        igdm={},
        cross_entropy=lambda config: config.alpha < 1,
        needs_labels=lambda _: "weighs by the teacher's probability of the label",
    ),
)
