"""The digits experiment, shrunk: tests run the real configuration path, not one of their own."""

from ard_jax.configs import ciard_digits


def tiny(tmp_path, variant="", **overrides):
    """ConfigDict of a run that takes seconds: 2 epochs of 5 steps, one-stage networks."""
    config = ciard_digits.get_config(variant)
    config.workdir = str(tmp_path / "run")
    config.epochs = 2
    config.batch_size = 256
    config.attack.steps = 3
    config.student.kwargs.update(widths=(4,), blocks=1)
    config.teachers.cache = str(tmp_path / "teachers")
    for role in ("robust", "clean"):
        teacher = config.teachers[role]
        if teacher is None:
            continue
        teacher.min_clean = 0.0
        teacher.net.kwargs.update(widths=(4,), blocks=1)
        teacher.recipe.update(epochs=1, batch_size=256)
        teacher.recipe.attack.steps = 2
    config.eval.update(attacks=("fgsm", "pgd_sat"), every=1, eps_sweep=(0.0, 1.0), batch_size=128)
    config.eval.max_examples = 100
    config.run.update(devices=1, log_every=2, save_every=1, tensorboard=False)
    return override(config, overrides)


def override(config, values):
    """The config with values {"group__name": value}."""
    for name, value in values.items():
        *groups, last = name.split("__")
        target = config
        for group in groups:
            target = target[group]
        target[last] = value
    return config
