"""What users get wrong on the command line: one message that names the thing, the value and the fix."""

import errno
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from absl import flags as absl_flags
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ard_jax.cli import command_line, config_file, failures, train_checks, values
from ard_jax.config import comparison, parse
from ard_jax.runtime import environment, preemption

ROOT = Path(__file__).parents[2]
DIGITS, SAT, CIARD = "digits.py:natural", "digits.py:sat", "digits.py:ciard"
RSLAD = "digits.py:rslad"


def experiment(file, *overrides):
    return parse.to_experiment(config_file.load(f"{ROOT}/configs/{file}", overrides))


# (config, overrides, the message's beginning)
REFUSED = [
    (DIGITS, ["epochs=1000000000000"], "config.epochs=1000000000000: must be at most 1000000"),
    (SAT, ["norm=l2", "eps=0"], "config.eps=0.0: must be greater than 0"),
    (SAT, ["norm=l2", "eps=128"], "config.eps=128.0: no two images of digits are further apart than 8"),
    (SAT, ["norm=l2", "eps=nan"], "config.eps=nan: must be a finite number"),
    (SAT, ["eps=8/0"], "config.eps=8/0: expected a number, such as 0.5, 1e-3 or 8/255"),
    (SAT, ["eps=1e-12"], "config.eps=1e-12: must be at least 0.1/255 = 0.000392, a tenth of a grey level"),
    (DIGITS, ["student_optim.lr=1e30"], "config.student_optim.lr=1e+30: must be at most 100"),
    (DIGITS, ["student_optim.weight_decay=nan"], "config.student_optim.weight_decay=nan: must be a finite"),
    (DIGITS, ["student_optim.weight_decay=inf"], "config.student_optim.weight_decay=inf: must be a finite"),
    (DIGITS, ["epochs=1", "student_optim.warmup=50"], "config.student_optim.warmup=50: must be less"),
    (DIGITS, ["student_optim.schedule=multistep", "student_optim.boundaries=('a',)"],
     "config.student_optim.boundaries[0]='a': expected an"),
    (DIGITS, ["student_optim.schedule=multistep", "student_optim.boundaries=-5"],
     "config.student_optim.boundaries[0]=-5: must be at least 1"),
    (DIGITS, ["epochs=1", "student_optim.schedule=multistep", "student_optim.boundaries=5"],
     "config.student_optim.boundaries=(5,): [5] lie behind the last of 1 epochs"),
    (DIGITS, ["student_optim.schedule=multistep", "student_optim.decay=nan"],
     "config.student_optim.decay=nan: must be a finite number"),
    (DIGITS, ["student_optim.schedule=multistep", "student_optim.decay=-1.0"],
     "config.student_optim.decay=-1.0: must be greater than 0"),
    (DIGITS, ["seed=100000000000000000000"], "config.seed=100000000000000000000: must be at most 4294967295"),
    (DIGITS, ["eval.seed=-1"], "config.eval.seed=-1: must be at least 0"),
    (DIGITS, ["epochs=1", "swa_start=99"], "config.swa_start=99: must be at most config.epochs=1"),
    (DIGITS, ["data.augment=none", "data.pad=1"], "config.data.pad is of random crops: leave it out with"),
    (DIGITS, ["data.flip=on"], "config.data.flip is of the stronger augmentations: leave it out with"),
    (DIGITS, ["data.extra_fraction=0.5"], "config.data.extra_fraction is of config.data.extra: give"),
    (SAT, ["awp.gamma=1e9"], "config.awp.gamma=1000000000.0: must be at most 1"),
    (SAT, ["awp.gamma=0.01", "awp.start=-4"], "config.awp.start=-4: must be at least 1"),
    (SAT, ["igdm.weight=0.5"], "config.igdm.weight=0.5: method 'sat' takes no gradient matching"),
    (SAT, ["awp.start=3"], "config.awp.start=3 has no effect with gamma=0.0: set gamma too, or leave start"),
    (RSLAD, ["igdm.variant=released"], "config.igdm.variant='released' has no effect with weight=0.0: set"),
    (RSLAD, ["igdm.beta=2"], "config.igdm.beta=2.0 has no effect with weight=0.0: set weight too, or leave"),
    (SAT, ["data.cutmix=1", "attack.name=adr_train", "batch_size=1"], "config.batch_size=1: config."),
    (RSLAD, ["teachers.robust.recipe.beta=3"], "config.teachers.robust.recipe.beta is of 'trades': leave it"),
    (CIARD, ["teachers.clean.recipe.attack.steps=3"], "config.teachers.clean.recipe.attack.steps is of 'sat' "
     "and 'trades': leave it out with config.teachers.clean.recipe.method='natural'"),
    (CIARD, ["teachers.robust.checkpoint=runs/x", "teachers.robust.recipe.epochs=9"], "config.teachers.robust"
     ".recipe.epochs is of a teacher that is trained: leave it out with config.teachers.robust.checkpoint="),
    (SAT, ["igdm.weight=-1"], "config.igdm.weight=-1.0: must be at least 0"),
    (DIGITS, ["data.holdout=1.0"], "config.data.holdout=1.0: a share below 1, or a whole number of images"),
    (DIGITS, ["data.holdout=inf"], "config.data.holdout=inf: must be a finite number"),
    (DIGITS, ["data.pad=500"], "config.data.pad=500: must be less than the images' 8 pixels"),
    (DIGITS, ["student.kwargs.depth=3"], "config.student: small_resnet has no option depth"),
    (DIGITS, ["student.kwargs.num_classes=4"], "config.student.kwargs.num_classes is no option of an arch"),
    (DIGITS, ['student.normalization={"mean":[0.5],"std":[0]}'], "values must be finite and std positive"),
    (DIGITS, ['student.normalization={"mean"'], "config.student: normalization='{\"mean\"' is no JSON"),
    (DIGITS, ["data.dir=/nowhere"], "config.data.dir='/nowhere': digits come with a package"),
    (DIGITS, ["data.name=folder", "data.image_size=100000"], "config.data.image_size=100000: must be at"),
    (SAT, ["attack.steps=1000000000"], "config.attack.steps=1000000000: must be at most 10000"),
    (SAT, ["attack.step_size=100.0"], "config.attack.step_size=100.0: must be at most 1"),
    (SAT, ["attack.options.foo=1"], "config.attack: attack 'sat_train' has no parameter foo; it has"),
    (SAT, ["attack.options.restarts=0"], "config.attack: attack 'sat_train': restarts=0: must be an integer"),
    (DIGITS, ["method.beta=6.0"], "config.method.beta does not exist: this method has no options"),
    ("digits.py:trades", ["method.gamma=1"], "config.method.gamma does not exist: this method has the opt"),
    (DIGITS, ["student.kwargs.widths=(9,100000)"], "config.student.kwargs.widths=(9, 100000): must be"),
    (DIGITS, ["student.model=wrn_100000_10"], "config.student.model='wrn_100000_10': must be at most 10000"),
    (DIGITS, ["eval.attacks=rslad_train"], "config.eval.attacks: 'rslad_train': choose one of 'adr_trades"),
    (DIGITS, ["eval.step_sizes.pgd20=0.1"], "config.eval.step_sizes: pgd20 is no attack of this evaluation"),
    (DIGITS, ["eval.attacks=fgsm", "eval.eps_sweep=()", "eval.step_sizes.pgd_sat=0.1"],
     "config.eval.step_sizes: pgd_sat is no attack of this evaluation"),
    (DIGITS, ["student_optim.schedule=constant", "student_optim.warmup=5"],
     "warmup=5: schedule='constant' has no warm-up; give 0, or"),
    (DIGITS, ["student_optim.schedule=constant", "student_optim.boundaries=3,"],
     "config.student_optim.boundaries is of multistep: leave it out with config.student_optim"),
    (DIGITS, ["attack.steps=7"], "config.attack.steps: natural trains without an attack; leave it out"),
    (SAT, ["attack.bn_stats=keep"], "config.attack.bn_stats is of config.attack.bn=train: set that too, or"),
    (SAT, ["eval.attacks=fgsm", "eval.save_images=True"], "config.eval.save_images: AutoAttack's images are"),
    (SAT, ["epochs=3", "eval.dense_from=50"], "config.eval.dense_from=50 lies behind the last of 3 epochs"),
    (SAT, ["data.workers=4"], "config.data.workers is of config.data.loader=grain: set that too, or leave"),
    (SAT, ["eval.eps_sweep=8/255,16/255"], "multiples of config.eps, such as 0.5 and 1, not radii"),
    (DIGITS, ["eval.step_sizes.foo=0.1"], "config.eval.step_sizes: 'foo': choose one of"),
    (DIGITS, ["eval.step_sizes.pgd_sat=-1.0"], "config.eval.step_sizes.pgd_sat=-1.0: must be greater"),
    (DIGITS, ["eval.max_selection_examples=-5"], "config.eval.max_selection_examples=-5: must be at least 0"),
    (DIGITS, ["eval.eps_sweep=(-1.0,)"], "config.eval.eps_sweep[0]=-1.0: must be at least 0"),
    (DIGITS, ["eval.eps_sweep=(nan,)"], "config.eval.eps_sweep[0]=nan: must be a finite number"),
    (DIGITS, ["eval.eps_sweep=(float('nan'),)"], "config.eval.eps_sweep=(float('nan'),): expected a tuple"),
    (DIGITS, ["run.devices=-1"], "config.run.devices=-1: must be at least 0"),
    (DIGITS, ["run.log_every=0"], "config.run.log_every=0: must be at least 1"),
    (DIGITS, ["run.save_every=0"], "config.run.save_every=0: must be at least 1"),
    (DIGITS, ["run.save_every=-2"], "config.run.save_every=-2: must be at least 1"),
    (DIGITS, ["name="], "config.name='': names a folder: give up to 200 letters without"),
    (DIGITS, ["name=../../x/b"], "config.name='../../x/b': names a folder: give up to 200 letters"),
    (DIGITS, ["teachers.robust.checkpoint=/nope"], "config.teachers.robust.checkpoint: "
     "config.teachers.robust is None, so nothing in it can be set; methods with a robust teacher are absld"),
    (DIGITS, ["method.name=trades"], "digits.py:natural has the attack sat_train, that of trades is trades_"),
    ("digits.py:trades", ["method.name=mart"], "has beta=6.0 for trades; use a config of mart"),
    (SAT, ["norm=l2", "eps=2.5", "eval.eps_sweep=(1,4)"], "config.eval.eps_sweep=(1.0, 4.0): [4.0] times "),
    (CIARD, ["teachers.robust.recipe.epochs=0"], "config.teachers.robust.recipe.epochs=0: must be at least"),
    (CIARD, ["teachers.robust.recipe.seed=-1"], "config.teachers.robust.recipe.seed=-1: must be at least 0"),
    (CIARD, ["method.temp_rate=nan"], "config.method.temp_rate=nan: must be a finite number"),
    (CIARD, ["method.decay_epochs=('a',)"], "config.method.decay_epochs[0]='a': expected an integer"),
    (SAT, ["attack.eps=0.1"], "config.attack.eps does not exist; did you mean config.eps or"),
    (SAT, ["student_optim.name=adam"], "config.student_optim.name does not exist; did you mean config."),
    (DIGITS, ["epoch=3"], "config.epoch does not exist; did you mean config.epochs or"),
    (DIGITS, ["student_optim.learning_rate=3"], "config.student_optim.learning_rate does not exist; "
     "config.student_optim has beta2, boundaries,"),
    (DIGITS, ["student_optim.milestones=(1,)"], "config.student_optim.milestones does not exist; "
     "config.student_optim has beta2, boundaries,"),
    (DIGITS, ["epochs.student=1"], "config.epochs.student does not exist: config.epochs is one value"),
    (CIARD, ["teachers.robust.recipe.method.name=sat"], "recipe.method is one value; set that"),
    ("digits.py:consistency_at", ["data.augment=none"], "compares two augmentations of an image"),
    (DIGITS, ["student_optim.schedule=cosine", "student_optim.warmup=40"], "must be less than the 40 epochs"),
    (DIGITS, ["data=cifar10"], "config.data is a group of values: set those in it, such as config.data."),
    (DIGITS, ["eps:0.1=True"], "config.eps:0.1: = stands before a value: --config.eps=0.1"),
    (DIGITS, ["eval.step_sizes.pgd_sat:0.1=True"], "= stands before a value: --config.eval.step_sizes."),
    ("cifar10.py:natural", ["student.model=wrn_35_10"], "config.student: wrn_35_10: the depth of a wide ResN"
     "et must be 6 n + 4 (10, 16, 22, 28, 34, 40"),
    ("compare_digits.py", ["seeds=3"], "config.seeds=3: give the seeds themselves, such as 0,1,2 for"),
    ("compare_digits.py", ["seeds=0-2"], "config.seeds=0-2: expected a tuple, such as (1, 2); write a range"),
    (DIGITS, ["epochs=three"], "config.epochs=three: expected an integer"),
    (DIGITS, ["eval.teachers=perhaps"], "config.eval.teachers=perhaps: expected True or False"),
    ("digits.py:foo", [], "configs/digits.py knows no method 'foo'"),
    ("digits.py:natural:foo", [], "configs of natural have no variant 'foo': it has none"),
    ("ciard_digits.py:foo", [], "configs of ciard have no variant 'foo': natural, sat"),
    ("compare_digits.py", [], "this is the configuration of a comparison: use --mode=compare, or that of "),
    ("protocol.py", [], "is no config file; it has no get_config()"),
    ("rslad_cifar10.py", [], "the config of a method is --config="),
    ("ciard_digit.py", [], f"does not exist; did you mean {ROOT}/configs/ciard_digits.py or"),
    ("nope.py", [], "configs/nope.py does not exist"),
    ("../README.md", [], "README.md is no Python file with get_config(), such as FILE.py"),
    ("", [], "is a folder; give a config file"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "overrides", "message"), REFUSED)
