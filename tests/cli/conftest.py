"""The command line within the test's process."""

import logging
import os
from pathlib import Path

import pytest
from absl import flags
from absl import logging as absl_logging
from absl.testing import flagsaver

import ard_jax.main
from ard_jax.cli import command_line
from ard_jax.runtime import preemption


@pytest.fixture
def main(monkeypatch, capfd):
    """main(*arguments) -> (exit code, stdout, stderr), as of `python -m ard_jax.main` in the checkout."""

    def run(*arguments):
        capfd.readouterr()
        saved, logger = flagsaver.save_flag_values(), logging.getLogger("absl")
        level, verbosity, folder = logger.level, absl_logging.get_verbosity(), os.getcwd()
        try:
            os.chdir(Path(__file__).parents[2])
            code = ard_jax.main.main(command_line.parse(["main", *arguments]))
        except SystemExit as exit:
            code = exit.code
        finally:
            os.chdir(folder)
            flagsaver.restore_flag_values(saved)
            absl_logging.set_verbosity(verbosity)
            logger.setLevel(level)
        return (code, *capfd.readouterr())

    flags.FLAGS.unparse_flags()
    monkeypatch.setattr(preemption, "install", lambda: None)  # would keep the process's SIGTERM
    return run
