"""`python -m ard_jax.main --config=configs/ciard_digits.py`: all modes.

Kept short: flags and dispatch only, everything else can be imported and tested.
"""

import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from ard_jax.cli import command_line

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file, e.g. configs/ciard_digits.py.", lock_config=True
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "compare", "import", "export", "plan"],
    "train: one experiment, or continue it. evaluate: a checkpoint again. compare: methods times seeds "
    "with shared teachers, ending in tables and a plot; --config is e.g. configs/compare_digits.py, a part "
    "of it --config.seeds='(0,1)' --config.methods=\"('sat','rslad')\". Exit code of compare: 1 when "
    "a run failed. import: a published network becomes a checkpoint. export: a checkpoint in other formats. "
    "plan: what --config would cost on --devices, on paper; exit code 1 when it does not fit.",
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "",
    "For --mode=evaluate and export: a run's folder, its best/ or last/, one step, or an imported network.",
)
_ATTACKS = flags.DEFINE_list(
    "attacks",
    None,
    "For --mode=evaluate: attack names, comma separated, e.g. autoattack; default config.eval.attacks.",
)
_TRANSFER = flags.DEFINE_string(
    "transfer_from", "", "For --mode=evaluate: another run, whose attacks are tried on this one."
)
_OUT = flags.DEFINE_string("out", "", "Folder to make; default of --mode=export: <run>/export.")
_SOURCE = flags.DEFINE_string(
    "source",
    "file",
    "For --mode=import: a name of the catalogue; list prints it; file: see --file.",
)
_FILE = flags.DEFINE_string(
    "file", "", "For --mode=import: .pt, .pth, .th (PyTorch), .npy (Haiku), .safetensors or .npz."
)
_MODEL = flags.DEFINE_string(
    "model", "", "For --mode=import: architecture, when the tensors do not tell it."
)
_NORMALIZATION = flags.DEFINE_string(
    "normalization",
    "",
    "For --mode=import: none, cifar10, cifar100, imagenet or JSON with mean and std; default: found by "
    "measurement on the data of --config, else the source's own.",
)
_KEY = flags.DEFINE_string(
    "key", "", "For --mode=import: which network, if the file holds several."
)
_DOWNLOAD = flags.DEFINE_bool(
    "download", False, "For --mode=import: fetch a file of the catalogue."
)
_FORCE = flags.DEFINE_bool(
    "force",
    False,
    "For --mode=import: import a file whose checksum or accuracy is not the catalogue's; replace an "
    "earlier import in --out.",
)
_FORMAT = flags.DEFINE_list(
    "format", ["onnx"], "For --mode=export: onnx, stablehlo, safetensors, torch; comma separated."
)
_ITEM = flags.DEFINE_enum(
    "item", "student", ["student", "ema"], "For --mode=export: the network or its moving average."
)
_FOLD = flags.DEFINE_bool(
    "fold_batchnorm", False, "For --mode=export: BatchNorm becomes part of the convolutions."
)
_DEVICES = flags.DEFINE_string(
    "devices", "", "For --mode=plan: a kind and a number, v4-32, v5e-16, h100-8, or a number alone."
)
_ASSUME = flags.DEFINE_list(
    "assume", [], "For --mode=plan: numbers to calculate with, e.g. utilisation=0.5,flops=2e14."
)
_COMPILE = flags.DEFINE_bool(
    "compile", True, "For --mode=plan: also compile the step, for its memory and collectives."
)
_PLAN_JSON = flags.DEFINE_string("plan_json", "", "For --mode=plan: file to write the plan to.")