def test_what_cannot_run_is_refused(file, overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        experiment(file, *overrides)


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError) as caught:
        experiment(DIGITS, "epoch=3", "eval.atacks=fgsm", "eps=eight")
    assert all(name in str(caught.value) for name in ("config.epochs", "eval.attacks", "eps=eight"))
    with pytest.raises(ValueError) as caught:
        experiment(DIGITS, "epochs=0", "eps=-1", "seed=-1")
    assert str(caught.value).count("must be") == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("vm", "line 1: NameError"),
        ("def get_config(", "line 1: SyntaxError"),
        ("import nowhere", "line 1: ModuleNotFoundError"),
        ("def get_config(): return 3", "returned int, not a ConfigDict"),
        ("def get_config(): return 1 / 0", "line 1: ZeroDivisionError"),
        ("def get_config(choice): return {}", "needs a choice behind a colon"),
        ("get_config = 3", "it has no get_config()"),
        (
            "def get_config(a, b): return {}",
            "has get_config(a, b), which must take nothing, or one text",
        ),
    ],
)
def test_a_broken_config_file_is_named(text, problem, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(config_file.ConfigFileError, match=re.escape(str(path))) as caught:
        config_file.load(str(path))
    assert problem in str(caught.value)


def test_a_json_file_is_no_config_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        config_file.ConfigFileError, match="config.json is JSON, .* --checkpoint=FOLDER"
    ):
        config_file.load(str(tmp_path / "config.json"))


