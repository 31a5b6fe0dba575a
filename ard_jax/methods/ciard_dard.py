"""ciard_dard: CIARD's two teachers, push and teacher training, with DARD's labels and DPGD examples.

This project's own combination; no paper has it. It is CIARD (ard_jax.methods.ciard: same step, order
of passes, BatchNorm updates S 2, N 0) with two things exchanged:

  x' = DPGD against the student instead of PGD on CE (the attack `dpgd`);
  L1 = (branch(S(x), R(x)) + branch(S(x'), R(x'))) / 2, DARD's objective, in place of CIARD's KL to R(x'):
       branch(z, g) = a T^2 mean_B KL(softmax(g/T) || softmax(z/T)) + (1-a) mean_B CE(z, y).

The whole objective is one scalar, minimised by one update of the student:

  L = L1 + clean_weight L2 - push_lambda s L3,

L2 = mean_BC KL(softmax(N(x)/T_nat) || S(x)) and the push L3 as in CIARD, s = 10^(decade of the smaller of
L1 and L2, minus that of L3). From itt_start R takes SGD steps on CE(R(x'), y). R's labels come from
its running statistics (r_label_bn="eval"), since R is asked at x and x' and batch statistics would
differ between the two; therefore R(x) runs in train mode too (r_clean_forward="keep"), so that those
statistics stay a mixture of both: R 2 updates a step. kl_scale and kl_reduction are L2's alone; the
temperatures are balanced as in CIARD but only T_nat is used. With clean_weight=0 and push=False the objective
is DARD's.
"""

from typing import Any, Literal

import jax
from pydantic import Field

from ard_jax.methods import base, ciard, dard
from ard_jax.methods.ciard_config import CiardConfig
from ard_jax.methods.options import Positive, Share


class CiardDardConfig(CiardConfig):
    """CIARD's options and these."""

    a: Share = Field(
        0.7, description="Weight of R's soft labels within a branch; the hard labels have 1 - a."
    )
    temperature: Positive = Field(3.0, description="T of the soft labels, of teacher and student.")
    kd: Literal["kl", "dice"] = Field(
        "kl", description="`kl`, or `dice`: soft Dice instead of the KL."
    )
    r_label_bn: Literal["train", "eval"] = Field(
        "eval", description="As CIARD's; batch statistics would differ between x and x'."
    )
    r_clean_forward: Literal["drop", "keep"] = Field(
        "keep", description="As CIARD's; R's running statistics stay a mixture of x and x'."
    )


def branch_losses(
    config: CiardDardConfig,
    z_nat: jax.Array,
    z_adv: jax.Array,
    soft: ciard.Soft,
    memory: dict[str, Any],
    labels: jax.Array,
):
    """(L1, L2) of the module's docstring."""
    pairs = ((z_nat, soft.robust_nat), (z_adv, soft.robust_adv))
    l1 = sum(
        dard.branch(config, z, dard.soft_labels(g, config.temperature, "logits"), labels)
        for z, g in pairs
    )
    l2 = ciard.distill_branch(config, z_nat, soft.clean_nat, memory["temp_nat"])
    return l1 / 2, l2


def make(config: CiardDardConfig, parts: base.Parts) -> base.Method:
    """The joined method on these networks; see the module's docstring."""
    return ciard.make(config, parts, branch_losses, label_natural=True)


REGISTRATION = base.Registration(
    "ciard_dard",
    CiardDardConfig,
    make,
    ("robust", "clean"),
    "dpgd",
    trained_teachers=("robust",),
    cross_entropy=lambda config: config.a < 1,
    needs_labels=ciard.needs_labels,
)
