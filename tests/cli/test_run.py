"""Whole runs: what is written, what a second start does, what stops a run."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from experiments import tiny

from ard_jax import evaluate, main
from ard_jax.checkpoints import networks, resume
from ard_jax.cli import export, import_network, train, train_checks
from ard_jax.config import build, parse
from ard_jax.configs import digits
from ard_jax.io.metric_writer import read_metrics
from ard_jax.reporting.record import TeacherReport, read_evaluation
from ard_jax.runtime import compilation, locks, sharding
from ard_jax.training import loop, teachers
from ard_jax.training.step_runner import StepRunner


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny CIARD run, its folder, and how often each program was traced."""
    folder = tmp_path_factory.mktemp("finished")
    compilation.TRACES.clear()
    experiment = parse.to_experiment(tiny(folder, run__tensorboard=True))
    report = train.run(experiment)
    return experiment, report, dict(compilation.TRACES)


def test_everything_is_written(finished):
    _, report, _ = finished
    names = {p.name for p in report.parent.iterdir()}
    assert names >= {"best", "last", "metrics.jsonl", "config.json", "evaluation.json",
                     "evaluation_flags.npz", "evaluation.csv", "evaluation.md", "report.html"}  # fmt: skip
    evaluation = json.loads((report.parent / "evaluation.json").read_text())
    assert list(evaluation["nets"]) == ["student (best)", "student (last)", "robust teacher",
                                        "clean teacher", "robust teacher after CIARD"]  # fmt: skip
    student = evaluation["nets"]["student (best)"]
    assert {"fgsm", "pgd_sat", "transfer_pgd_trades_robust", "transfer_cw_inf_clean"} <= set(
        student["attacks"]
    )
    assert student["eps_sweep"]["accuracy"][0] == student["clean"]
    assert student["eps_sweep"]["accuracy"][1] == student["attacks"]["pgd_sat"]["accuracy"]
    for teacher in evaluation["teachers"].values():
        assert "recipe" in teacher["source"] and 0 <= teacher["accuracy"]["pgd_sat"] <= 1
        views = teacher["quality"]["views"]
        assert views["clean"]["accuracy"] == teacher["accuracy"]["clean"]
        assert set(views) >= {"attack on it", "attack on student (best)"}
    # A clean teacher is no robust one, on purpose.
    judged = {role: t["quality"].get("verdict") for role, t in evaluation["teachers"].items()}
    assert judged["robust"] in ("fit", "unfit", "doubtful") and judged["clean"] is None
    page = report.read_text()
    for part in (
        "Will the teachers help?", "Confusion matrix of student (best), PGD_sat", "Temperatures",
        "Push scale",
        "Which attack broke which share", "Robust teacher&#39;s own training: accuracy",
        "with its confidence", "<dt>Identity</dt><dd>recipe ",
    ):  # fmt: skip
        assert part in page, part


def test_flags_agree_with_the_record(finished):
    _, report, _ = finished
    evaluation = json.loads((report.parent / "evaluation.json").read_text())
    flags = np.load(report.parent / "evaluation_flags.npz")
    assert len(flags["labels"]) == 100
    for net, record in evaluation["nets"].items():
        assert record["clean"] == pytest.approx(flags[f"{net}/clean/correct"].mean())
        both = flags[f"{net}/clean/correct"] & flags[f"{net}/fgsm/correct"] & flags[
            f"{net}/pgd_sat/correct"]  # fmt: skip
        assert record["worst_case"]["accuracy"] == pytest.approx(both.mean())


def test_every_program_is_traced_exactly_once(finished):
    traces = finished[2]
    assert {"student train_step", "robust teacher train_step", "student predict"} <= set(traces)
    assert set(traces.values()) == {1}, traces


def test_second_start_says_finished(finished, capsys):
    experiment, report, _ = finished
    before = (report.parent / "evaluation.json").read_bytes()
    compilation.TRACES.clear()
    assert train.run(experiment) == report
    assert "finished" in capsys.readouterr().out
    assert not compilation.TRACES
    assert (report.parent / "evaluation.json").read_bytes() == before