def test_every_option_of_the_schema_can_be_set():
    made = experiment(
        CIARD, "eps=8/255", "student_optim.lr=1e-3", "eval.attacks=fgsm,pgd_sat", "epochs=1e2",
        "eval.eps_sweep=0,1/2,1", "attack.options.restarts=1", "student.kwargs.blocks=2",
        "method.push_t=2**-1",
        'student.normalization={"mean": [0.5], "std": [0.25]}', "eval.step_sizes.pgd_sat=2/255",
        "run.tensorboard=false",
    )  # fmt: skip
    assert (made.eps, made.student_optim.lr, made.epochs) == (8 / 255, 1e-3, 100)
    assert made.eval.attacks == ("fgsm", "pgd_sat") and made.eval.eps_sweep == (0, 0.5, 1)
    assert made.attack.options["restarts"] == 1 and made.student.kwargs["blocks"] == 2
    assert made.method.options["push_t"] == 0.5
    assert made.student.statistics() == {"mean": [0.5], "std": [0.25]}
    assert made.eval.step_sizes == {"pgd_sat": 2 / 255} and made.run.tensorboard is False


def test_a_comparison_takes_the_same_values():
    config = config_file.load(
        f"{ROOT}/configs/compare_digits.py",
        ["seeds=0,1", "methods=sat,rslad", "runs.sat.eps=1/4", "runs.rslad.eps=1/4"],
    )
    made = comparison.from_config(config)
    assert made.seeds == (0, 1) and {e.eps for e in made.experiments.values()} == {0.25}
    for bad, message in (
        ("foo=1", "config has data_dir"),
        ("runs.foo.eps=1", "runs.foo.eps does not"),
        (
            "runs.sat.method.name=trades",
            "runs.sat.method.name=trades: .* the attack sat_train, .* set config.runs.sat.attack.name",
        ),
        ("runs.natural.eval.grid=5", "natural.eval.grid: not measured without config.full_reports"),
        (
            "runs.natural.seed=5",
            "natural.seed: the runs of a comparison follow config.seeds; set that",
        ),
        (
            "runs.natural.workdir=x",
            "natural.workdir: the runs of a comparison follow config.workdir",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            config_file.load(f"{ROOT}/configs/compare_digits.py", [bad])
    with pytest.raises(
        ValueError, match="runs.sat.epochs: run 'sat' is not compared; config.methods has n"
    ):
        config_file.load(
            f"{ROOT}/configs/compare_digits.py", ["runs.sat.epochs=1", "methods=natural"]
        )
    with pytest.raises(ValueError, match="use --mode=train"):
        comparison.from_config(config_file.load(f"{ROOT}/configs/{DIGITS}"))
    with pytest.raises(ValueError, match=r"seeds\[0\]=-1: must be at least 0$"):
        comparison.from_config(config.to_dict() | {"seeds": (-1,)})


HINTS = [int, float, bool, str, tuple[float, ...], tuple[str, ...], dict[str, float], typing.Any]
LEAVES = config_file._types(config_file.load(f"{ROOT}/configs/{CIARD}"))
NUMBERS = {path: hint for path, hint in LEAVES.items() if hint in (int, float)}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(NUMBERS)),
    st.sampled_from(["nan", "inf", "-inf", "-1e30", "1e300", "one", "(1,)"]),
)
def test_every_number_has_a_range(path, text):
    with pytest.raises(ValueError, match=re.escape(f"config.{path}")):
        experiment(CIARD, f"{path}={text}")