def main(argv: list[str]) -> int:
    """Runs the mode; a user's mistake ends in one message and exit code 2."""
    if len(argv) > 1:
        print(f"ERROR: unexpected arguments {argv[1:]}; flags start with --", file=sys.stderr)
        return 2
    logging.set_verbosity(logging.WARNING)  # JAX and Orbax say much that is not for users
    # Heavy imports after flag parsing, so that --help and mistyped flags answer at once.
    import jax

    from ard_jax.runtime import distributed, preemption, sharding
    from ard_jax.training import loop

    try:
        if _MODE.value == "plan":  # needs neither devices nor other hosts
            return _plan()
        run = _CONFIG.value.get("run", {}) if _CONFIG.value is not None else {}
        distributed.start(run.get("distributed", "auto"), run.get("distributed_timeout", 300.0))
        sharding.use_cores()
        preemption.install()
        return _RUN[_MODE.value]()
    except preemption.PreemptedError as error:
        distributed.tell(f"PREEMPTED: {error}. The same command continues.", file=sys.stderr)
        return distributed.leave(distributed.EXIT_PREEMPTED)
    except (ValueError, loop.TrainingDivergedError) as error:
        print(f"ERROR: {error}", file=sys.stderr, flush=True)
        return distributed.leave(2)
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, jax.errors.JaxRuntimeError):
            distributed.give_up(error)
        return distributed.leave(1)


def _train() -> int:
    from ard_jax.cli import train

    if _CONFIG.value is None:
        raise ValueError("--config is missing; try --config=configs/ciard_digits.py")
    train.run(_experiment())
    return 0


def _compare() -> int:
    from ard_jax.cli import compare, train
    from ard_jax.config.comparison import from_config

    if _CONFIG.value is None:
        raise ValueError("--config is missing; try --config=configs/compare_digits.py")
    comparison = from_config(_CONFIG.value)
    train.use_compilation_cache(next(iter(comparison.experiments.values())))
    return compare.run(comparison)


def _evaluate() -> int:
    from ard_jax.cli import train

    path, experiment = _CHECKPOINT.value, _experiment()
    if experiment is None:
        if not path:
            raise ValueError("--mode=evaluate needs --checkpoint or --config")
        experiment = train.saved_experiment(path)
        train.use_compilation_cache(experiment)
    path = path or str(train.workdir_of(experiment))
    names = _ATTACKS.value or list(experiment.eval.attacks)
    train.evaluate_checkpoint(experiment, path, names, _TRANSFER.value)
    return 0


def _import() -> int:
    if _SOURCE.value == "list":
        from ard_jax.interop import catalogue

        print(catalogue.table())
        return 0
    from ard_jax.cli import import_network

    import_network.run(
        source=_SOURCE.value,
        file=_FILE.value,
        out=_OUT.value,
        model=_MODEL.value,
        normalization=_NORMALIZATION.value,
        experiment=_experiment(),
        key=_KEY.value,
        download=_DOWNLOAD.value,
        force=_FORCE.value,
    )
    return 0


def _export() -> int:
    from ard_jax.cli import export

    export.run(
        checkpoint=_CHECKPOINT.value,
        out=_OUT.value,
        formats=tuple(_FORMAT.value),
        item=_ITEM.value,
        fold_batchnorm=_FOLD.value,
        experiment=_experiment(),
    )
    return 0


def _plan() -> int:
    from ard_jax.cli import plan
    from ard_jax.config import parse

    if _CONFIG.value is None or not _DEVICES.value:
        raise ValueError(
            "--mode=plan needs --config and --devices, e.g. --config=configs/ciard_cifar10.py "
            "--devices=v4-32"
        )
    experiment = parse.to_experiment(_CONFIG.value)
    return plan.run(experiment, _DEVICES.value, _ASSUME.value, _COMPILE.value, _PLAN_JSON.value)


def _experiment():
    """The experiment of --config, with its compilation cache in use; None without --config."""
    if _CONFIG.value is None:
        return None
    from ard_jax.cli import train
    from ard_jax.config import parse

    experiment = parse.to_experiment(_CONFIG.value)
    train.use_compilation_cache(experiment)
    return experiment


_RUN = {
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "import": _import,
    "export": _export,
}


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
