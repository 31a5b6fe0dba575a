"""Every value an experiment has; the method's own come from its registration (`configs/protocol.py`).

`ard_jax/config/parse.py` says what each means. A config file changes some of them; the command line changes
more: `--config.method.itt_start=10`.
"""

import ml_collections


def config_dict(**values) -> ml_collections.ConfigDict:
    """A group of values."""
    return ml_collections.ConfigDict(values)


def sgd(**values) -> ml_collections.ConfigDict:
    """SGD, momentum 0.9, weight decay 2e-4, constant rate 0.1."""
    group = config_dict(
        lr=0.1,
        momentum=0.9,
        nesterov=False,
        weight_decay=2e-4,
        schedule="constant",
        boundaries=(),
        decay=0.1,
        warmup=0,
        start=1,
        idle_before_start=False,
    )
    group.update(values)
    return group


def attack(name: str, **values) -> ml_collections.ConfigDict:
    """An inner attack; 0 and "" mean the named attack's own value."""
    group = config_dict(
        name=name, step_size=0.0, steps=0, init="", bn="eval", bn_stats="discard",
        options=config_dict(),
    )  # fmt: skip
    group.update(values)
    return group


def dpgd_options() -> ml_collections.ConfigDict:
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


def net(model: str, **kwargs) -> ml_collections.ConfigDict:
    """A network; kwargs go to the architecture."""
    return config_dict(model=model, init="torch", normalization="", kwargs=config_dict(**kwargs))


def teacher(network, recipe, min_clean: float) -> ml_collections.ConfigDict:
    """A teacher: trained by its recipe unless `checkpoint` names one of ours."""
    return config_dict(checkpoint="", net=network, recipe=recipe, min_clean=min_clean)


def natural_recipe(epochs: int, batch_size: int = 128, **optim) -> ml_collections.ConfigDict:
    """Natural training: SGD, cosine."""
    return _recipe(
        "natural", epochs, batch_size, attack("pgd_sat"), sgd(schedule="cosine", **optim)
    )


def trades_recipe(epochs: int, batch_size: int = 128, steps: int = 0, **optim):
    """TRADES, beta 6; PGD-10 unless `steps` says otherwise."""
    return _recipe("trades", epochs, batch_size, attack("trades_train", steps=steps), sgd(**optim))


def sat_recipe(epochs: int, batch_size: int = 128, steps: int = 10, **optim):
    """PGD adversarial training."""
    inner = attack("pgd_sat", steps=steps)
    return _recipe("sat", epochs, batch_size, inner, sgd(schedule="cosine", **optim))


def _recipe(method, epochs, batch_size, inner, optim) -> ml_collections.ConfigDict:
    return config_dict(
        method=method,
        beta=6.0,
        epochs=epochs,
        batch_size=batch_size,
        seed=0,
        optim=optim,
        attack=inner,
        eval_every=10,
    )


def base() -> ml_collections.ConfigDict:
    """CIARD's networks, teachers and evaluation on CIFAR-10; `protocol` adds name, method and attack."""
    return config_dict(
        name="",
        seed=0,
        workdir="",
        epochs=300,
        batch_size=128,
        eps=8 / 255,
        norm="linf",
        select_on="test",
        precision="float32",
        ema_decay=0.0,
        swa_start=0,
        bn_groups=1,
        awp=config_dict(gamma=0.0, start=1),
        data=config_dict(
            name="cifar10",
            dir="",
            holdout=0.0,
            split_seed=0,
            augment="crop_flip",
            pad=4,
            last_batch="keep",
            loader="memory",
            image_size=0,
            workers=0,
            prefetch=4,
            on_device="auto",
        ),
        student=net("resnet18"),
        student_optim=sgd(),
        robust_teacher_optim=sgd(
            lr=1e-4, momentum=0.1, schedule="ciard", start=50, idle_before_start=True
        ),
        attack=attack("sat_train"),
        method=config_dict(name=""),
        teachers=config_dict(
            cache="runs/teachers",
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
        eval=config_dict(
            attacks=("fgsm", "pgd_sat", "pgd_trades", "bim", "tpgd", "cw_inf", "autoattack"),
            select_attack="pgd_trades",
            step_sizes=config_dict(),
            batch_size=250,
            every=10,
            dense_from=250,
            max_examples=0,
            max_selection_examples=0,
            eps_sweep=(0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0),
            transfer=True,
            teachers=True,
            seed=0,
            grid=12,
            autoattack_examples=1000,
            autoattack_nets="best",
            save_images=False,
        ),
        run=config_dict(
            devices=0,
            log_every=50,
            save_every=5,
            tensorboard=True,
            compilation_cache="",
            distributed="auto",
            distributed_timeout=300.0,
        ),
    )


def digits() -> ml_collections.ConfigDict:
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


def cpu_teachers(config) -> None:
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
