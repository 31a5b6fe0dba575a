"""Experiments out of the defaults of `ard_jax.config.schema`, which says what each value means.

A config file changes some of them; the command line changes any: `--config.method.itt_start=10`.
"""

from typing import Any

import ml_collections

from ard_jax.config import schema

Config = Any  # an ml_collections.ConfigDict, whose attributes are typed as one large union


def config_dict(**values: Any) -> Config:
    """A group of values."""
    return ml_collections.ConfigDict(values)


def group(record: type[schema.Options], **values: Any) -> Config:
    """Every field of a record of the schema: the value given, or its default."""
    fields = record.model_fields.items()
    defaults = {n: f.get_default(call_default_factory=True) for n, f in fields if n not in values}
    plain = {n: v.model_dump() if hasattr(v, "model_dump") else v for n, v in defaults.items()}
    return config_dict(**plain | values)


def sgd(**values: Any) -> Config:
    """SGD, momentum 0.9, weight decay 2e-4, constant rate 0.1."""
    return group(schema.OptimConfig, **values)


def attack(name: str, **values: Any) -> Config:
    """An inner attack; 0 and "" mean the named attack's own value."""
    return group(schema.AttackConfig, name=name, **values)


def dpgd_options() -> Config:
    """DPGD's own options (`ard_jax.attacks.dpgd`), with its defaults."""
    return config_dict(
        lambda_schedule="paper",
        lambda_value=0.25,
        dice="batch",
        dice_form="stable",
        dice_groups=1,
        smoothing=1e-5,
        alpha_schedule="const",
        channel_mask_rho=0.0,
    )


def net(model: str, **kwargs: Any) -> Config:
    """A network; kwargs go to the architecture."""
    return group(schema.NetConfig, model=model, kwargs=kwargs)


def teacher(network: Config, recipe: Config, min_clean: float) -> Config:
    """A teacher: trained by its recipe unless `checkpoint` names one of ours."""
    return group(schema.TeacherConfig, net=network, recipe=recipe, min_clean=min_clean)


def natural_recipe(epochs: int, batch_size: int = 128, **optim: Any) -> Config:
    """Natural training: SGD, cosine."""
    return _recipe(
        "natural", epochs, batch_size, attack("pgd_sat"), sgd(schedule="cosine", **optim)
    )


def trades_recipe(epochs: int, batch_size: int = 128, steps: int = 0, **optim: Any):
    """TRADES, beta 6; PGD-10 unless `steps` says otherwise."""
    return _recipe("trades", epochs, batch_size, attack("trades_train", steps=steps), sgd(**optim))


def sat_recipe(epochs: int, batch_size: int = 128, steps: int = 10, **optim: Any):
    """PGD adversarial training."""
    inner = attack("pgd_sat", steps=steps)
    return _recipe("sat", epochs, batch_size, inner, sgd(schedule="cosine", **optim))


def _recipe(
    method: str, epochs: int, batch_size: int, inner: Config | None, optim: dict[str, Any]
) -> Config:
    return group(
        schema.RecipeConfig,
        method=method,
        epochs=epochs,
        batch_size=batch_size,
        optim=optim,
        attack=inner,
    )


def base() -> Config:
    """CIARD's networks, teachers and evaluation on CIFAR-10; `protocol` adds name, method and attack."""
    return group(
        schema.Experiment,
        name="",
        data=group(schema.DataConfig, name="cifar10"),
        student=net("resnet18"),
        robust_teacher_optim=sgd(
            lr=1e-4, momentum=0.1, schedule="ciard", start=50, idle_before_start=True
        ),
        attack=attack("sat_train"),
        method=config_dict(name=""),
        teachers=group(
            schema.TeachersConfig,
            robust=teacher(
                net("wrn_34_10"),
                trades_recipe(76, schedule="multistep", boundaries=(75,)),
                min_clean=0.7,
            ),
            clean=teacher(
                net("resnet56", shortcut="B"),
                natural_recipe(200, weight_decay=5e-4),
                min_clean=0.85,
            ),
        ),
        eval=group(
            schema.EvalConfig, dense_from=250, autoattack_examples=1000, autoattack_nets="best"
        ),
    )


def digits() -> Config:
    """`base` on scikit-learn's handwritten digits (8x8), eps 0.2, small networks."""
    config = base()
    config.epochs = 40
    config.batch_size = 64
    config.eps = 0.2
    config.select_on = "validation"
    config.data.update(name="digits", holdout=0.1, augment="crop", pad=1, last_batch="drop")
    config.student = net("small_resnet", widths=(8, 16), blocks=1)
    config.student_optim = sgd(lr=0.2, schedule="cosine", weight_decay=5e-4)
    config.robust_teacher_optim.update(lr=1e-3, start=6)
    # PGD-5 with longer steps: half the cost of PGD-10.
    recipe = sat_recipe(60, batch_size=64, steps=5, weight_decay=5e-4)
    recipe.attack.step_size = 0.4 * config.eps
    config.teachers.robust = teacher(
        net("small_resnet", widths=(24, 48), blocks=1), recipe, min_clean=0.9
    )
    recipe = natural_recipe(20, batch_size=64, weight_decay=5e-4)
    config.teachers.clean = teacher(
        net("small_resnet", widths=(16, 32), blocks=1), recipe, min_clean=0.95
    )
    config.eval.update(every=10, dense_from=0, batch_size=180, autoattack_examples=0)
    config.eval.eps_sweep = (0.0, 0.25, 0.5, 1.0, 1.5)
    config.run.update(log_every=20, save_every=10)
    return config


def cpu_teachers(config: Config) -> None:
    """CIFAR-10 teachers that 2 CPU cores train in minutes."""
    network = net("small_resnet", widths=(24, 48, 96), stem_stride=2)
    # PGD-5 with longer steps: half the cost of PGD-10.
    recipe = sat_recipe(4, steps=5, weight_decay=5e-4)
    recipe.attack.step_size = 0.4 * 8 / 255
    recipe.eval_every = 2
    config.teachers.robust = teacher(network, recipe, min_clean=0.3)
    recipe = natural_recipe(8, weight_decay=5e-4)
    recipe.eval_every = 4
    config.teachers.clean = teacher(network, recipe, min_clean=0.6)
