"""`ard-jax --config=ciard_digits`, or `python -m ard_jax.main --config=configs/ciard_digits.py`: all modes.

Kept short: flags and dispatch only, everything else can be imported and tested.
"""

import logging
import sys
from typing import Any

from absl import app
from absl import logging as absl_logging

from ard_jax.cli import command_line, flags, modes

_INTERRUPTED = 130  # what shells report after Ctrl-C


def main(argv: list[str]) -> int:
    """Runs the mode; a user's mistake ends in one message and exit code 2."""
    if len(argv) > 1:
        print(f"ERROR: {command_line.unexpected(argv[1:])}", file=sys.stderr)
        return 2
    absl_logging.set_verbosity(absl_logging.WARNING)
    # By that logger Orbax logs what it then raises, from several threads; ours say what users must know.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        return _run()
    except KeyboardInterrupt as error:
        _tell_interrupted(error)
        return _INTERRUPTED


def _tell_interrupted(error: KeyboardInterrupt) -> None:
    print(f"INTERRUPTED: {error}" if str(error) else "INTERRUPTED", file=sys.stderr, flush=True)


def _run() -> int:
    if flags.MODE.value == "doctor":  # it tells of packages that the others import
        return modes.doctor()
    # Heavy imports after flag parsing, so that --help and mistyped flags answer at once.
    from ard_jax.cli import config_file, failures
    from ard_jax.convolutions import winograd
    from ard_jax.runtime import distributed, environment, preemption, sharding

    try:
        mode, name, overrides = (
            modes.BY_NAME[flags.MODE.value],
            flags.CONFIG.value,
            modes.overrides(),
        )
        if flags.OVERRIDES.value and not name:
            raise ValueError(f"--config.{flags.OVERRIDES.value[0]} needs --config=FILE")
        config: Any = config_file.load(name, overrides) if name else None
        environment.raise_open_files()
        environment.fix_numbers()
        if mode in modes.ALONE:
            return mode(config)
        run = config.get("run", {}) if config is not None else {}
        distributed.start(run.get("distributed", "auto"), run.get("distributed_timeout", 300.0))
        sharding.use_cores()
        # For all threads, and anew in each call: a value of this thread would compile AutoAttack twice.
        winograd.use.set_global(run.get("winograd", "auto"))
        preemption.install()
        code = mode(config)
        print(end="", flush=True)  # of a full disk it is told here, not by Python as it ends
        return preemption.leave_interrupted() if code == _INTERRUPTED else code
    except KeyboardInterrupt as error:
        _tell_interrupted(error)
        return preemption.leave_interrupted()
    except Exception as error:
        return failures.report(error)


def console() -> None:
    """The command `ard-jax`; exits with the code of `main`."""
    command_line.tell_warnings_once()
    app.run(main, flags_parser=command_line.parse)


if __name__ == "__main__":
    console()
