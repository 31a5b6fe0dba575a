"""`python -m ard_jax.main --config=configs/ciard_digits.py`: train, evaluate a checkpoint, or compare.

Kept short: flags and dispatch only, everything else can be imported and tested.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file, e.g. configs/ciard_digits.py.", lock_config=True
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "compare", "plan"],
    "train: one experiment, or continue it. evaluate: a checkpoint again. compare: methods times seeds "
    "with shared teachers, ending in tables and a plot; --config is e.g. configs/compare_digits.py, a part "
    "of it --config.seeds='(0,1)' --config.methods=\"('sat','rslad')\". Exit code of compare: 1 when "
    "a run failed. plan: what --config would cost on --devices, on paper; exit code 1 when it does not fit.",
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "For --mode=evaluate: a run's folder, its best/ or last/, or one step."
)
_ATTACKS = flags.DEFINE_list(
    "attacks",
    None,
    "For --mode=evaluate: attack names, comma separated, e.g. autoattack; default config.eval.attacks.",
)
_TRANSFER = flags.DEFINE_string(
    "transfer_from", "", "For --mode=evaluate: another run, whose attacks are tried on this one."
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

    from ard_jax import checkpoint, compare, config, distributed, loop, preemption, train

    try:
        if _MODE.value == "plan":  # needs neither devices nor other hosts
            return _plan(config)
        distributed.start()
        preemption.install()
        if _MODE.value == "train":
            if _CONFIG.value is None:
                raise ValueError("--config is missing; try --config=configs/ciard_digits.py")
            experiment = config.build(_CONFIG.value)
            train.use_compilation_cache(experiment)
            train.run(experiment)
        elif _MODE.value == "compare":
            if _CONFIG.value is None:
                raise ValueError("--config is missing; try --config=configs/compare_digits.py")
            comparison = compare.build(_CONFIG.value)
            train.use_compilation_cache(next(iter(comparison.experiments.values())))
            return compare.run(comparison)
        else:
            raw = _CONFIG.value
            path = _CHECKPOINT.value
            if raw is None:
                if not path:
                    raise ValueError("--mode=evaluate needs --checkpoint or --config")
                raw = checkpoint.read_meta(checkpoint.find(path))["experiment"]
            experiment = config.build(raw)
            train.use_compilation_cache(experiment)
            names = _ATTACKS.value or list(experiment.eval.attacks)
            path = path or str(train.workdir_of(experiment))
            train.evaluate_checkpoint(experiment, path, names, _TRANSFER.value)
    except preemption.PreemptedError as error:
        distributed.tell(f"PREEMPTED: {error}. The same command continues.", file=sys.stderr)
        return distributed.EXIT_PREEMPTED
    except (ValueError, loop.TrainingDivergedError) as error:
        print(f"ERROR: {error}", file=sys.stderr, flush=True)
        return 2
    except jax.errors.JaxRuntimeError as error:
        distributed.give_up(error)
        raise
    return 0


def _plan(config) -> int:
    from ard_jax import plan

    if _CONFIG.value is None or not _DEVICES.value:
        raise ValueError(
            "--mode=plan needs --config and --devices, e.g. --config=configs/ciard_cifar10.py "
            "--devices=v4-32"
        )
    experiment = config.build(_CONFIG.value)
    return plan.run(experiment, _DEVICES.value, _ASSUME.value, _COMPILE.value, _PLAN_JSON.value)


if __name__ == "__main__":
    app.run(main)