def test_a_batch_is_no_larger_than_the_data(tmp_path):
    experiment = parse.to_experiment(tiny(tmp_path, "natural", eval__batch_size=10**5))
    splits = build.load_data(experiment.data)
    student = train._student(experiment, splits, build.make_mesh(experiment, splits))
    assert student.evaluator.batch_size == len(splits.test)


def test_runs_and_comparisons_are_not_mixed(tmp_path):
    (tmp_path / "best").mkdir()
    train_checks.check_kind(tmp_path, comparison=False)
    with pytest.raises(parse.ConfigError, match="holds a run; give a comparison a folder"):
        train_checks.check_kind(tmp_path, comparison=True)
    (tmp_path / "best").rmdir()
    (tmp_path / "comparison.json").write_text("{}")
    train_checks.check_kind(tmp_path, comparison=True)
    with pytest.raises(parse.ConfigError, match="holds a comparison; give the run a folder"):
        train_checks.check_kind(tmp_path, comparison=False)


def test_changed_data_are_told(tmp_path):
    """By a finished run, another evaluation of it, and a comparison that has it."""
    images = np.random.default_rng(0).integers(0, 256, (69, 8, 8, 1), np.uint8)
    arrays = {"train_images": images[:48], "test_images": images[48:60], "val_images": images[60:]}
    arrays |= {
        f"{part}_labels": np.arange(n) % 3 for part, n in (("train", 48), ("test", 12), ("val", 9))
    }
    np.savez(tmp_path / "d.npz", **arrays)
    values = {"data__name": "npz", "data__dir": str(tmp_path / "d.npz"), "data__holdout": 2.0}
    values |= {"batch_size": 16, "epochs": 1, "eval__attacks": ("fgsm",), "eval__batch_size": 10**5}
    experiment = parse.to_experiment(tiny(tmp_path, "natural", select_on="test", **values))
    report = train.run(experiment)
    assert train.run(experiment) == report
    for key, what in (
        ("train_labels", "was trained on 48"),
        ("val_labels", "was selected on 9"),
        ("test_labels", "is tested on 12"),
    ):
        np.savez(tmp_path / "d.npz", **arrays | {key: 2 - arrays[key]})
        count = what.split()[-1]
        told = f"{what} images, .* of .*d.npz, which now has {count} images, .*: the data changed since"
        with pytest.raises(loop.ConfigChangedError, match=f"run holds a finished run that {told}"):
            train.run(experiment)
        with pytest.raises(ValueError, match=f"best/3 {told}"):
            train.evaluate_checkpoint(experiment, str(report.parent), ["fgsm"])
    (tmp_path / "d.npz").unlink()  # the report stays
    assert train.run(experiment) == report


def test_other_config_in_the_same_folder_is_refused_with_the_difference(finished, tmp_path):
    experiment, report, _ = finished
    changed = tiny(report.parent.parent, student_optim__lr=0.05, workdir=str(report.parent))
    with pytest.raises(
        loop.ConfigChangedError, match=r"student_optim.lr: checkpoint 0.2, now 0.05"
    ):
        train.run(parse.to_experiment(changed))