@given(st.sampled_from(HINTS), st.text(max_size=30))
def test_no_text_crashes_the_parser(hint, text):
    try:
        values.parse(text, hint)
    except ValueError as error:
        assert "expected" in str(error)


@given(st.floats(-1e6, 1e6), st.integers(1, 10**6))
def test_arithmetic_is_pythons(number, divisor):
    assert values.parse(f"{number!r}/{divisor}", float) == number / divisor


def parsed(*arguments):
    """The flags of a command line; exits with 2 where it is wrong."""
    absl_flags.FLAGS.unparse_flags()
    command_line.parse(["main", *arguments])
    return absl_flags.FLAGS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=/nope", "--format=bar"], "--checkpoint is for --mode=evaluate and export"),
        (["--mode=plan", "--attacks=fgsm"], "--attacks is for --mode=evaluate, not for --mode=plan"),
        (["--mode=teacher", "--students=R,"], "--students=R,: nothing stands beside a comma; leave that"),
        (["--mode=evaluate", "--attacks=,fgsm"], "--attacks=,fgsm: nothing stands beside a comma"),
        (["--mode=evaluate", "--fold_batchnorm"], "--fold_batchnorm is for --mode=export"),
        (["--mode=evaluate", "--attacks=fgsm", "--attacks", "bim"], "--attacks is given 2 times; give it"),
        (["--config=a.py", "--config=b.py"], "--config is given 2 times; give it once"),
        (["--mod=train"], "Unknown command line flag 'mod'"),
        (["--resume"], "--resume does not exist: the same command continues a run where it was"),
        (["--mode=tain"], "value should be one of"),
        (["--mode=export", "--onnx_ir_version=8.5"], "ERROR: --onnx_ir_version=8.5: expected an integer\n"),
        (["--mode=plan", "--compile=maybe"], "ERROR: --compile=maybe: expected true or false\n"),
    ],
)  # fmt: skip
def test_flags_of_another_mode_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("ERROR: ") and message in told


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["--config.eps=8/255", "-config.norm", "l2"], ["eps=8/255", "norm=l2"]),
        (["--config.eval.grid", "--noconfig.eval.teachers"], ["eval.grid", "eval.teachers=False"]),
        (["--config.name=a=b", "--config.workdir="], ["name=a=b", "workdir="]),
        (["--config.eval.seed", "-1"], ["eval.seed=-1"]),
    ],
)  # fmt: skip
def test_ways_to_write_a_value(arguments, overrides):
    found = parsed("--config=x.py", *arguments)
    assert found.override == overrides and found.config == "x.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/ciard_digits.py", "--config.epoch=3"], "config.epoch does not exist"),
        (["--config=configs/ciard_cifar10.py", "--config.data.dir=/nowhere"], "/nowhere"),
        (["--config=configs/digits.py:natural", "--config.workdir=FILE"], "is not a folder"),
        (["--config=configs/ciard_digits.py", "--config.teachers.cache=FILE"], "config.teachers.cache="),
        (["--config=configs/digits.py:natural", "--config.batch_size=5000"], "5000"),
        (["--mode=evaluate", "--checkpoint=/nowhere"], "/nowhere does not exist"),
        (["--mode=evaluate", "--checkpoint=/nowhere", "--attacks="], "--attacks is empty; name some, or"),
        (["--config=configs/digit:sat"], "configs/digit does not exist; did you mean configs/digits.py:sat?"),
        (["--config=cifar_10:sat"], "cifar_10 does not exist; did you mean configs/cifar10.py:sat"),
        (["--config=configs/digits.py:natural", "--config.run.distributed=yes"],
         "config.run.distributed='yes': choose auto, off, HOST:PORT or HOST:PORT,COUNT,INDEX"),
        (["—config=digits:natural"], "flags start with --; is --config=digits:natural meant?"),
        (["--config=digits:sat", "--config.epochs", "=", "2"], "= stands alone: write --NAME=VALUE"),
        (["--config=https://example.com/digits.py"], "give a file of this machine"),
        (["--config=configs\\digits.py:sat"], "write folders with /: --config=configs/digits.py:sat"),
        (["--config.eps=1"], "--config.eps=1 needs --config=FILE"),
        ([], "--config is missing"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_and_leaves_nothing(arguments, message, tmp_path, main):
    (tmp_path / "file").touch()
    arguments = [a.replace("FILE", str(tmp_path / "file")) for a in arguments]
    if any("configs/" in a for a in arguments) and not any("workdir" in a for a in arguments):
        arguments.append(f"--config.workdir={tmp_path}/run")
    code, told, wrong = main(*arguments)
    assert code == 2 and told == ""
    assert wrong.startswith("ERROR: ") and message in wrong
    assert "Traceback" not in wrong and [p.name for p in tmp_path.iterdir()] == ["file"]


NOTHING_MORE = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
CLOSED = mock.Mock(
    write=mock.Mock(side_effect=NOTHING_MORE), fileno=lambda: os.open(os.devnull, os.O_WRONLY)
)
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "output", "code", "message"),
    [
        (ValueError("epochs=0"), None, 2, "ERROR: epochs=0"),
        (FULL, None, 2, "ERROR: a file of this run: No space left on device"),
        (FULL, CLOSED, 2, "ERROR: standard output: No space left on device"),
        (OSError(errno.EMFILE, "Too many open files", "/a"), None, 2, "ERROR: /a: Too many open files; "),
        (MemoryError("9 GiB"), None, 2, "ERROR: out of memory: 9 GiB; lower config.batch_size or"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GiB"), None, 2, "ERROR: out of memory: RESOURCE_EXHAUSTED: 9"),
        (preemption.PreemptedError("stopped"), None, 75, "PREEMPTED: stopped. The same command continues."),
        (RuntimeError("a fault of ours"), None, 1, "RuntimeError: a fault of ours"),
    ],
)  # fmt: skip
def test_what_ends_the_work_is_told(error, output, code, message, monkeypatch, capsys):
    if output:
        monkeypatch.setattr(sys, "stdout", output)
    assert failures.report(error) == code
    told = capsys.readouterr().err
    assert message in told and ("Traceback" in told or told.count("\n") == 1)


