"""B-MTARD (Zhao et al. 2024, TPAMI): MTARD with teacher temperatures that balance the entropies."""

from typing import Any

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base, two_teachers
from ard_jax.methods.options import Epochs, NotNegative, Options, Reduction, increase


class BMtardConfig(Options):
    """Options of B-MTARD."""

    weight_rate: NotNegative = Field(0.025, description="Rate of the loss weights per step.")
    balance_temperatures: bool = Field(
        True, description="False keeps both teacher temperatures at 1."
    )
    temp_rate: NotNegative = Field(1e-3, description="Rate of the temperatures per step.")
    decay_epochs: Epochs = Field(
        (215, 260, 285), description="Epochs, from 1, after which both rates are multiplied by 0.1."
    )
    kl_reduction: Reduction = Field(
        "mean_classes",
        description="`mean_classes` on CIFAR-10; `scaled10` is that times 10 on CIFAR-100.",
    )
    kl_scale: NotNegative = Field(1.0, description="Factor on both terms.")

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        return increase("decay_epochs", self.decay_epochs)


def make(config: BMtardConfig, parts: base.Parts) -> base.Method:
    """L = wa La + wn Ln, La = mean_BC KL(p_T^ta(x') || p_S(x')), Ln = mean_BC KL(p_Tn^tn(x) || p_S(x)).

    Only the teachers are softened; no t^2. Temperatures: h_k = mean_BC p_k log(p_k + 1e-5) of each
    teacher as softened in this step; then ta <- ta - 0.001 sign(ha / hn - 1), tn <- tn - 0.001
    sign(hn / ha - 1), cut to [1, 10], used from the next step on; they start at 1. Weights, before they
    are used: r_k = L_k / L_k(first step), w_k <- w_k - 0.025 (w_k - r_k / (ra + rn)), cut at 0, scaled to
    sum 1 (the code divides r_k by their mean first, which cancels).
    Attack, BatchNorm and cost as MTARD: PGD on CE, start x + 0.001 N(0, I), eval mode; T at x', Tn at x;
    train-mode passes S(x'), S(x), two updates of the student's running statistics.
    Schedule: 300 epochs, rate 0.1, times 0.1 after 215, 260, 285 (as both balance rates), weight decay
    2e-4. Source: zhaoshiji123/MTARD-extension, resnet18_mtard_cifar10.py.
    """
    memory = two_teachers.first_weights() | {
        name: jnp.ones(()) for name in ("temp_adv", "temp_nat")
    }

    def branches(
        memory: dict[str, Any],
        z_adv: jax.Array,
        z_nat: jax.Array,
        soft_adv: jax.Array,
        soft_nat: jax.Array,
        step: jax.Array,
        epoch: jax.Array,
    ):
        temp_adv, temp_nat = memory["temp_adv"], memory["temp_nat"]
        l_adv = base.scaled_kl(config, z_adv, soft_adv, temp_adv)
        l_nat = base.scaled_kl(config, z_nat, soft_nat, temp_nat)
        num_classes = z_adv.shape[-1]
        h_adv = jnp.mean(losses.negative_entropy(soft_adv, temp_adv)) / num_classes
        h_nat = jnp.mean(losses.negative_entropy(soft_nat, temp_nat)) / num_classes
        passed = [epoch > e for e in config.decay_epochs]
        if config.balance_temperatures:
            temp_adv, temp_nat = losses.balance_temperatures(
                temp_adv, temp_nat, h_adv, h_nat, base.decayed(config.temp_rate, passed)
            )
        rate = base.decayed(config.weight_rate, passed)
        memory = two_teachers.balance(memory, l_adv, l_nat, step, rate, "ciard")
        temperatures = {"temp_adv": temp_adv, "temp_nat": temp_nat}
        values = temperatures | {"entropy_adv": h_adv, "entropy_nat": h_nat}
        return l_adv, l_nat, memory | temperatures, values

    return two_teachers.method(parts, memory, branches)


REGISTRATION = base.Registration("b_mtard", BMtardConfig, make, ("robust", "clean"), "ciard_train")
