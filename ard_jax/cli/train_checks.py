"""What is checked of data, folders and overrides before anything is computed."""

import functools
import importlib.util
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ard_jax.checkpoints import manager, networks, resume
from ard_jax.config import build
from ard_jax.config.parse import ConfigError, of_results, to_dict, to_experiment, without
from ard_jax.config.schema import CONTENT, EVALUATION, NOTHING, Experiment
from ard_jax.config.validate import radius_problems
from ard_jax.data import Splits, base, batching
from ard_jax.evaluation.diagnostics import short_way
from ard_jax.io.files import check_writable, size_text
from ard_jax.methods import ATTACKING, TEACHERS, read_options
from ard_jax.models import ModelBundle, described
from ard_jax.reporting import record
from ard_jax.runtime import sharding
from ard_jax.runtime.distributed import everywhere, tell
from ard_jax.training import loop, teachers, train_step
from ard_jax.training import run as run_lib

# Of config.data: what two trainings on the same images agree in.
_WHICH_DATA = ("name", "dir", "holdout", "split_seed", "loader", "image_size", "class_order")
# Groups of the configuration that an evaluation follows.
_OF_EVALUATION = ("name", "seed", "eps", "norm", "select_on", "data", "eval", "run")
# Bytes of a checkpoint beside its arrays, with the rest of the last block of each file; of report and logs.
_BESIDE, _BESIDE_ARRAY, _REPORT = 120_000, 600, 200_000


class NoRoomError(ValueError):
    """The devices' memory or the disk is too small for a run."""


def workdir_of(experiment: Experiment) -> Path:
    """The run's folder: config.workdir, or runs/<name>-seed<seed>."""
    return Path(experiment.workdir or f"runs/{experiment.name}-seed{experiment.seed}")


def finished(experiment: Experiment) -> record.Evaluation | None:
    """The evaluation of a finished run of this very configuration, in its folder; None without one."""
    evaluation = record.read_evaluation(workdir_of(experiment))
    same = evaluation is not None and _is_of(evaluation, experiment)
    return evaluation if everywhere(same) else None


def _is_of(evaluation: record.Evaluation, experiment: Experiment) -> bool:
    """Whether an evaluation is of this experiment; where and how it ran does not matter."""
    try:
        # Values that came later get their defaults.
        saved = of_results(to_experiment(evaluation.config, saved=True))
    except ValueError:
        return False
    return saved == of_results(experiment)


def check_mirrors(experiment: Experiment) -> None:
    """Checks that the packages are there of the places that metrics are also written to.

    Raises:
      ConfigError: one is not.
    """
    run = experiment.run
    for name, value in (("wandb", run.wandb), ("mlflow", run.mlflow)):
        if value and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"config.run.{name}={value}: {name} is not installed; pip install 'ard_jax[{name}]', or "
                "leave it out"
            )


def check_finished(experiments: Iterable[Experiment], splits: Splits) -> None:
    """Checks that finished runs were trained on the data as they are now.

    Raises:
      ConfigChangedError: one was not.
    """
    for experiment in experiments:
        workdir = workdir_of(experiment)
        try:
            meta = manager.read_meta(manager.find(workdir / "last"))
        except manager.CheckpointError:
            continue  # only its report is left
        if problem := changed_data(meta, experiment, splits):
            raise loop.ConfigChangedError(
                f"{workdir} holds a finished run that {problem}. Put those of the run back, or use another "
                "--config.workdir for these."
            )


def check_begun(experiments: Iterable[Experiment]) -> None:
    """Checks that runs which their folders hold are of these configurations, without their arrays and data.

    Raises:
      ConfigChangedError: one is of another.
    """
    for experiment in experiments:
        workdir = workdir_of(experiment)
        try:
            saved = saved_experiment(str(workdir / "last"))
        except ValueError:
            continue  # there is none, or its run tells what is wrong with it
        then, now = map(build.own_settings, (saved, experiment))
        too_long = functools.partial(build.extension_problem, experiment)
        if then["epochs"] < now["epochs"] and not too_long(then["epochs"]):
            then["epochs"] = now["epochs"]
        resume.compare_configs(workdir, then, now, too_long)


def changed_data(meta: dict[str, Any], experiment: Experiment, splits: Splits) -> str:
    """How data of the same name and place differ from those of the training; "" where they do not."""
    saved, config = meta.get("experiment", {}).get("data", {}), meta.get("config", {})
    data = experiment.data.model_dump(mode="json")
    if not saved or any(saved.get(k, data[k]) != data[k] for k in _WHICH_DATA):
        return ""
    whats = ("was trained", "was selected", "is tested")
    for split, what in zip((splits.train, splits.validation, splits.test), whats, strict=True):
        then = config.get(f"{split.split}_split") if split else None
        if split and then and then != (now := build.describe_split(split)):
            return (
                f"{what} on {then} of {split.name}, which now has {now} (a checksum of the "
                f"{split.split} split): the data changed since"
            )
    return ""


