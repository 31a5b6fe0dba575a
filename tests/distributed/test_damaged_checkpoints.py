"""Checkpoints that a full disk, a kill or a careless hand has spoilt are passed over, with a warning."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from ard_jax.checkpoints import resume
from ard_jax.checkpoints.manager import CheckpointError, Checkpoints, find, load_variables
from ard_jax.state import NetState, RunState

CONFIG = {"net": "tiny"}


def state_of(step):
    """A state of a step; noise, because Orbax compresses."""
    draw = np.random.default_rng(step).normal
    weights = {"dense": {"kernel": jnp.float32(draw(size=(300, 40))), "bias": jnp.zeros(40)}}
    student = NetState(weights, {}, {"momentum": jnp.float32(draw(size=12_000))})
    return RunState(jnp.int32(step), student, {}, None, {"temperature": jnp.float32(step)})


def assert_equal(state, expected):
    for a, b in zip(*map(jax.tree.leaves, (state, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


def meta_of(step):
    best = {"step": step, "scores": {"student": {"clean": step / 100}}}
    return {"step": step, "config": CONFIG, "best": best}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original")
    for name in ("last", "best"):
        folder = Checkpoints(path / name, keep=2)
        for step in (10, 20):
            folder.save(step, state_of(step), meta_of(step))
        folder.close()
    return path


@pytest.fixture
def run(original, tmp_path):
    """Folder of a run with the steps 10 and 20 in last/ and best/."""
    return shutil.copytree(original, tmp_path / "run")


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(step):
    for item in ("student", "rest"):
        path = largest(step / item)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_files(step):
    for path in step.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def empty_folder(step):
    shutil.rmtree(step)
    step.mkdir()


def without_file(step):
    for item in ("student", "rest"):
        largest(step / item).unlink()


def without_item(step):
    shutil.rmtree(step / "rest")


def without_meta(step):
    shutil.rmtree(step / "meta")


def damaged_meta(step):
    (step / "meta" / "metadata").write_text('{"step": 2')


def half_written(step):
    """What a kill leaves: Orbax writes under another name and renames in the end."""
    step.rename(step.with_name(f"{step.name}.orbax-checkpoint-tmp-0"))


def replaced_by_file(step):
    shutil.rmtree(step)
    step.write_text("")


DAMAGES = [
    truncate, empty_files, empty_folder, without_file, without_item, without_meta, damaged_meta,
    half_written, replaced_by_file,
]  # fmt: skip
NO_STEP = (half_written, replaced_by_file)  # Orbax does not see a step there: nothing to warn of


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_is_continued_and_the_step_written_again(run, damage, capsys):
    damage(run / "last" / "20")
    last = Checkpoints(run / "last", keep=2)
    state, meta = resume.newest(last, state_of(0), CONFIG)
    assert meta["step"] == 10
    assert_equal(state, state_of(10))
    assert ("WARNING" in capsys.readouterr().out) == (damage not in NO_STEP)
    last.save(20, state_of(20), meta_of(20))
    last.close()
    again = Checkpoints(run / "last", keep=2)
    state, _ = resume.newest(again, state_of(0), CONFIG)
    again.close()
    assert_equal(state, state_of(20))


def test_a_network_of_another_step_is_not_taken_for_it(run, capsys):
    shutil.rmtree(run / "last" / "20" / "student")
    shutil.copytree(run / "last" / "10" / "student", run / "last" / "20" / "student")
    with pytest.raises(
        CheckpointError, match="20/student holds other values .* copied from another step"
    ):
        load_variables(run / "last" / "20", "student", state_of(0).student.variables)
    with Checkpoints(run / "last", keep=2) as last:
        assert resume.newest(last, state_of(0), CONFIG)[1]["step"] == 10
    assert "Continuing from step 10" in capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_best_before_it_is_evaluated(run, damage, capsys):
    damage(run / "best" / "20")
    best = Checkpoints(run / "best", keep=2)
    state, chosen = resume.best(best, state_of(0), meta_of(20)["best"])
    best.close()
    assert_equal(state, state_of(10))
    assert chosen["step"] == 10
    assert chosen["scores"]["student"]["clean"] == 0.1
    assert "step 10" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [d for d in DAMAGES if d not in (truncate, without_file)])
def test_find_takes_the_one_before(run, damage, capsys):
    """For these it is enough to look at names and meta; what is in the arrays shows when they are read."""
    damage(run / "best" / "20")
    assert find(run) == epath.Path(run / "best" / "10")
    assert ("WARNING" in capsys.readouterr().out) == (damage is not half_written)


def test_every_file_of_a_step_is_checked_or_not_needed(run):
    """Whichever one is missing or cut: the very values, or an error; never others."""
    good, bad, outcomes = run / "last" / "20", run / "try" / "20", set()
    for file in [p.relative_to(good) for p in good.rglob("*") if p.is_file()]:
        for content in (None, (good / file).read_bytes()[: (good / file).stat().st_size // 2]):
            shutil.copytree(good, bad)
            (bad / file).unlink()
            if content is not None:
                (bad / file).write_bytes(content)
            folder = Checkpoints(run / "try")
            try:
                assert_equal(folder.restore(20, state_of(0))[0], state_of(20))
                outcomes.add("right")
            except CheckpointError:
                outcomes.add("error")
            folder.close()
            shutil.rmtree(bad)
    assert outcomes == {"right", "error"}


def test_find_leaves_best_for_last_when_all_of_best_is_damaged(run, capsys):
    for step in (10, 20):
        without_meta(run / "best" / str(step))
    assert find(run) == epath.Path(run / "last" / "20")
    assert capsys.readouterr().out.count("WARNING") == 2


def test_all_damaged_is_an_error_that_names_them(run):
    for step in (10, 20):
        truncate(run / "last" / str(step))
        empty_folder(run / "best" / str(step))
    shutil.rmtree(run / "last" / "20" / "rest")
    last, best = (Checkpoints(run / name, keep=2) for name in ("last", "best"))
    with pytest.raises(
        CheckpointError, match="last/20 .* without rest.*last/10.*Copy the run again, or del"
    ):
        resume.newest(last, state_of(0), CONFIG)
    with pytest.raises(CheckpointError, match="best/20.*best/10.*--mode=evaluate.*last"):
        resume.best(best, state_of(0), meta_of(20)["best"])
    last.close(), best.close()


def test_another_configuration_is_said_and_not_taken_for_damage(run):
    truncate(run / "last" / "20")
    last = Checkpoints(run / "last", keep=2)
    with pytest.raises(resume.ConfigChangedError, match="net: checkpoint 'tiny', now 'large'"):
        resume.newest(last, state_of(0), {"net": "large"})
    last.close()


def test_saving_in_the_background_keeps_the_values_of_its_moment(tmp_path):
    """The train step donates its state: its memory is used again while the save is still writing."""
    update = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    folder, state = Checkpoints(tmp_path, keep=3), state_of(0)
    for step in range(3):
        meta = meta_of(step)
        folder.save(step, state, meta)
        meta["step"] = -1
        for _ in range(5):
            state = update(state)
    folder.wait()
    for step in range(3):
        restored, meta = folder.restore(step, state_of(0))
        np.testing.assert_array_equal(restored.student.params["dense"]["bias"], 5 * step)
        assert int(restored.step) == 5 * step
        assert meta["step"] == step
    folder.close()


def test_later_steps_can_be_deleted(run):
    best = Checkpoints(run / "best", keep=2)
    best.delete_after(10)
    assert best.steps() == [10]
    best.close()
    assert not (run / "best" / "20").exists()


def test_folders_may_be_given_as_epath(tmp_path):
    """As buckets are; gs:// itself needs the network and is not tested."""
    folder = Checkpoints(epath.Path(tmp_path) / "run" / "last")
    folder.save(5, state_of(5), meta_of(5))
    folder.close()
    step = find(epath.Path(tmp_path) / "run")
    shapes = state_of(0).student.variables
    variables = load_variables(step, "student", shapes)
    assert_equal(variables, state_of(5).student.variables)