@pytest.mark.parametrize(
    ("gone", "lr", "message"),
    [
        (("best",), 0.2, "WARNING: .* has no checkpoint in best/: only what"),
        (("best", "evaluation.json"), 0.2, "but best/ has no checkpoint .*; --mode=evaluate takes .* last/"),
        (("last", "evaluation.json"), 0.05, "but last/ has no checkpoint .*; --mode=evaluate takes .* best/"),
        (("last", "best"), 0.05, "run, but last/ has no checkpoint .*: put .* back. To train"),
    ],
)  # fmt: skip
def test_checkpoints_that_were_taken_away_are_told(finished, tmp_path, capsys, gone, lr, message):
    shutil.copytree(finished[1].parent, tmp_path / "run")
    for name in gone:
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = sorted(tmp_path.rglob("*"))
    experiment = parse.to_experiment(tiny(tmp_path, student_optim__lr=lr))
    if "WARNING" in message:
        train.run(experiment)
        assert re.search(message, capsys.readouterr().out)
    else:
        with pytest.raises(ValueError, match=message):
            train.run(experiment)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_fits_neither_disk_nor_memory_is_refused_at_once(tmp_path):
    experiment = parse.to_experiment(tiny(tmp_path, "natural"))
    with mock.patch.object(shutil, "disk_usage", return_value=mock.Mock(free=10_000)):
        with pytest.raises(ValueError, match="run: 10 kB are free there, but 4 checkpoints"):
            train.run(experiment)
    both = parse.to_experiment(tiny(tmp_path))
    told = "run and config.teachers.cache=.*: 10 kB .* the report, 2 checkpoints .* of the robust teacher"
    with mock.patch.object(shutil, "disk_usage", return_value=mock.Mock(free=10_000)):
        with pytest.raises(ValueError, match=told):
            train.run(both)
    with mock.patch.object(sharding, "memory", return_value=(1000, 1)):
        with pytest.raises(ValueError, match="config.student: .* take 3.28 kB on each of 1 dev"):
            train.run(experiment)
    assert not list(tmp_path.iterdir())


@pytest.mark.multidevice
def test_the_room_that_a_split_optimiser_takes(tmp_path):
    """Beside parameters and statistics half of the momentum, on each of two devices."""
    sizes = []
    for split in (False, True):
        changes = {"run__devices": 2, "run__shard_optimizer": split}
        experiment = parse.to_experiment(tiny(tmp_path, "natural", **changes))
        with mock.patch.object(sharding, "memory", return_value=(1000, 1)):
            with pytest.raises(ValueError, match="on each of 1 dev") as error:
                train.run(experiment)
        sizes.append(float(re.search(r"take ([\d.]+) kB", str(error.value))[1]))
    assert 0.7 * sizes[0] < sizes[1] < 0.8 * sizes[0]


def test_a_place_for_metrics_without_its_package_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(train_checks.importlib.util, "find_spec", lambda name: None)
    experiment = parse.to_experiment(tiny(tmp_path, "natural", run__mlflow="robust"))
    with pytest.raises(ValueError, match=r"config.run.mlflow=robust: .*; pip install 'ard_jax\[ml"):
        train.run(experiment)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_names_the_checkpoint(tmp_path, monkeypatch, capsys):
    real, experiment = StepRunner.advance, parse.to_experiment(tiny(tmp_path, "natural"))

    def advance(self, state, step):
        if step == 7:
            raise KeyboardInterrupt
        return real(self, state, step)

    monkeypatch.setattr(StepRunner, "advance", advance)
    monkeypatch.setattr(main, "_run", lambda: train.run(experiment))
    assert main.main(["main"]) == 130
    told = f"INTERRUPTED: student at step 7 of 10; the same command continues from {tmp_path}/run/last/5\n"
    assert capsys.readouterr().err.endswith(told)


def test_mirrors_get_the_final_numbers_and_examples(finished):
    files = (finished[1].parent / "tensorboard").iterdir()
    written = b"".join(file.read_bytes() for file in files)
    tags = "test/student_best/pgd_sat test/clean_teacher/clean examples student_optim.lr"
    assert all(tag.encode() in written for tag in tags.split())


def test_metrics_hold_each_step_once_and_every_loss_term(finished):
    _, report, _ = finished
    records = read_metrics(report.parent / "metrics.jsonl")
    trained = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in trained] == [2, 4, 6, 8, 10]
    assert {"loss", "loss_robust", "loss_clean", "loss_push", "push_scale", "temp_nat",
            "teacher_ce", "images_per_second"} <= set(trained[0])  # fmt: skip
    nets = {r["net"] for r in records if r["kind"] == "eval"}
    assert nets == {"student", "robust"}


