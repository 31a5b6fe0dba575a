"""CIARD on scikit-learn's handwritten digits (8x8, in the package): the main job at its smallest.

    python -m ard_jax.main --config=configs/ciard_digits.py

Trains both teachers and the student and evaluates all three in a few minutes on 2 CPU cores; the numbers
and the time are in the README. eps is 0.2 of the [0,1] range. `:natural` and `:sat` train a student of the
same size, with as many updates, naturally and by PGD adversarial training: the baselines of the README,
which also says how these settings were found and that they favour CIARD.
"""

from configs import common


def get_config(variant: str = "") -> common.ml_collections.ConfigDict:
    config = common.base()
    config.name = "ciard_digits"
    config.epochs = 40
    config.batch_size = 64
    config.eps = 0.2
    config.select_on = "validation"
    config.data.update(name="digits", holdout=0.1, augment="crop", pad=1, last_batch="drop")
    config.student = common.net("small_resnet", widths=(8, 16), blocks=1)
    # Learning rates: the best of 0.05, 0.1 and 0.2 on the validation split, for CIARD and for SAT.
    config.student_optim = common.sgd(lr=0.2, schedule="cosine", weight_decay=5e-4)
    config.robust_teacher_optim.update(lr=1e-3, start=6)
    config.method.update(itt_start=7, decay_epochs=(29, 35, 38), temp_rate=5e-3, kl_scale=10.0)
    # PGD-5 with longer steps: half the cost of PGD-10.
    recipe = common.sat_recipe(120, batch_size=64, steps=5, weight_decay=5e-4)
    recipe.attack.step_size = 0.4 * config.eps
    network = common.net("small_resnet", widths=(24, 48), blocks=1)
    config.teachers.robust = common.teacher(network, recipe, min_clean=0.9)
    network = common.net("small_resnet", widths=(16, 32), blocks=1)
    recipe = common.natural_recipe(40, batch_size=64, weight_decay=5e-4)
    config.teachers.clean = common.teacher(network, recipe, min_clean=0.95)
    config.eval.update(every=10, dense_from=0, batch_size=180)
    config.eval.eps_sweep = (0.0, 0.25, 0.5, 1.0, 1.5)
    config.run.update(log_every=20, save_every=10)
    if variant in ("natural", "sat"):
        config.name = f"{variant}_digits"
        config.method = common.config_dict(name=variant)
        config.attack = common.attack("pgd_sat", steps=10)
        config.student_optim.lr = 0.1
    elif variant:
        raise ValueError(f"configs/ciard_digits.py has no variant {variant!r}: natural, sat")
    return config
