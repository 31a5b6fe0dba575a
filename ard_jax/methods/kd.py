"""KD: knowledge distillation on clean images (Hinton et al. 2015, arXiv 1503.02531)."""

import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import Options, Positive, Share


class KdConfig(Options):
    """Options of KD."""

    alpha: Share = Field(
        0.9, description="Weight of the teacher's term; the hard labels have 1 - alpha."
    )
    temperature: Positive = Field(4.0, description="Softens both networks.")


def make(config: KdConfig, parts: base.Parts) -> base.Method:
    """L = (1-a) mean_B CE(S(x), y) + a t^2 mean_B KL(p_T^t(x) || p_S^t(x)).

    No attack: a baseline that shows how little robustness the soft labels of a robust teacher pass on
    by themselves. One train-mode pass S(x), one update of the student's running statistics; the
    teacher is evaluated once, at x, in eval mode.
    The papers' comparisons never published their KD script (goldblum/AdversariallyRobustDistillation
    issue 6), and its robustness depends strongly on alpha and t; the defaults are usual ones for CIFAR
    and no table row stands behind them. Schedule: that of the methods it is compared with.
    """

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        ce = jnp.mean(losses.cross_entropy(z.nat, base.targets(batch)))
        kl = jnp.mean(losses.softened_kl(soft.nat, z.nat, config.temperature))
        total = (1 - config.alpha) * ce + config.alpha * kl
        return total, {"loss_ce": ce, "loss_distill": kl}

    return base.from_loss(parts, loss, passes=("nat",), teacher_at=("nat",))


REGISTRATION = base.Registration(
    "kd", KdConfig, make, ("robust",), attack="", cross_entropy=lambda config: config.alpha < 1
)
