"""CIARD on scikit-learn's handwritten digits (8x8, in the package): the main job at its smallest.

    python -m ard_jax.main --config=configs/ciard_digits.py

Trains both teachers and the student and evaluates all three in a few minutes on 2 CPU cores; the numbers
are in docs/results.md. eps is 0.2 of the [0,1] range. `:natural` and `:sat` train a student of the same size,
with as many updates, naturally and by PGD adversarial training: the baselines of that page, which also says
how these settings were found and that they favour CIARD.
"""

from . import common, protocol


def get_config(variant: str = ""):
    baselines = {"natural": lambda c: baseline(c, "natural"), "sat": lambda c: baseline(c, "sat")}
    return protocol.digits("ciard", variant, baselines)


def baseline(config: common.Config, name: str) -> None:
    config.name = f"{name}_digits"
    config.method = common.config_dict(name=name)
    config.attack = common.attack("pgd_sat", steps=10)
    config.student_optim.lr = 0.1
    config.teachers.robust = config.teachers.clean = None
