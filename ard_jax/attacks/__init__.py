"""Attacks: pure functions attack(predict, images, labels, key, ...) -> adversarial images.

`make(name, eps)` gives an attack by name with its paper's parameters; `pgd_loop` is the core for
any other objective. `autoattack` is the evaluation to publish; apgd, fab and square are its parts.
"""

from ard_jax.attacks.auto_attack.apgd import ApgdResult, apgd
from ard_jax.attacks.auto_attack.attack import AutoAttackResult, autoattack
from ard_jax.attacks.auto_attack.fab import FabResult, fab
from ard_jax.attacks.auto_attack.square import (
    SquareResult,
    SquareState,
    square,
    square_result,
    square_run,
    square_start,
)
from ard_jax.attacks.auto_attack.versions import SUITES, suite_names
from ard_jax.attacks.cw import cw_linf
from ard_jax.attacks.dpgd import dpgd
from ard_jax.attacks.loop import pgd_loop
from ard_jax.attacks.objectives import lambda_values, least_likely_class
from ard_jax.attacks.pgd import bim, ciard_pgd, fgsm, pgd, targeted_pgd, trades_pgd
from ard_jax.attacks.registry import ATTACKS, AttackSpec, evaluation_names, make, names

__all__ = [
    "ATTACKS",
    "SUITES",
    "ApgdResult",
    "AttackSpec",
    "AutoAttackResult",
    "FabResult",
    "SquareResult",
    "SquareState",
    "apgd",
    "autoattack",
    "bim",
    "ciard_pgd",
    "cw_linf",
    "dpgd",
    "evaluation_names",
    "fab",
    "fgsm",
    "lambda_values",
    "least_likely_class",
    "make",
    "names",
    "pgd",
    "pgd_loop",
    "square",
    "square_result",
    "square_run",
    "square_start",
    "suite_names",
    "targeted_pgd",
    "trades_pgd",
]
