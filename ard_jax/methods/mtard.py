"""MTARD (Zhao et al. 2022, ECCV): a robust teacher at x', a clean teacher at x, balanced weights."""

from typing import Any

import jax
from pydantic import Field

from ard_jax.methods import base, two_teachers
from ard_jax.methods.options import Epochs, NotNegative, Options, Reduction, increase


class MtardConfig(Options):
    """Options of MTARD."""

    weight_rate: NotNegative = Field(0.025, description="Rate of the loss weights per step.")
    decay_epochs: Epochs = Field(
        (215, 260, 285),
        description=(
            "Epochs, from 1, after which the rate is multiplied by 0.1 (the code decays it, with the "
            "learning rate, at the end of epochs 215, 260 and 285 of 300)."
        ),
    )
    kl_reduction: Reduction = Field(
        "mean_classes",
        description="`mean_classes` on CIFAR-10; the code's CIFAR-100 terms times 10 are `scaled10`.",
    )
    kl_scale: NotNegative = Field(1.0, description="Factor on both terms.")

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        return increase("decay_epochs", self.decay_epochs)


def make(config: MtardConfig, parts: base.Parts) -> base.Method:
    """L = wa La + wn Ln, La = mean_BC KL(p_T(x') || p_S(x')), Ln = mean_BC KL(p_Tn(x) || p_S(x)).

    Weights, before they are used in a step: r_k = L_k / L_k(first step); wn <- wn - 0.025 (wn -
    rn / (ra + rn)); wa = 1 - wn; both start at 0.5 and are constants for the gradient.
    Attack: PGD on CE, start x + 0.001 N(0, I), eval mode, nothing updated. Both teachers in eval mode, T
    once at x', Tn once at x. Then the train-mode passes S(x'), S(x), in this order: two updates of the
    student's running statistics.
    Cost with K attack steps: K passes forward and back to the input, 2 forward and back to the weights,
    1 forward of each teacher.
    Schedule: 300 epochs, rate 0.1, times 0.1 after 215, 260, 285 (as the rate of the weights), weight
    decay 2e-4. Source: zhaoshiji123/MTARD, mtard_resnet18_cifar10.py and mtard_loss.py; paper and code
    agree. The code's exponent of r_k ("bert") is 1 and left out.
    """

    def branches(
        memory: dict[str, Any],
        z_adv: jax.Array,
        z_nat: jax.Array,
        soft_adv: jax.Array,
        soft_nat: jax.Array,
        step: jax.Array,
        epoch: jax.Array,
    ):
        l_adv = base.scaled_kl(config, z_adv, soft_adv)
        l_nat = base.scaled_kl(config, z_nat, soft_nat)
        rate = base.decayed(config.weight_rate, [epoch > e for e in config.decay_epochs])
        return l_adv, l_nat, two_teachers.balance(memory, l_adv, l_nat, step, rate, "mtard"), {}

    return two_teachers.method(parts, two_teachers.first_weights(), branches)


REGISTRATION = base.Registration("mtard", MtardConfig, make, ("robust", "clean"), "ciard_train")
