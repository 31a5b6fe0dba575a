"""Each --mode from its flags and the ConfigDict of --config; modules are imported when their mode runs.

Exit codes are returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ard_jax.cli import flags
from ard_jax.io.files import expand

if TYPE_CHECKING:
    from ard_jax.config.schema import Experiment


def overrides() -> list[str]:
    """PATH=VALUE for each value that the command line sets; --attacks is one of the configuration too."""
    attacks = [f"eval.attacks={','.join(flags.ATTACKS.value)}"] if flags.ATTACKS.value else []
    return [*flags.OVERRIDES.value, *attacks]


def train(config: Any) -> int:
    """Trains one experiment, or continues it."""
    from ard_jax.cli import train

    if config is None:
        raise ValueError("--config is missing; try --config=configs/ciard_digits.py")
    if experiment := _experiment(config):
        train.run(experiment)
    return 0


def compare(config: Any) -> int:
    """Trains and compares methods over seeds."""
    from ard_jax.cli import compare, train
    from ard_jax.config.comparison import from_config

    if config is None:
        raise ValueError("--config is missing; try --config=configs/compare_digits.py")
    comparison = from_config(config)
    train.use_compilation_cache(next(iter(comparison.experiments.values())))
    return compare.run(comparison)


def evaluate(config: Any) -> int:
    """Evaluates a checkpoint again."""
    from ard_jax.checkpoints import manager
    from ard_jax.cli import train, train_checks

    path, experiment = expand(flags.CHECKPOINT.value), _experiment(config)
    if not path and experiment is None:
        raise ValueError("--mode=evaluate needs --checkpoint or --config")
    if not path and experiment:
        path = str(train_checks.workdir_of(experiment))
    if flags.ATTACKS.value == []:
        raise ValueError("--attacks is empty; name some, or leave it out for config.eval.attacks")
    path = str(manager.find(path))  # once, for its warnings
    source = expand(flags.TRANSFER.value)
    source = str(manager.find(source)) if source else ""
    if source == path:
        raise ValueError(
            f"--transfer_from={source} is the evaluated checkpoint itself, no other network whose attacks "
            "could be transferred; give that of another run"
        )
    if experiment is None:
        experiment = train_checks.saved_experiment(path)
        train.use_compilation_cache(experiment)
    train_checks.check_method(experiment, path)
    train_checks.check_overrides(experiment, flags.OVERRIDES.value, path)
    names = flags.ATTACKS.value or list(experiment.eval.attacks)
    train.evaluate_checkpoint(experiment, path, names, source, expand(flags.OUT.value))
    return 0


def teacher(config: Any) -> int:
    """Says whether a checkpoint helps as a robust teacher."""
    from ard_jax.checkpoints import manager
    from ard_jax.cli import teacher, train, train_checks

    path, experiment = expand(flags.CHECKPOINT.value), _experiment(config)
    if not path:
        raise ValueError("--mode=teacher needs --checkpoint, that of the teacher")
    path = str(manager.find(path))  # once, for its warnings
    students = [str(manager.find(expand(one))) for one in flags.STUDENTS.value]
    if again := [one for one in students if one == path or students.count(one) > 1]:
        raise ValueError(
            f"--students: {again[0]} is the teacher itself, or given twice; give other runs"
        )
    if experiment is None:
        experiment = train_checks.saved_experiment(path)
        train.use_compilation_cache(experiment)
    train_checks.check_overrides(experiment, flags.OVERRIDES.value, path)
    teacher.run(experiment, path, students, expand(flags.OUT.value))
    return 0


def import_(config: Any) -> int:
    """Makes a checkpoint of a published network."""
    if flags.SOURCE.value == "list":
        from ard_jax.interop import catalogue

        print(catalogue.table())
        return 0
    from ard_jax.cli import import_network

    import_network.run(
        source=flags.SOURCE.value,
        file=expand(flags.FILE.value),
        out=expand(flags.OUT.value),
        model=flags.MODEL.value,
        normalization=flags.NORMALIZATION.value,
        experiment=_experiment(config),
        key=flags.KEY.value,
        download=flags.DOWNLOAD.value,
        force=flags.FORCE.value,
    )
    return 0


def export(config: Any) -> int:
    """Exports a checkpoint to other formats."""
    from ard_jax.checkpoints import manager
    from ard_jax.cli import export, train_checks

    path, experiment = expand(flags.CHECKPOINT.value), _experiment(config)
    path = str(manager.find(path)) if path else ""  # once, for its warnings
    if path and experiment:
        train_checks.check_overrides(experiment, flags.OVERRIDES.value, path)
    export.run(
        checkpoint=path,
        out=expand(flags.OUT.value),
        formats=tuple(flags.FORMAT.value),
        item=flags.ITEM.value,
        fold_batchnorm=flags.FOLD.value,
        onnx_ir_version=flags.ONNX_IR.value,
        experiment=experiment,
    )
    return 0


def plan(config: Any) -> int:
    """Prints what an experiment would cost."""
    from ard_jax.cli import plan
    from ard_jax.config import parse

    if config is None or not flags.DEVICES.value:
        raise ValueError(
            "--mode=plan needs --config and --devices, e.g. --config=configs/ciard_cifar10.py "
            "--devices=v4-32"
        )
    experiment = parse.to_experiment(config)
    return plan.run(
        experiment,
        flags.DEVICES.value,
        flags.ASSUME.value,
        flags.COMPILE.value,
        expand(flags.PLAN_JSON.value),
    )


def show(config: Any) -> int:
    """Prints runs, their states and numbers."""
    from ard_jax.cli import show

    if config is not None:
        raise ValueError("--mode=show takes folders of runs, no --config: --mode=show runs")
    return show.run([expand(folder) for folder in flags.RUNS.value])


def doctor() -> int:
    """Prints what a run would find on this machine."""
    from ard_jax.cli import doctor

    try:
        return doctor.run(flags.CONFIG.value, overrides())
    except Exception as error:
        from ard_jax.cli import (
            failures,
        )  # which imports JAX: whether it is there has been told by now

        return failures.report(error)


def _experiment(config: Any) -> Experiment | None:
    """The experiment of --config, with its compilation cache in use; None without --config."""
    if config is None:
        return None
    from ard_jax.cli import train
    from ard_jax.config.parse import to_experiment

    experiment = to_experiment(config)
    train.use_compilation_cache(experiment)
    return experiment


BY_NAME = {
    "train": train,
    "evaluate": evaluate,
    "teacher": teacher,
    "compare": compare,
    "import": import_,
    "export": export,
    "plan": plan,
    "show": show,
}
ALONE = (plan, show)  # they need neither devices nor other hosts
