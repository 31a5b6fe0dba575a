"""The command line, parsed by absl, where a user's mistake ends in one message and exit code 2."""

import re
import sys
from pathlib import Path

from absl import flags

from ard_jax.config import removed

# A file of one method, as there was for each: configs/rslad_cifar10.py is configs/cifar10.py:rslad.
_METHOD_FILE = re.compile(r"(\w+)_(digits|cifar100|cifar10|tiny_imagenet)\.py")


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; for `absl.app.run(flags_parser=...)`.

    Args:
      argv: the program and its arguments.

    Returns:
      The program and what is no flag.

    Raises:
      SystemExit: code 2, after a message, for a bad flag, one of an option that was removed, a missing
        config file or a config file that refuses what stands behind its colon.
    """
    problem = "; ".join(removed.on_command_line(argv[1:])) or _config_problem(argv[1:])
    if not problem:
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            problem = _message(error)
    print(f"ERROR: {problem}", file=sys.stderr, flush=True)
    sys.exit(2)


def _config_problem(arguments: list[str]) -> str:
    """Why the file of --config cannot be read; "" if it can, or is not given."""
    values = [
        argument.partition("=")[2] or following
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=False)
        if re.match(r"--?config(=|$)", argument)
    ]
    name, _, variant = (values or [""])[-1].partition(":")
    path = Path(name)
    if not name or path.is_file():
        return ""
    method = _METHOD_FILE.fullmatch(path.name)
    if method and (file := path.with_name(f"{method[2]}.py")).is_file():
        choice = f"{method[1]}:{variant}" if variant else method[1]
        return f"{name} does not exist; the config of a method is --config={file}:{choice}"
    return f"--config={values[-1]}: {name} does not exist"


def _message(error: flags.Error) -> str:
    """What is wrong; without the traceback that ml_collections puts around a config file's ValueError."""
    raised = error.__context__ and error.__context__.__context__
    if "Error whilst parsing config file" in str(error) and isinstance(raised, ValueError):
        return str(raised)
    return str(error)