def test_a_device_that_is_not_there_is_told(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(failures.jax, "devices", mock.Mock(side_effect=AssertionError))
    assert failures.report(AssertionError()) == 2
    assert (
        "JAX finds no device of JAX_PLATFORMS='cuda'; set JAX_PLATFORMS=cpu"
        in capsys.readouterr().err
    )


def test_too_few_open_files_are_told(monkeypatch):
    monkeypatch.setattr(environment.resource, "getrlimit", lambda _: (40, 40))
    monkeypatch.setattr(environment.resource, "setrlimit", lambda *_: None)
    with pytest.raises(ValueError, match="ulimit -n is 40, .* ulimit -n 1024"):
        environment.raise_open_files()


def test_a_seed_is_the_same_run_whatever_jax_is_told(capsys):
    jax.config.update("jax_enable_x64", True)
    environment.fix_numbers()
    assert not jax.config.values["jax_enable_x64"]
    assert "JAX_ENABLE_X64=True is of no effect here: it is False" in capsys.readouterr().err


@pytest.mark.multiprocess
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="not on this system")
def test_a_full_output_is_one_message():
    command = [sys.executable, "-m", "ard_jax.main", "--mode=import", "--source=list"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "ERROR: standard output: No space left on device; make room, or give another path\n",
    )


