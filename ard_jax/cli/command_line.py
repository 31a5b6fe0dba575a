"""The command line, parsed by absl, where a user's mistake ends in one message and exit code 2."""

import os
import re
import sys
import warnings
from collections.abc import Iterable
from typing import Any

from absl import flags

from ard_jax.cli import flags as own_flags
from ard_jax.cli import help_text
from ard_jax.cli.flags import MODES_OF
from ard_jax.config import removed
from ard_jax.io.files import output_is_lost

_DASHES = ("—", "–", "−")  # what word processors make of two hyphens
_HELP = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}
_FLAG = re.compile(r"--?([a-z_]+)(?:=|$)")
# Flags of other programs -> what to do here.
_FOREIGN = {
    "resume": "the same command continues a run where it was",
    "lr": "set --config.student_optim.lr",
    "learning_rate": "set --config.student_optim.lr",
    "gpu": "all devices that JAX sees are used; JAX_PLATFORMS and CUDA_VISIBLE_DEVICES choose",
    "device": "all devices that JAX sees are used; JAX_PLATFORMS and CUDA_VISIBLE_DEVICES choose",
    "dataset": "set --config.data.name, or choose the file, such as --config=configs/cifar10.py:rslad",
    "method": "choose it behind the file, such as --config=configs/cifar10.py:rslad",
    **{
        name: f"set --config.{name}"
        for name in ("epochs", "eps", "norm", "batch_size", "seed", "workdir", "precision")
    },
    "epsilon": "set --config.eps",
}
_EXPECTED = {"bool": "true or false", "int": "an integer"}
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def tell_warnings_once() -> None:
    """Prints every later warning once, as one line on stderr without its place in the code."""
    told = set()

    def show(message: Warning | str, *_: Any) -> None:
        if (text := str(message)) not in told:
            told.add(text)
            print(f"WARNING: {text}", file=sys.stderr, flush=True)

    warnings.showwarning = show


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; for `absl.app.run(flags_parser=...)`.

    Args:
      argv: the program and its arguments.

    Returns:
      The program and what is no flag.

    Raises:
      SystemExit: code 0 after --help; code 2, after a message, for a bad flag, one of another mode, or one of
        an option that was removed.
    """
    if _HELP & set(argv[1:]):
        try:
            print(help_text.text(), flush=True)
        except BrokenPipeError:  # `| head` reads a part of it
            output_is_lost()
        sys.exit(0)
    problem = "; ".join(removed.on_command_line(argv[1:]))
    if "=" in argv[1:]:
        problem = "= stands alone: write --NAME=VALUE without spaces"
    if not problem:
        try:
            rewritten = _rewritten(argv[1:])
            left = flags.FLAGS([argv[0], *rewritten])
            values = flags.FLAGS
            problem = _unused(values) or _repeated(values, rewritten) or _empty_items(values)
            if not problem:
                return _with_runs(left)
        except flags.Error as error:
            problem = _bad_value(flags.FLAGS, str(error))
    print(f"ERROR: {problem}", file=sys.stderr, flush=True)
    sys.exit(2)


def _with_runs(left: list[str]) -> list[str]:
    """What is no flag, without the folders that --mode=show takes, which become its --runs."""
    if own_flags.MODE.value != "show" or len(left) < 2 or flags.FLAGS["runs"].present:
        return left
    flags.FLAGS.runs = left[1:]
    return left[:1]


def unexpected(left: list[str]) -> str:
    """What to say of arguments that are no flags."""
    meant, mode = [], own_flags.MODE.value
    for one in left:
        if one.startswith(_DASHES):
            meant.append(f"--{one[1:]}")
        elif one in own_flags.MODES:
            meant.append(f"--mode={one}")
        elif mode in ("evaluate", "export", "teacher") and os.path.isdir(one):
            meant.append(f"--checkpoint={one}")
        elif mode == "import" and os.path.isfile(one):
            meant.append(f"--file={one}")
        elif mode == "show":
            meant.append(f"--runs={','.join([*(flags.FLAGS.runs or []), one])}")
        elif one.partition(":")[0].endswith(".py"):
            meant.append(f"--config={one}")
    hint = f"; is {' '.join(meant)} meant?" if meant else ""
    return f"unexpected arguments {left}; flags start with --{hint}"


def _rewritten(arguments: Iterable[str]) -> list[str]:
    """The arguments, with --override=PATH=VALUE for each value of the configuration.

    Those are `--config.x=v`, `--config.x v`, `--config.x` for True and `--noconfig.x` for False.
    """
    found: list[str] = []
    pending = list(arguments)
    while pending and pending[0] != "--":
        argument = pending.pop(0)
        if not (match := _OVERRIDE.fullmatch(argument)):
            found.append(argument)
            continue
        negated, path, text = match.groups()
        if text is None and not negated and pending and not re.match("-+[a-z]", pending[0]):
            text = pending.pop(0)
        text = "False" if negated and text is None else text
        found.append(f"--override={path}" + ("" if text is None else f"={text}"))
    return found + pending


def _bad_value(values: flags.FlagValues, told: str) -> str:
    """What absl tells of a flag, but for the Python error of a value that is no boolean or integer."""
    foreign = re.match("Unknown command line flag '([a-z_]+)'", told)
    if foreign and (hint := _FOREIGN.get(foreign[1])):
        return f"--{foreign[1]} does not exist: {hint}"
    match = re.match("flag --([a-z_]+)=(.*?): ", told, re.DOTALL)
    expected = match and _EXPECTED.get(values[match[1]].flag_type())
    return f"--{match[1]}={match[2]}: expected {expected}" if match and expected else told


def _repeated(values: flags.FlagValues, arguments: list[str]) -> str:
    """Which flags are given more than once, so that only the last would count; "" if none."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    given = [match[1] for one in options if (match := _FLAG.match(one))]
    found = []
    for name in ("mode", "config", *MODES_OF):
        if (count := given.count(name) + given.count(f"no{name}")) > 1:
            several = (
                ", with commas between its values" if isinstance(values[name].value, list) else ""
            )
            found.append(f"--{name} is given {count} times; give it once{several}")
    paths = [
        one.removeprefix("--override=").partition("=")[0]
        for one in options
        if one.startswith("--override=")
    ]
    for path in dict.fromkeys(paths):
        if (count := paths.count(path)) > 1:
            found.append(f"--config.{path} is given {count} times; give it once")
    return "; ".join(found)


def _empty_items(values: flags.FlagValues) -> str:
    """Which flags have nothing beside a comma; "" if none."""
    given = ((name, values[name].value) for name in MODES_OF)
    return "; ".join(
        f"--{name}={','.join(items)}: nothing stands beside a comma; leave that comma out"
        for name, items in given
        if isinstance(items, list) and not all(str(one).strip() for one in items)
    )


def _unused(values: flags.FlagValues) -> str:
    """Which flags belong to another mode; "" if none."""
    found = [
        f"--{name} is for --mode={' and '.join(modes)}, not for --mode={values.mode}"
        for name, modes in MODES_OF.items()
        if values[name].present and values.mode not in modes
    ]
    return "; ".join(found)