def check_unchanged_data(
    meta: dict[str, Any], folder: str, experiment: Experiment, splits: Splits
) -> None:
    """Raises TeacherError if data of the same name and place are not those of the checkpoint's training."""
    if problem := changed_data(meta, experiment, splits):
        raise teachers.TeacherError(
            f"{folder} {problem}. Put those of the training back; to evaluate on others, give --config with "
            "their own config.data.dir"
        )


def with_other_splits(config: dict[str, Any], splits: Splits) -> dict[str, Any]:
    """What a run is (`TrainingRun.config`), and on which images it is selected and tested."""
    others = filter(None, (splits.validation, splits.test))
    return config | {f"{split.split}_split": build.describe_split(split) for split in others}


def missing_checkpoints(workdir: Path) -> list[str]:
    """Which of "best" and "last" hold no step of a run."""
    return [name for name in ("best", "last") if not _steps(workdir / name)]


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())


def check_kind(workdir: Path, comparison: bool) -> None:
    """Raises ConfigError unless the folder is new or of this kind: of a comparison, or of a run."""
    runs = any((workdir / name).is_dir() for name in ("best", "last"))
    if runs and comparison:
        raise ConfigError(
            f"config.workdir={workdir} holds a run; give a comparison a folder of its own"
        )
    if (workdir / "comparison.json").exists() and not comparison:
        raise ConfigError(
            f"config.workdir={workdir} holds a comparison; give the run a folder of its own"
        )


def check_resumable(experiment: Experiment, first: int) -> None:
    """Checks that what a folder holds of a run can be continued, or is so little that nothing is lost.

    Args:
      experiment: the run, which is not finished.
      first: step of the first evaluation. A kill may leave its best checkpoint alone, without a last one.

    Raises:
      CheckpointError: best/ or last/ was taken away.
    """
    workdir = workdir_of(experiment)
    best, last = (_steps(workdir / name) for name in ("best", "last"))
    report = (workdir / record.EVALUATION_FILE).exists()
    if last and not best:
        meta = manager.read_meta(manager.find(workdir / "last"))
        gone = "best" if meta.get("best") else ""
    else:
        begun = best and best[-1] <= first and _trains_same(experiment, workdir / "best")
        gone = "last" if not last and (report or (best and not begun)) else ""
    if gone:
        kept = " or ".join(f"{name}/" for name, there in (("best", best), ("last", last)) if there)
        again = f"; --mode=evaluate takes what is in {kept}" if kept else ""
        raise manager.CheckpointError(
            f"{workdir} holds results of a run, but {gone}/ has no checkpoint to continue it from: put "
            f"{workdir / gone} back{again}. To train anew, choose another --config.workdir, or delete "
            f"{workdir}"
        )


def _trains_same(experiment: Experiment, folder: Path) -> bool:
    """Whether a checkpoint is of this training."""
    try:
        saved = saved_experiment(str(folder))
    except ValueError:
        return False
    then, now = (without(to_dict(e), NOTHING, EVALUATION, CONTENT) for e in (saved, experiment))
    return then == now


def check_batches(experiment: Experiment, splits: Splits, mesh: Any) -> None:
    """Raises ValueError where a batch of the student or of a teacher does not divide by the devices."""
    devices, last, count = sharding.num_devices(mesh), experiment.data.last_batch, len(splits.train)
    size, parts = experiment.batch_size, devices * experiment.accumulate
    # Further images fill up every batch of the student.
    batching.check_sharding(size if experiment.data.extra else count, size, parts, last)
    for role in TEACHERS[experiment.method.name]:
        if recipe := build.teacher_settings(experiment, role).recipe:
            try:
                batching.check_sharding(count, recipe.batch_size, devices, last)
            except ValueError as error:
                raise ValueError(f"config.teachers.{role}.recipe: {error}") from error


def tell_of_attack(experiment: Experiment) -> None:
    """Tells with which numbers the training attack runs, and where its steps do not lead far."""
    if experiment.method.name not in ATTACKING:
        return
    attack = build.training_attack(experiment.attack, experiment)
    steps, size = getattr(attack, "steps", 0), getattr(attack, "step_size", 0.0)
    way = f", {steps} step{'s' * (steps > 1)}" if steps else ""
    way += f" of {size:.4g}" if steps and size else ""
    tell(f"attack: {attack.name}{way} within {attack.norm} eps {attack.eps:.4g}")
    if text := short_way(attack):
        tell(f"WARNING: {attack.name}: {text}: the attack is weaker than eps says")


