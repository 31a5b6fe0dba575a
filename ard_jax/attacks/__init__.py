"""Attacks: pure functions attack(predict, images, labels, key, ...) -> adversarial images.

`make(name, eps)` gives an attack by name with its paper's parameters; `pgd_loop` is the core for
any other objective. `autoattack` is the evaluation to publish; apgd, fab and square are its parts.
"""

from ard_jax.attacks.attack import Attack
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
from ard_jax.attacks.auto_attack.versions import SUITES
from ard_jax.attacks.loop import pgd_loop
from ard_jax.attacks.named import bim, ciard_pgd, cw_linf, dpgd, fgsm, pgd, targeted_pgd, trades_pgd
from ard_jax.attacks.objectives import lambda_values, least_likely_class
from ard_jax.attacks.projected_gradient import PgdAttack
from ard_jax.attacks.registry import (
    evaluation_names,
    label_of,
    make,
    names,
    suite_names,
    training_names,
)

__all__ = [
    "SUITES",
    "ApgdResult",
    "Attack",
    "PgdAttack",
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
    "label_of",
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
    "training_names",
]
