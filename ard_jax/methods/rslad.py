"""RSLAD (Zi et al. 2021, arXiv 2108.07969): only the robust teacher's soft labels, no hard labels."""

from pydantic import Field

from ard_jax.methods import base
from ard_jax.methods.options import NotNegative, Options, Reduction, Share


class RsladConfig(Options):
    """Options of RSLAD."""

    adv_weight: Share = Field(
        5 / 6,
        description="Weight of the adversarial term; the clean one has 1 - adv_weight. 5/6 in the code.",
    )
    kl_reduction: Reduction = Field(
        "mean_classes",
        description="`mean_classes` on CIFAR-10; the code's CIFAR-100 terms times 10 are `scaled10`.",
    )
    kl_scale: NotNegative = Field(1.0, description="Factor on both terms.")


_IGDM = {"released": ("adv", "plus", "nat", "minus")}  # passes of the public code with IGDM


def make(config: RsladConfig, parts: base.Parts) -> base.Method:
    """L = 5/6 mean_BC KL(p_T(x) || p_S(x')) + 1/6 mean_BC KL(p_T(x) || p_S(x)).

    Attack: PGD on KL(p_T(x) || p_S(x')), start x + 0.001 N(0, I), eval mode, nothing updated. The
    teacher is evaluated once, at x, in eval mode; attack and loss share its logits. Then the train-mode
    passes S(x'), S(x), in this order: two updates of the student's running statistics.
    Cost with K attack steps: K passes forward and back to the input, 2 forward and back to the weights,
    1 forward of the teacher.
    Schedule: 300 epochs, rate 0.1, times 0.1 after 215, 260, 285, weight decay 2e-4. Source:
    zibojia/RSLAD; paper and code agree.
    """

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        robust, clean = (
            base.scaled_kl(config, z.adv, soft.nat),
            base.scaled_kl(config, z.nat, soft.nat),
        )
        total = config.adv_weight * robust + (1 - config.adv_weight) * clean
        return total, {"loss_robust": robust, "loss_clean": clean}

    return base.from_loss(parts, loss, passes=("adv", "nat"), teacher_at=("nat",), igdm=_IGDM)


REGISTRATION = base.Registration("rslad", RsladConfig, make, ("robust",), "rslad_train", igdm=_IGDM)