@pytest.mark.multiprocess
def test_help_may_be_read_in_part():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ard_jax.main", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.multiprocess
def test_files_that_are_not_read_are_told(tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for split in ("train", "test"):
        for name in "ab":
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            image.save(folder / "1.png")
    (tmp_path / "data" / "train" / "a" / "notes.txt").touch()
    data = [
        "--config.data.name=folder",
        f"--config.data.dir={tmp_path}/data",
        "--config.data.holdout=0",
    ]
    run = [f"--config.workdir={tmp_path}/run", "--config.select_on=test", "--config.data.pad=7"]
    command = [
        sys.executable,
        "-m",
        "ard_jax.main",
        "--config=configs/digits.py:natural",
        *data,
        *run,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "passed over 1 .txt" in done.stderr
    assert (
        done.returncode == 2 and not (tmp_path / "run").exists()
    )  # a batch is larger than the data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.eps=0.1", "--config.eps=0.2"], "--config.eps is given 2 times; give it once"),
        (["--config.attack.options.eps=0.1"], "options.eps=0.1: set config.eps"),
        (["--config.attack.options.name=x"], "options.name='x': set config.attack.name"),
    ],
)
def test_values_that_are_set_elsewhere_or_twice(main, arguments, message):
    code, _, told = main("--config=configs/digits.py:trades", *arguments)
    assert code == 2 and message in told