@pytest.mark.slow
def test_evaluate_again_any_checkpoint_any_attack(finished, capsys):
    experiment, report, _ = finished
    for path in (report.parent, report.parent / "last", report.parent / "last" / "10"):
        again = train.evaluate_checkpoint(experiment, str(path), ["bim", "pgd_sat"])
        record = json.loads((again.parent / "evaluation.json").read_text())
        (net,) = record["nets"].values()
        assert set(net["attacks"]) == {"bim", "pgd_sat"}
    original = json.loads((report.parent / "evaluation.json").read_text())
    last = original["nets"]["student (last)"]["attacks"]["pgd_sat"]["accuracy"]
    assert net["attacks"]["pgd_sat"]["accuracy"] == last
    assert again.parent.name == "3"
    assert "holds no checkpoint" not in capsys.readouterr().out


def test_a_teacher_is_looked_at_alone(finished, tmp_path, main):
    """With the numbers of the run's own report, where the student is the run's."""
    run = finished[1].parent
    robust = next((run.parent / "teachers").glob("robust-*"))
    arguments = ("--mode=teacher", f"--checkpoint={robust}", f"--out={tmp_path}/it")
    code, told, _ = main(*arguments, f"--students={run}/best")
    assert code == 0 and "as a robust teacher" in told and "Is it robust itself?" in told
    report = TeacherReport.from_json(json.loads((tmp_path / "it/teacher.json").read_text()))
    of_run = read_evaluation(run).teachers["robust"].quality
    assert report.quality.verdict == of_run.verdict and report.attack.label == "PGD_trades"
    for name in ("clean", "uniform noise", "attack on it"):
        assert report.quality.views[name] == of_run.views[name]
    (title,) = report.students
    view = of_run.views["attack on student (best)"]
    assert report.quality.views[f"attack on {title}"] == view
    assert report.quality.unlearnable == of_run.unlearnable
    code, _, told = main(*arguments)
    assert code == 2 and f"--out={tmp_path}/it holds teacher.json already" in told


IT = ["--mode=teacher", "--checkpoint={run}"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--mode=teacher"], "--mode=teacher needs --checkpoint"),
        (["--mode=teacher", "--checkpoint=/nowhere"], "/nowhere"),
        ([*IT, "--students={run}"], "is the teacher itself, or given twice"),
        ([*IT, "--students=/nope"], "/nope"),
        ([*IT, "--attacks=fgsm"], "--attacks is for --mode=evaluate, not"),
        (
            ["--mode=evaluate", "--checkpoint={run}", "--students={run}"],
            "--students is for --mode=teacher, not",
        ),
        ([*IT, "--config=configs/cifar10.py:natural", "--config.epochs=0"], "config.epochs=0"),
    ],
)
def test_what_a_teacher_is_not_looked_at_with(finished, main, arguments, told):
    run = finished[1].parent
    code, _, error = main(*(one.format(run=run) for one in arguments))
    assert code == 2 and told in error, error


def test_a_run_does_not_transfer_to_itself(finished, main):
    run = finished[1].parent
    code, _, told = main("--mode=evaluate", f"--checkpoint={run}", f"--transfer_from={run}/best")
    assert code == 2 and "is the evaluated checkpoint itself" in told


def test_values_of_another_training_are_refused(finished):
    """Where they are set; the values that the checkpoint has may be repeated."""
    experiment, report, _ = finished
    overrides = [
        "epochs=2",
        "eps=0.1",
        "student_optim.lr=0.2",
        "student.kwargs.blocks=1",
        "workdir=/x",
    ]
    train_checks.check_overrides(experiment, overrides, str(report.parent))
    longer = experiment.replace(epochs=7)
    train_checks.check_overrides(longer, ["eval.grid=1"], str(report.parent))
    with pytest.raises(
        parse.ConfigError, match=r"another training:\n  - config.epochs=7: .* with 2\n"
    ):
        train_checks.check_overrides(longer, ["epochs=7"], str(report.parent))
    train_checks.check_method(experiment, str(report.parent))
    other = experiment.replace(method=experiment.method.replace(name="natural", options={}))
    with pytest.raises(parse.ConfigError, match="trained by ciard, and --config is of natural"):
        train_checks.check_method(other, str(report.parent))


