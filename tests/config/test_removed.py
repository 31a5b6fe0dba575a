"""Options of earlier versions: refused with what to use instead; old runs that had them off still work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from experiments import tiny

from ard_jax.checkpoints import resume
from ard_jax.cli import train_checks
from ard_jax.config import parse, removed
from ard_jax.configs import digits

# Groups, name, value of old runs that did not use it, value of those that did, part of the message.
CASES = [
    ("attack", "warm_start", False, True, "use config.attack.steps"),
    ("teachers.clean.recipe.attack", "warm_start", False, True, "use config.attack.steps"),
    ("teachers", "views", 0, 8, "leave it out: each image is augmented anew"),
]
RUN = ("run", "steps_per_dispatch", 1, 10, "leave it out: config.data.on_device=on")


def old(folder, group, name, value, variant=""):
    """A configuration as an earlier version would have written it."""
    raw = json.loads(json.dumps(parse.to_dict(parse.to_experiment(tiny(folder, variant)))))
    target = raw
    for part in group.split("."):
        target = target[part]
    target[name] = value
    return raw


@pytest.mark.parametrize(("group", "name", "off", "on", "message"), [*CASES, RUN])
def test_taken_where_it_was_off_and_refused_where_it_was_on(
    tmp_path, group, name, off, on, message
):
    without = parse.to_experiment(tiny(tmp_path))
    assert parse.to_experiment(old(tmp_path, group, name, off)) == without
    with pytest.raises(parse.ConfigError) as caught:
        parse.to_experiment(old(tmp_path, group, name, on))
    text = str(caught.value)
    assert f"config.{group}.{name}={on!r} was removed: " in text and message in text
    assert text.count("\n  - ") == 1


def test_what_belonged_to_an_option_that_was_off_does_not_matter(tmp_path):
    raw = old(tmp_path, "attack", "warm_start_reset", 7)
    assert parse.to_experiment(raw) == parse.to_experiment(tiny(tmp_path))


def test_options_that_never_were_are_refused_as_before(tmp_path):
    with pytest.raises(parse.ConfigError, match="config.attack.warm does not exist"):
        parse.to_experiment(old(tmp_path, "attack", "warm", False))


def saved_run(folder, raw):
    """What a run leaves that says what it is."""
    step = folder / "run" / "best" / "1"
    (step / "meta").mkdir(parents=True)
    (step / "student").mkdir()
    (step / "student" / "arrays").touch()
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps({"item_handlers": ["student"]}))
    (step / "meta" / "metadata").write_text(json.dumps({"experiment": raw}))
    (folder / "run" / "evaluation.json").write_text(json.dumps({"config": raw}))


@pytest.mark.parametrize(("group", "name", "off", "on", "message"), CASES)
def test_runs_that_recorded_it(tmp_path, group, name, off, on, message):
    now = parse.to_experiment(tiny(tmp_path))
    saved_run(tmp_path, old(tmp_path, group, name, off))
    assert train_checks.saved_experiment(str(tmp_path / "run")) == now
    assert train_checks.finished(now) is not None

    used = tmp_path / "used"
    saved_run(used, old(used, group, name, on))
    assert train_checks.finished(parse.to_experiment(tiny(used))) is None
    with pytest.raises(parse.ConfigError, match=f"{message}(.|\n)*with --config by which data"):
        train_checks.saved_experiment(str(used / "run"))


def test_runs_whose_results_it_did_not_change_are_taken_with_any_value(tmp_path):
    now, (group, name, _, on, _) = parse.to_experiment(tiny(tmp_path)), RUN
    saved_run(tmp_path, old(tmp_path, group, name, on))
    assert train_checks.saved_experiment(str(tmp_path / "run")) == now
    assert train_checks.finished(now) is not None


def test_a_run_that_used_them_is_not_continued_without_them(tmp_path):
    before = {"attack": {"warm_start": True}, "views": 8}  # as in the metadata of checkpoints
    with pytest.raises(resume.ConfigChangedError) as caught:
        resume.compare_configs(tmp_path, before, {"attack": {}})
    text = str(caught.value)
    assert "attack.warm_start: checkpoint True, now removed: " in text
    assert "views: checkpoint 8, now removed: " in text and "use config.attack.steps" in text


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (["--config.attack.warm_start=True", "--config.attack.steps=2"], 1),
        (["--noconfig.teachers.robust.recipe.attack.warm_start"], 1),
        (["--config.runs.sat.attack.warm_start", "True", "-config.attack.warm_start_reset=3"], 2),
        (["--config=configs/attack.warm_start.py", "--config.attack.name=sat_train"], 0),
        (["--config.name", "config.attack.warm_start", "--config.student.kwargs.views=3"], 0),
    ],
)
def test_flags(flags, count):
    assert len(removed.on_command_line(["main.py", *flags])) == count


@pytest.mark.multiprocess
def test_command_line_says_so_and_nothing_else():
    command = [sys.executable, "-m", "ard_jax.main", "--config=configs/ciard_digits.py"]
    done = subprocess.run(
        [*command, "--config.attack.warm_start=True"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("ERROR: --config.attack.warm_start was removed: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "flip, augment", [("auto", "crop"), ("on", "crop_flip"), ("off", "crop")], ids=str
)
def test_a_run_that_mixed_by_its_augmentation_is_read(flip, augment):
    raw = digits.get_config("trades").to_dict()
    raw["data"] |= {"augment": "cutmix", "flip": flip, "cutmix": 0.0}
    found = parse.to_experiment(raw, saved=True).data
    assert (found.augment, found.cutmix) == (augment, 1.0)
    with pytest.raises(parse.ConfigError, match="augment='cutmix': mixing is an option of its own"):
        parse.to_experiment(raw)
