"""The command line; launch/reproduce_cifar10.sh calls it. docs/reproduce.md explains it."""

import argparse
import os
import shlex
import sys
import traceback
from pathlib import Path

_SESSION = ".session"  # its lock keeps two sessions apart


def main(arguments: list[str] | None = None) -> int:
    """Runs, packs or unpacks. Returns the exit code: 75 when the same command is to be given again."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for name in ("hours", "session_hours"):
        if getattr(options, name) < 0:
            parser.error(f"--{name.replace('_', '-')} must not be negative")
    # Heavy imports after the flags, so that --help and mistakes answer at once.
    import jax
    from absl import logging

    from ard_jax import distributed, preemption

    logging.set_verbosity(logging.WARNING)  # JAX and Orbax say much that is not for users
    if options.pack or options.unpack:
        jax.config.update("jax_platforms", "cpu")  # nothing to compute
    elif options.device != "auto":
        jax.config.update(
            "jax_platforms", {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}[options.device]
        )
    try:
        return _carry(options) if options.pack or options.unpack else _run(options)
    except preemption.PreemptedError as error:
        print(f"STOPPED: {error}. The same command continues.", file=sys.stderr)
        return distributed.EXIT_PREEMPTED
    except KeyboardInterrupt:
        print("Interrupted; the same command continues.", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ard_jax.reproduce", description=__doc__)
    add = parser.add_argument
    add("--workdir", default="runs/reproduce_cifar10", help="folder of the work (%(default)s)")
    add("--hours", type=float, default=0.0, help="time for everything; needed at the first start")
    add("--data-dir", default="", help="TFDS folder with cifar10 ($TFDS_DATA_DIR)")
    add("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="(%(default)s)")
    add("--clean-teacher", default="", help="folder of an imported clean teacher; none: trains one")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="(%(default)s)")
    add("--methods", default="", help="comma separated; none: all seven")
    add("--seeds", type=int, default=1, choices=range(1, 11), help="seeds of each student (1)")
    add(
        "--measure",
        choices=("auto", "few", "all"),
        default="auto",
        help="programs to measure first",
    )
    add("--session-hours", type=float, default=0.0, help="stop after so long, code 75; 0: no limit")
    add("--whole-runs", action="store_true", help="begin nothing that the session cannot finish")
    add("--pack", default="", metavar="DIR", help="only: write what must be carried to DIR")
    add("--pack-limit", type=int, default=0, metavar="BYTES", help="of the pack; 0: no limit")
    add("--unpack", default="", metavar="DIR", help="only: put a pack back into --workdir")
    return parser


def _run(options: argparse.Namespace) -> int:
    from ard_jax import locks, preemption, sharding
    from ard_jax.reproduce import run, session

    sharding.use_cores()  # as `ard_jax.main`
    workdir = Path(options.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    data, teacher = (
        str(Path(p).expanduser().absolute()) if p else ""
        for p in (options.data_dir, options.clean_teacher)
    )
    os.chdir(workdir)  # paths in the schedule and the checkpoints are relative: the folder can move
    preemption.install()
    with locks.hold(Path(_SESSION)):
        run.link_data(data)
        few = None if options.measure == "auto" else options.measure == "few"
        methods = tuple(options.methods.split(",")) if options.methods else ()
        wanted = run.Options(options.hours, teacher, options.precision, methods, options.seeds, few)
        command = "python -m ard_jax.reproduce " + shlex.join(sys.argv[1:])
        limit, whole = options.session_hours, options.whole_runs
        try:
            with session.Session(Path(), limit, whole, command) as clock:
                return run.work(wanted, clock)
        finally:
            run.tables()


def _carry(options: argparse.Namespace) -> int:
    from ard_jax import locks
    from ard_jax.reproduce import pack

    workdir = Path(options.workdir)
    if options.pack and not workdir.is_dir():
        raise pack.PackError(f"--workdir={workdir} does not exist")
    with locks.hold(workdir / _SESSION):
        if options.unpack:
            count = pack.unpack(Path(options.unpack), workdir)
            print(f"{count} files of {options.unpack} are in {workdir}")
        if options.pack:
            made = pack.pack(workdir, Path(options.pack), options.pack_limit)
            size = sum(part["bytes"] for part in made["parts"])
            print(
                f"{made['files']} files, {size / 1e6:.1f} MB in {len(made['parts'])} parts: {options.pack}"
            )
            for left in made["left_out"]:
                print(f"  left out, {left['bytes'] / 1e6:.1f} MB: {left['what']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