def test_evaluate_into_a_folder_of_ones_own(finished, tmp_path):
    experiment, report, _ = finished
    path, out = str(report.parent), tmp_path / "mine"
    with pytest.raises(ValueError, match="unknown attack 'foo'"):
        train.evaluate_checkpoint(experiment, path, ["foo"], out=str(out))
    assert not out.exists()
    with pytest.raises(
        ValueError, match="last holds the checkpoints of a run; choose another folder"
    ):
        train.evaluate_checkpoint(experiment, path, ["fgsm"], out=f"{path}/last")
    train.evaluate_checkpoint(experiment, path, ["fgsm"], out=str(out))
    assert (out / "report.html").is_file() and (out / "evaluation.json").is_file()
    with pytest.raises(
        ValueError, match="mine holds evaluation.json already; choose another folder"
    ):
        train.evaluate_checkpoint(experiment, path, ["fgsm"], out=str(out))


def test_two_evaluations_at_once_have_two_folders(tmp_path):
    with (
        train.result_folder(tmp_path, "") as (first, unfinished),
        train.result_folder(tmp_path, "") as (second, none),
    ):
        assert (first.name, second.name) == ("1", "2")
        assert unfinished == tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt), train.result_folder(tmp_path, "") as (third, _):
        raise KeyboardInterrupt
    assert none is None and not third.exists()
    out = str(tmp_path / "out")
    with train.result_folder(tmp_path, out) as (made, _):
        with pytest.raises(
            locks.FolderBusyError, match="another process is running in .*out; .* with --out"
        ):
            with train.result_folder(tmp_path, out):
                pass
    assert made.is_dir() and not list(made.iterdir())


@pytest.mark.slow
def test_teacher_from_a_checkpoint_of_ours(finished, tmp_path):
    experiment, report, _ = finished
    (clean,) = (report.parent.parent / "teachers").glob("clean-*")
    raw = tiny(tmp_path, epochs=1)
    raw.teachers.clean.checkpoint = str(clean)
    raw.teachers.cache = str(report.parent.parent / "teachers")
    record = json.loads(
        (train.run(parse.to_experiment(raw)).parent / "evaluation.json").read_text()
    )
    assert record["teachers"]["clean"]["source"].startswith("checkpoint ")
    assert "recipe" in record["teachers"]["robust"]["source"]


@pytest.mark.slow
def test_trained_teacher_is_reused(finished, tmp_path):
    experiment, report, _ = finished
    raw = tiny(tmp_path, epochs=1, seed=5)
    raw.teachers.cache = str(report.parent.parent / "teachers")
    compilation.TRACES.clear()
    train.run(parse.to_experiment(raw))
    assert "robust teacher train_step" not in compilation.TRACES


def test_weak_teacher_stops_the_run(finished, tmp_path):
    _, report, _ = finished
    raw = tiny(tmp_path)
    raw.teachers.cache = str(report.parent.parent / "teachers")
    raw.teachers.clean.min_clean = 0.999
    with pytest.raises(
        teachers.TeacherError, match=r"clean.min_clean\). It was trained for \d+ epo"
    ):
        train.run(parse.to_experiment(raw))
    assert not (tmp_path / "run" / "last").exists()


