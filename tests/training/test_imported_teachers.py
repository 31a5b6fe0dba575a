"""Imported networks as teachers and in evaluations."""

import json

import jax
import numpy as np
import published
import pytest
from experiments import tiny
from published import NORMALIZATION, run

from ard_jax.checkpoints import manager
from ard_jax.checkpoints.resume import ConfigChangedError
from ard_jax.cli import train, train_checks
from ard_jax.config import build, parse
from ard_jax.configs import digits
from ard_jax.runtime import sharding
from ard_jax.training import teachers


@pytest.fixture(scope="module")
def trained():
    return published.network()


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("published") / "teacher.npz", *trained)


@pytest.fixture
def experiment(tmp_path):
    return parse.to_experiment(tiny(tmp_path))


def teacher(folder, tmp_path, floor=0.8, precision=""):
    """The folder's network as the robust teacher of a run."""
    raw = tiny(
        tmp_path,
        teachers__robust__checkpoint=str(folder),
        teachers__robust__min_clean=floor,
        teachers__precision=precision,
    )
    built = parse.to_experiment(raw)
    mesh = sharding.make_mesh(1)
    return teachers.obtain(
        build.teacher_settings(built, "robust"), build.load_data(built.data), mesh
    )


def test_identity_is_that_of_the_arrays(trained, file, tmp_path, experiment):
    def imported(path, name):
        given = json.dumps(NORMALIZATION)
        out = str(tmp_path / name)
        return run(path, tmp_path, out=out, normalization=given, experiment=experiment)

    first = teacher(imported(file, "first"), tmp_path)
    assert first.source.endswith("first/best/0, imported from teacher.npz")
    assert first.model == "small_cnn" and first.identity.startswith("imported ")
    again = imported(file, "again")
    assert teacher(again, tmp_path).identity == first.identity
    with pytest.raises(
        teachers.TeacherError, match="min_clean.*usual cause is input normalisation"
    ):
        teacher(again, tmp_path, floor=1.0)
    changed = jax.tree.map(np.array, trained[1])
    changed["params"]["fc"]["bias"][0] += 0.01
    other = published.write(tmp_path / "teacher.npz", trained[0], changed)
    assert teacher(imported(other, "other"), tmp_path).identity != first.identity


def test_a_teacher_computes_as_asked_and_is_evaluated_in_float32(file, tmp_path, experiment):
    given = json.dumps(NORMALIZATION)
    folder = run(file, tmp_path, normalization=given, experiment=experiment)
    plain, short = teacher(folder, tmp_path), teacher(folder, tmp_path, precision="bfloat16")
    assert short.identity == f"{plain.identity}, computing in bfloat16"
    images = jax.random.uniform(jax.random.key(0), (4, *plain.bundle.image_shape))
    logits = [t.bundle.apply(t.variables, images, False)[0] for t in (plain, short)]
    np.testing.assert_allclose(logits[1], logits[0], atol=0.1 * np.abs(logits[0]).max())
    assert not np.array_equal(*logits)
    evaluated = [t.evaluator.apply(t.variables, images) for t in (plain, short)]
    np.testing.assert_array_equal(*evaluated)


@pytest.mark.slow
def test_as_teachers_of_a_run_that_is_resumed(trained, file, tmp_path, experiment):
    given = {"normalization": json.dumps(NORMALIZATION), "experiment": experiment}
    out = run(file, tmp_path, **given)
    raw = tiny(tmp_path, eval__attacks=("fgsm",), eval__eps_sweep=(), eval__transfer=False)
    raw.teachers.robust.checkpoint = raw.teachers.clean.checkpoint = str(out)
    whole = parse.to_experiment(raw)
    report = train.run(whole)
    evaluation = report.parent / "evaluation.json"
    for role in ("robust", "clean"):
        told = json.loads(evaluation.read_text())["teachers"][role]
        assert told["source"].endswith("imported from teacher.npz")
        assert told["identity"].startswith("imported ") and told["model"] == "small_cnn"
    evaluation.unlink()  # continues from last/, as after a kill before the evaluation
    train.run(whole)
    evaluation.unlink()
    changed = jax.tree.map(np.array, trained[1])
    changed["params"]["fc"]["bias"][0] += 0.01
    other = published.write(tmp_path / "teacher.npz", trained[0], changed)
    run(other, tmp_path, force=True, **given)
    with pytest.raises(ConfigChangedError, match="imported"):
        train.run(whole)


def test_evaluation(file, tmp_path, experiment, capsys):
    out = run(file, tmp_path, normalization=json.dumps(NORMALIZATION), experiment=experiment)
    with pytest.raises(manager.CheckpointError, match="is an imported network.*add --config"):
        train_checks.saved_experiment(str(out))
    report = train.evaluate_checkpoint(experiment, str(out), ["fgsm"])
    assert report == out.absolute() / "evaluations" / "1" / "report.html"
    evaluation = json.loads((report.parent / "evaluation.json").read_text())
    assert evaluation["nets"]["imported network"]["clean"] > 0.8
    assert (
        "was selected on" not in capsys.readouterr().out
    )  # the configuration's choice was not its


def test_a_file_as_teacher_names_the_import(file, tmp_path):
    raw = tiny(tmp_path, teachers__robust__checkpoint=str(file))
    with pytest.raises(ValueError, match=f"--mode=import --file={file}"):
        train.run(parse.to_experiment(raw))


def test_a_natural_checkpoint_is_refused_where_the_teacher_must_be_robust(tmp_path):
    """Before its arrays are read; a method that can do with it takes it."""
    folder = tmp_path / "natural"
    raw = tiny(tmp_path, "natural", workdir=str(folder), epochs=1, eval__attacks=("fgsm",))
    raw.eval.update(eps_sweep=(), transfer=False, max_examples=20, max_selection_examples=20)
    train.run(parse.to_experiment(raw))
    data = build.load_data(_rslad(tmp_path, folder, 0.0).data)
    for weight, refused in ((0.0, False), (1.0, True)):
        wanted = [build.teacher_settings(_rslad(tmp_path, folder, weight), "robust")]
        if refused:
            with pytest.raises(
                teachers.TeacherError, match="trained by 'natural', but gradient match"
            ):
                teachers.check_checkpoints(wanted, data)
        else:
            teachers.check_checkpoints(wanted, data)


def _rslad(tmp_path, folder, weight):
    """RSLAD with gradient matching of this weight, on the folder's network."""
    raw = digits.get_config("rslad")
    raw.teachers.robust.checkpoint, raw.igdm.weight = str(folder), weight
    return parse.to_experiment(raw)