def tell_of_late_epochs(experiment: Experiment) -> None:
    """Tells the epochs of the method's options that the run does not reach."""
    name, last = experiment.method.name, experiment.epochs
    options, _ = read_options(name, experiment.method.options)
    if getattr(options, "itt_start", 0) > last:
        tell(
            f"config.method.itt_start={options.itt_start} is past the last epoch: the robust teacher stays "
            "as it is"
        )
    for field in ("decay_epochs", "tau_epochs"):
        if late := [epoch for epoch in getattr(options, field, ()) if epoch > last]:
            tell(
                f"config.method.{field}: {late} lie behind the last of {last} epochs and change nothing"
            )


def check_radii(experiment: Experiment, splits: Splits) -> None:
    """Raises ConfigError where a radius is beyond any of these images."""
    if problems := radius_problems(experiment, splits.test.image_shape):
        raise ConfigError(problems[0])


def check_size(
    experiment: Experiment,
    splits: Splits,
    mesh: Any,
    student: ModelBundle,
    wanted: Iterable[build.TeacherSettings],
) -> None:
    """Checks that the state of a training fits the devices, and its checkpoints the disk.

    Raises:
      NoRoomError: it does not.
    """
    bundles, trained = {}, []
    for teacher in wanted:
        if teacher.checkpoint:
            net = networks.describe_checkpoint(teacher.checkpoint)[0]
        else:
            net = teacher.describe(splits.train)
        bundles[teacher.role] = bundle = described.from_description(net)
        if recipe := teacher.recipe:
            folder = teachers.kept_in(teacher, net, splits)[0]
            arrays = jax.tree.leaves(run_lib.state_shapes(recipe, splits, bundle, {}))
            where = f"config.teachers.cache={teacher.cache}"
            one = _stored(where, folder, arrays, recipe.epochs, f"of the {teacher.role} teacher")
            trained += [] if (folder / "best").is_dir() else [one]
    settings = build.training_settings(experiment)
    state = run_lib.state_shapes(settings, splits, student, bundles)
    arrays, (room, copies) = jax.tree.leaves(state), sharding.memory(mesh)
    placed = train_step.placed_shapes(run_lib.step_config(settings, splits), mesh, state)
    shards = (a.update(shape=a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(placed))
    size = _bytes(shards)
    if room is not None and size * copies > room:
        raise NoRoomError(
            f"config.student: parameters, teachers and optimisers take {size_text(size)} on each of {copies} "
            f"devices, but there are {size_text(room)} of memory; use smaller networks, or fewer devices by "
            "config.run.devices"
        )
    workdir, what = workdir_of(experiment), "(student, teachers and optimisers) and the report"
    own = _stored(f"config.workdir={workdir}", workdir, arrays, experiment.epochs, what, _REPORT)
    _check_room([own, *trained])


class _Stored(NamedTuple):
    """What a training writes.

    Attributes:
      where: the option that chose its folder.
      folder: it.
      size: bytes.
      what: for the message.
    """

    where: str
    folder: Path
    size: int
    what: str


def _bytes(arrays: Iterable[Any]) -> int:
    return sum(array.size * array.dtype.itemsize for array in arrays)


def _stored(
    where: str, folder: Path, arrays: list[Any], epochs: int, what: str, beside: int = 0
) -> _Stored:
    # Two in best/ and two in last/; the first and the last epoch are always saved.
    kept, size = 4 if epochs > 1 else 2, _bytes(arrays) + _BESIDE + _BESIDE_ARRAY * len(arrays)
    text = f"{kept} checkpoints of about {size_text(size)} {what}"
    return _Stored(where, folder, kept * size + beside, text)


def _check_room(wanted: list[_Stored]) -> None:
    """Raises NoRoomError if a disk has no room for what it is to hold, beside what it holds of it."""
    disks: dict[int, list[_Stored]] = {}
    for one in wanted:
        disks.setdefault(os.stat(_nearest(one.folder)).st_dev, []).append(one)
    for group in disks.values():
        there = sum(
            p.stat().st_size
            for one in group for name in ("best", "last") for p in (one.folder / name).rglob("*")
            if p.is_file()
        )  # fmt: skip
        free, need = shutil.disk_usage(_nearest(group[0].folder)).free, sum(o.size for o in group)
        if need > free + there:
            options = " and ".join(dict.fromkeys(one.where for one in group))
            raise NoRoomError(
                f"{options}: {size_text(free)} are free there, but {', '.join(o.what for o in group)} need "
                f"{size_text(need)}; make room, or choose another folder"
            )


def _nearest(folder: Path) -> Path:
    """The folder, or that in which it will be made."""
    whole = folder.absolute()
    return next(p for p in (whole, *whole.parents) if p.exists())


def saved_experiment(path: str) -> Experiment:
    """The experiment that a checkpoint was trained by.

    Args:
      path: folder of a run, of its best/ or last/, or of one step.

    Raises:
      CheckpointError: missing, damaged, or an imported network, which no experiment trained.
      ConfigError: its configuration is none any more, e.g. for an option that was removed.
    """
    folder = manager.find(path)
    meta = manager.read_meta(folder)
    if not {"experiment", "origin"} & set(meta):
        raise manager.CheckpointError(
            f"{folder}: damaged checkpoint meta: it lacks the experiment that trained it; say with --config "
            "by which data and attacks to evaluate it"
        )
    if "experiment" not in meta:
        raise manager.CheckpointError(
            f"{folder} is an imported network: it does not say which data and attacks to evaluate it "
            "with; add --config, e.g. --config=configs/ciard_cifar10.py"
        )
    try:
        return to_experiment(meta["experiment"], saved=True)
    except ConfigError as error:
        raise ConfigError(
            f"{folder}: {error}\nTo evaluate it all the same, say with --config by which data and attacks."
        ) from error


def check_method(experiment: Experiment, path: str) -> None:
    """Raises ConfigError where the checkpoint was trained by another method, whose name its results bear."""
    folder = manager.find(path)
    trained = manager.read_meta(folder).get("experiment", {}).get("method", {}).get("name")
    if trained not in (None, experiment.method.name):
        raise ConfigError(
            f"{folder} was trained by {trained}, and --config is of {experiment.method.name}; give a config "
            f"of {trained}, or leave --config out for that of the training"
        )


def check_overrides(experiment: Experiment, overrides: Iterable[str], path: str) -> None:
    """Checks that no value of the training was set that a checkpoint was not trained with.

    Args:
      experiment: with the overrides in it.
      overrides: PATH=VALUE of the command line.
      path: the checkpoint, as of `train.evaluate_checkpoint`.

    Raises:
      ConfigError: one was, which an evaluation or export would not follow.
    """
    folder = manager.find(path)
    saved = manager.read_meta(folder).get("experiment", {})
    now, problems = without(to_dict(experiment), NOTHING, EVALUATION, CONTENT), []
    for dotted in dict.fromkeys(one.partition("=")[0] for one in overrides):
        then, value = saved, now
        for name in dotted.split("."):
            then, value = (v.get(name) if isinstance(v, dict) else None for v in (then, value))
        if (
            dotted.partition(".")[0] not in _OF_EVALUATION
            and None not in (then, value)
            and then != value
        ):
            problems.append(f"config.{dotted}={value!r}: it was trained with {then!r}")
    if problems:
        raise ConfigError(
            "\n  - ".join([f"{folder} is the checkpoint of another training:", *problems])
            + "\nLeave these values out, or give the checkpoint of a training with them."
        )


def check_result_folder(root: Path, out: str, file: str = record.EVALUATION_FILE) -> None:
    """Checks that the result `file` can be saved to `out`, or without one to a folder in `root`.

    Raises:
      ValueError: it cannot, or `out` holds another one.
    """
    if out and (Path(out) / file).exists():
        raise ValueError(f"--out={out} holds {file} already; choose another folder")
    if Path(out).suffix in (".html", ".json", ".md", ".csv") and not Path(out).is_dir():
        raise ValueError(f"--out={out} looks like a file; give the folder of all files")
    if out:
        manager.check_holds_no_steps(out, "--out")
    try:
        check_writable(out or root, "--out")
    except ValueError as error:
        raise ValueError(f"{error} with --out=FOLDER") if not out else error from None


def check_fits(net: dict[str, Any], folder: str, splits: Splits) -> None:
    """Checks that a network takes the data.

    Args:
      net: its description.
      folder: of its checkpoint, for the message.
      splits: the data.

    Raises:
      TeacherError: other classes, or images of another shape.
    """
    if net["num_classes"] != splits.test.num_classes:
        raise teachers.TeacherError(
            f"{folder} has {net['num_classes']} classes, but {splits.test.name} has "
            f"{splits.test.num_classes}"
        )
    if tuple(net["image_shape"]) != tuple(splits.test.image_shape):
        raise teachers.TeacherError(
            f"{folder} takes images of shape {tuple(net['image_shape'])}, but {splits.test.name} has "
            f"{tuple(splits.test.image_shape)}"
        )
    names, ours = list(net.get("class_names") or ()), list(splits.test.class_names)
    if problem := base.class_mismatch(names, ours):
        raise teachers.TeacherError(f"{folder} does not fit {splits.test.name}: {problem}")
    if names and names != ours:
        numbers = names == [str(i) for i in range(len(names))]
        numbered, named = (folder, ours) if numbers else (splits.test.name, names)
        tell(f"{numbered} only numbers its classes: taken in the order {', '.join(named[:3])}, ...")
