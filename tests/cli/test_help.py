"""--help: quick, whole, and what the schema says."""

import subprocess
import sys

from ard_jax.cli import config_file, flags, help_text, modes
from ard_jax.config.schema import Experiment
from ard_jax.io import options


def field(path):
    record = Experiment
    *groups, last = path.split(".")
    for name in groups:
        record = options.record_of(record.model_fields[name].annotation)
    return record.model_fields[last]


def test_keys_are_those_of_the_schema():
    found = {key.name: key for key in help_text.keys()}
    groups = tuple(name.removesuffix("*") for name in found if name.endswith(".*"))
    leaves = {name for name, _ in config_file._leaves(Experiment)}
    assert leaves == {n for n in leaves if n in found or n.startswith(groups)}
    plain = {name: key for name, key in found.items() if not name.endswith(".*")}
    assert set(plain) <= leaves
    for name, key in plain.items():
        known = field(name)
        assert key.meaning.startswith(known.description)
        assert bool(key.default) == (not known.is_required())
    assert found["norm"].meaning == "Of the attack radius. One of 'linf', 'l2'."
    assert found["teachers.clean.*"].meaning.endswith("Keys as in teachers.robust.*.")


def test_help_tells_all_and_ends_well(main):
    code, told, wrong = main("--help")
    assert code == 0 and not wrong
    assert set(flags.MODES) == {*modes.BY_NAME, "doctor"}
    for name in (*flags.MODES, *(f"--{name}" for name in flags.MODES_OF), "eval.eps_sweep"):
        assert f"\n  {name} " in told
    assert max(map(len, told.splitlines())) <= 110


def test_help_imports_nothing_heavy():
    code = "import sys, ard_jax.main; assert not {'jax', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
