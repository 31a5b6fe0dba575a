"""ARD (Goldblum et al. 2020, AAAI, arXiv 1905.09747): distillation with the adversary in the loop."""

import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import NotNegative, Options, Positive, Reduction, Share


class ArdConfig(Options):
    """Options of ARD."""

    alpha: Share = Field(
        1.0,
        description="Weight of the teacher's term; the hard labels at the clean image have 1 - alpha.",
    )
    temperature: Positive = Field(
        30.0, description="Softens both networks; its square multiplies the KL."
    )
    kl_reduction: Reduction = Field(
        "mean_classes", description="`mean_classes` is the code's mean over batch and classes."
    )
    kl_scale: NotNegative = Field(1.0, description="Factor on the teacher's term.")


# Passes of the public code with IGDM, where x + beta d is in place of x' in the loss too.
_IGDM = {"released": ("plus", "nat", "minus")}


def make(config: ArdConfig, parts: base.Parts) -> base.Method:
    """L = a t^2 mean_BC KL(p_T^t(x) || p_S^t(x')) + (1-a) mean_B CE(S(x), y).

    The teacher is evaluated once, at the CLEAN x, in eval mode. Attack: PGD on CE, start x + U(-eps,
    eps) that is not clipped before the first step, step eps/4, 10 steps.
    BatchNorm: the official code never calls eval(), so it attacks with the student in train mode and
    every attack step moves the running statistics: `attack_bn="train"`, `attack_bn_stats="keep"`, which
    the configs set. After the attack come the train-mode passes S(x'), S(x), in this order. The
    statistics move K + 2 times a step with K attack steps (twice with any other `attack_bn`).
    Schedule: 200 epochs, rate 0.1, weight decay 2e-4; the code means to decay after 100 and 150
    but multiplies the base rate both times, so the rate stays 0.01 after 100 and never gets to 0.001. Source:
    goldblum/AdversariallyRobustDistillation, main.py.
    """

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        kl = losses.softened_kl(soft.nat, z.adv, config.temperature)
        distill = losses.reduce_kl(kl, z.adv.shape[-1], config.kl_reduction) * config.kl_scale
        ce = jnp.mean(losses.cross_entropy(z.nat, base.targets(batch)))
        total = config.alpha * distill + (1 - config.alpha) * ce
        return total, {"loss_distill": distill, "loss_ce": ce}

    return base.from_loss(parts, loss, passes=("adv", "nat"), teacher_at=("nat",), igdm=_IGDM)


REGISTRATION = base.Registration(
    "ard",
    ArdConfig,
    make,
    ("robust",),
    "ard_train",
    igdm=_IGDM,
    cross_entropy=lambda config: config.alpha < 1,
)