def other_data(tmp_path, names):
    """An experiment on random 8x8 images of these classes."""
    rng = np.random.default_rng(0)
    path = tmp_path / "other.npz"
    images = rng.integers(0, 255, (60, 8, 8, 1), np.uint8)
    np.savez(path, images=images, labels=np.arange(60) % len(names), class_names=list(names))
    raw = tiny(tmp_path, batch_size=8)
    raw.data.update(name="npz", dir=str(path))
    return raw


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("012", "10 classes, but .* has 3"),
        ("0213456789", "class 1 is '1' in the network and '2' in the data, the same .* another order"),
    ],
)  # fmt: skip
def test_network_of_other_data_is_refused(finished, tmp_path, names, message):
    _, report, _ = finished
    raw = other_data(tmp_path, names)
    raw.teachers.robust.checkpoint = str(next((report.parent.parent / "teachers").glob("robust-*")))
    experiment = parse.to_experiment(raw)
    with pytest.raises(teachers.TeacherError, match=message):
        train.run(experiment)
    with pytest.raises(teachers.TeacherError, match=message):
        train.evaluate_checkpoint(experiment, str(report.parent), ["fgsm"])
    exported = export.run(str(report.parent), str(tmp_path / "out"), formats=("safetensors",))[0]
    with pytest.raises(import_network.ImportingError, match=message):
        import_network.run(file=str(exported), out=str(tmp_path / "in"), experiment=experiment)


def test_classes_without_names_are_told(finished, tmp_path, capsys):
    experiment = parse.to_experiment(other_data(tmp_path, "abcdefghij"))
    folder = str(finished[1].parent)
    train.evaluate_checkpoint(experiment, folder, ["fgsm"], out=str(tmp_path / "out"))
    assert "only numbers its classes: taken in the order a, b, c, ..." in capsys.readouterr().out


def test_class_names_of_a_run_do_not_change():
    saved, now = ({"net": {"class_names": names}} for names in (["cat", "dog"], ["dog", "cat"]))
    with pytest.raises(loop.ConfigChangedError, match="net.class_names: class 0 is 'cat' .*order"):
        resume.compare_configs(Path("run"), saved, now)


def diverging(tmp_path, lr, **overrides):
    """An experiment at a learning rate that no configuration may have."""
    experiment = parse.to_experiment(tiny(tmp_path, "natural", **overrides))
    optim = experiment.student_optim.model_copy(update={"lr": lr})
    return experiment.model_copy(update={"student_optim": optim})


def test_nan_stops_with_step_terms_and_checkpoint(tmp_path):
    with pytest.raises(loop.TrainingDivergedError) as caught:
        train.run(diverging(tmp_path, lr=1e30))
    message = str(caught.value)
    assert "step" in message and "loss=" in message and "ast good checkpoint" in message
    for folder in (tmp_path / "run" / "last").glob("*"):
        _, variables, _, _ = networks.load(str(folder))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(variables))


def test_infinite_gradient_of_a_finite_loss_is_not_saved(tmp_path):
    """One step per epoch, so that the state after the very first update is due to be saved."""
    with pytest.raises(loop.TrainingDivergedError, match="param_norm"):
        train.run(diverging(tmp_path, lr=1e38, batch_size=1200))
    assert not list((tmp_path / "run" / "last").glob("[0-9]*"))


def test_bfloat16_keeps_float32_parameters(tmp_path):
    raw = tiny(tmp_path, "natural", precision="bfloat16", epochs=1)
    train.run(parse.to_experiment(raw))
    _, variables, meta, _ = networks.load(raw.workdir)
    assert meta["config"]["net"]["precision"] == "bfloat16"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}


@pytest.mark.slow
def test_ema_is_saved_evaluated_and_smooth(tmp_path):
    raw = tiny(tmp_path, "natural", ema_decay=0.9)
    report = train.run(parse.to_experiment(raw))
    nets = json.loads((report.parent / "evaluation.json").read_text())["nets"]
    assert {"student EMA (best)", "student EMA (last)"} <= set(nets)
    _, ema, _, _ = networks.load(str(report.parent / "last"), "ema")
    _, student, _, _ = networks.load(str(report.parent / "last"))
    pairs = zip(jax.tree.leaves(ema), jax.tree.leaves(student), strict=True)
    assert any(np.any(a != b) for a, b in pairs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 127}, "batch_size=127 does not divide by 2 shards"),
        (
            {"teachers__robust__recipe__batch_size": 127},
            "config.teachers.robust.recipe: batch_size=127 does not divide",
        ),
    ],
)
def test_batches_that_the_devices_cannot_share_leave_no_folder(tmp_path, changes, message):
    raw = tiny(tmp_path, run__devices=2, **changes)
    with pytest.raises(ValueError, match=message):
        train.run(parse.to_experiment(raw))
    assert not list(tmp_path.iterdir())


