"""Attacks: pure functions attack(predict, images, labels, key, ...) -> adversarial images.

`make(name, eps)` gives an attack by name with its paper's parameters; `pgd_loop` is the core for
any other objective.
"""

from ard_jax.attacks.cw import cw_linf
from ard_jax.attacks.dpgd import dpgd
from ard_jax.attacks.loop import pgd_loop
from ard_jax.attacks.objectives import lambda_values, least_likely_class
from ard_jax.attacks.pgd import bim, ciard_pgd, fgsm, pgd, targeted_pgd, trades_pgd
from ard_jax.attacks.registry import ATTACKS, AttackSpec, evaluation_names, make, names

__all__ = [
    "ATTACKS",
    "AttackSpec",
    "bim",
    "ciard_pgd",
    "cw_linf",
    "dpgd",
    "evaluation_names",
    "fgsm",
    "lambda_values",
    "least_likely_class",
    "make",
    "names",
    "pgd",
    "pgd_loop",
    "targeted_pgd",
    "trades_pgd",
]
