"""Each --mode from its flags; modules are imported when their mode runs. Exit codes are returned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ard_jax.cli import flags

if TYPE_CHECKING:
    from ard_jax.config.schema import Experiment


def train() -> int:
    """Trains one experiment, or continues it."""
    from ard_jax.cli import train

    if flags.CONFIG.value is None:
        raise ValueError("--config is missing; try --config=configs/ciard_digits.py")
    if experiment := _experiment():
        train.run(experiment)
    return 0


def compare() -> int:
    """Trains and compares methods over seeds."""
    from ard_jax.cli import compare, train
    from ard_jax.config.comparison import from_config

    if flags.CONFIG.value is None:
        raise ValueError("--config is missing; try --config=configs/compare_digits.py")
    comparison = from_config(flags.CONFIG.value)
    train.use_compilation_cache(next(iter(comparison.experiments.values())))
    return compare.run(comparison)


def evaluate() -> int:
    """Evaluates a checkpoint again."""
    from ard_jax.cli import train

    path, experiment = flags.CHECKPOINT.value, _experiment()
    if experiment is None:
        if not path:
            raise ValueError("--mode=evaluate needs --checkpoint or --config")
        experiment = train.saved_experiment(path)
        train.use_compilation_cache(experiment)
    path = path or str(train.workdir_of(experiment))
    names = flags.ATTACKS.value or list(experiment.eval.attacks)
    train.evaluate_checkpoint(experiment, path, names, flags.TRANSFER.value)
    return 0


def import_() -> int:
    """Makes a checkpoint of a published network."""
    if flags.SOURCE.value == "list":
        from ard_jax.interop import catalogue

        print(catalogue.table())
        return 0
    from ard_jax.cli import import_network

    import_network.run(
        source=flags.SOURCE.value,
        file=flags.FILE.value,
        out=flags.OUT.value,
        model=flags.MODEL.value,
        normalization=flags.NORMALIZATION.value,
        experiment=_experiment(),
        key=flags.KEY.value,
        download=flags.DOWNLOAD.value,
        force=flags.FORCE.value,
    )
    return 0


def export() -> int:
    """Exports a checkpoint to other formats."""
    from ard_jax.cli import export

    export.run(
        checkpoint=flags.CHECKPOINT.value,
        out=flags.OUT.value,
        formats=tuple(flags.FORMAT.value),
        item=flags.ITEM.value,
        fold_batchnorm=flags.FOLD.value,
        experiment=_experiment(),
    )
    return 0


def plan() -> int:
    """Prints what an experiment would cost."""
    from ard_jax.cli import plan
    from ard_jax.config import parse

    if flags.CONFIG.value is None or not flags.DEVICES.value:
        raise ValueError(
            "--mode=plan needs --config and --devices, e.g. --config=configs/ciard_cifar10.py "
            "--devices=v4-32"
        )
    experiment = parse.to_experiment(flags.CONFIG.value)
    return plan.run(
        experiment,
        flags.DEVICES.value,
        flags.ASSUME.value,
        flags.COMPILE.value,
        flags.PLAN_JSON.value,
    )


def _experiment() -> Experiment | None:
    """The experiment of --config, with its compilation cache in use; None without --config."""
    if flags.CONFIG.value is None:
        return None
    from ard_jax.cli import train
    from ard_jax.config import parse

    experiment = parse.to_experiment(flags.CONFIG.value)
    train.use_compilation_cache(experiment)
    return experiment


BY_NAME = {
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "import": import_,
    "export": export,
    "plan": plan,
}