def test_half_a_configuration(main, tmp_path):
    (tmp_path / "half.py").write_text("def get_config():\n  return {'epochs': 3}\n")
    code, _, told = main(f"--config={tmp_path}/half.py", "--config.epochs=2")
    assert code == 2 and "get_config() returned no data and no method" in told


def test_a_web_address_is_no_checkpoint(main):
    code, _, told = main("--mode=evaluate", "--checkpoint=https://example.com/t.pt")
    assert code == 2 and "is a web address; download it" in told


def test_config_files_that_cannot_be_read_as_they_are(tmp_path, main):
    (tmp_path / "wide.py").write_bytes("def get_config(): pass\n".encode("utf-16"))
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit('set DATA first')\n")
    (tmp_path / "exp 12:30.py").touch()
    for name, message in (
        ("wide.py", "is saved as UTF-16; save it as UTF-8"),
        ("leaves.py", "leaves.py, line 2: SystemExit: set DATA first"),
        ("exp 12:30.py", "give the file a name without one"),
    ):
        code, _, told = main(f"--config={tmp_path}/{name}")
        assert code == 2 and message in told


def test_a_plan_replaces_plans_alone(tmp_path, main):
    (tmp_path / "config.json").write_text("{}")
    code, _, told = main(
        "--mode=plan", "--config=digits:sat", "--devices=2", f"--plan_json={tmp_path}/config.json"
    )
    assert code == 2 and "exists and is no plan" in told
    assert (tmp_path / "config.json").read_text() == "{}"


def test_the_folder_of_an_evaluation_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="looks like a file; give the folder"):
        train_checks.check_result_folder(tmp_path, str(tmp_path / "report.html"))