def test_one_natural_network_in_both_roles_is_told(finished, caplog):
    experiment, report, _ = finished
    folder = str(next((report.parent.parent / "teachers").glob("clean-*")))
    wanted = [
        dataclasses.replace(build.teacher_settings(experiment, role), checkpoint=folder)
        for role in ("robust", "clean")
    ]
    splits = build.load_data(experiment.data)
    for _ in range(2):  # a run looks twice
        teachers.check_checkpoints(wanted, splits)
    assert caplog.text.count("was trained by 'natural', without an attack") == 1
    assert caplog.text.count("the robust and the clean teacher are one network") == 1
    with pytest.raises(ValueError, match="is a file of a run; give the run's folder"):
        networks.load(f"{report.parent}/evaluation.json")
    with pytest.raises(ValueError, match="attacks=dpgd: DPGD alone can stall"):
        train.evaluate_checkpoint(experiment, str(report.parent), ["dpgd"])


def test_epochs_behind_the_last_are_told(capsys):
    raw = digits.get_config("ciard")
    raw.epochs = 10
    raw.method.update(itt_start=11, decay_epochs=(9, 20, 30))
    train_checks.tell_of_late_epochs(parse.to_experiment(raw))
    told = capsys.readouterr().out
    assert "config.method.itt_start=11 is past the last epoch" in told
    assert "config.method.decay_epochs: [20, 30] lie behind the last of 10 epochs" in told


def test_the_numbers_of_the_training_attack_are_told(capsys):
    raw = digits.get_config("sat")
    train_checks.tell_of_attack(parse.to_experiment(raw))
    assert capsys.readouterr().out == "attack: sat_train, 10 steps of 0.05 within linf eps 0.2\n"
    raw.attack.update(steps=5, step_size=2 / 255)
    train_checks.tell_of_attack(parse.to_experiment(raw))
    told = capsys.readouterr().out
    assert "WARNING: sat_train: 5 steps of 0.007843 go less than half of eps=0.2" in told
    train_checks.tell_of_attack(parse.to_experiment(digits.get_config("natural")))
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_one_and_eight_devices_agree(tmp_path):
    states = []
    for devices in (1, 8):
        raw = tiny(tmp_path / str(devices), "natural", run__devices=devices, epochs=1)
        train.run(parse.to_experiment(raw))
        states.append(networks.load(raw.workdir)[1])
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_damaged_newest_checkpoint_is_passed_over_and_made_again(tmp_path, capsys):
    raw = tiny(tmp_path, "natural")
    train.run(parse.to_experiment(raw))
    expected = networks.load(str(tmp_path / "run" / "last"))[1]
    (tmp_path / "run" / "evaluation.json").unlink()
    for file in (tmp_path / "run" / "last" / "10").rglob("*"):
        if file.is_file() and "meta" not in file.parts:
            file.write_bytes(b"damaged")
    train.run(parse.to_experiment(raw))
    assert "WARNING" in capsys.readouterr().out
    again = networks.load(str(tmp_path / "run" / "last" / "10"))[1]
    for a, b in zip(*map(jax.tree.leaves, (expected, again)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_public_evaluate_of_any_predict_function():
    from ard_jax import data

    test = data.load("digits").test.subset(np.arange(37))

    def darkness(images):
        """Class 0 for dark images, else 1: a model that this library did not train."""
        mean = images.mean((1, 2, 3))
        return jax.numpy.stack([0.5 - mean, mean - 0.5] + [mean * 0 - 9] * 8, -1)

    result = evaluate.evaluate(darkness, test, ("fgsm",), eps=0.1, batch_size=16)
    assert result["clean"] == pytest.approx(np.mean(test.labels == 0))
    assert len(result["flags"].labels) == 37
