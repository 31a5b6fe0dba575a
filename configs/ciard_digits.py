"""CIARD on scikit-learn's handwritten digits (8x8, in the package): the main job at its smallest.

    python -m ard_jax.main --config=configs/ciard_digits.py

Trains both teachers and the student and evaluates all three in a few minutes on 2 CPU cores; the numbers
and the time are in the README. eps is 0.2 of the [0,1] range. `:natural` and `:sat` train a student of the
same size, with as many updates, naturally and by PGD adversarial training: the baselines of the README,
which also says how these settings were found and that they favour CIARD.
"""

from configs import common


def get_config(variant: str = "") -> common.ml_collections.ConfigDict:
    config = common.digits()
    config.method.update(itt_start=7, decay_epochs=(29, 35, 38), temp_rate=5e-3, kl_scale=10.0)
    if variant in ("natural", "sat"):
        config.name = f"{variant}_digits"
        config.method = common.config_dict(name=variant)
        config.attack = common.attack("pgd_sat", steps=10)
        config.student_optim.lr = 0.1
        config.teachers.robust = config.teachers.clean = None
    elif variant:
        raise ValueError(f"configs/ciard_digits.py has no variant {variant!r}: natural, sat")
    return config
