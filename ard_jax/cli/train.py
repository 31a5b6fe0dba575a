"""One experiment from its configuration to its report: data, teachers, student, evaluation."""

import json
from pathlib import Path
from typing import Any

import jax

from ard_jax.checkpoints import manager, networks
from ard_jax.config import build
from ard_jax.config.parse import ConfigError, of_results, to_dict, to_experiment
from ard_jax.config.schema import Experiment
from ard_jax.data import Splits, base
from ard_jax.evaluation import autoattack, full
from ard_jax.evaluation.evaluator import for_network
from ard_jax.evaluation.full import Subject
from ard_jax.io.cache_folder import cache_dir
from ard_jax.io.files import write_text_atomic
from ard_jax.io.metric_writer import METRICS_FILE, read_metrics
from ard_jax.methods import TEACHERS
from ard_jax.models import described
from ard_jax.reporting import report
from ard_jax.runtime import locks, sharding
from ard_jax.runtime.distributed import barrier, everywhere, is_lead, tell
from ard_jax.training import loop, teachers, train_log
from ard_jax.training import run as run_lib


def workdir_of(experiment: Experiment) -> Path:
    """The run's folder: config.workdir, or runs/<name>-seed<seed>."""
    return Path(experiment.workdir or f"runs/{experiment.name}-seed{experiment.seed}")


def run(experiment: Experiment) -> Path:
    """Trains (or continues, or finds finished), evaluates and reports. Returns the report's path."""
    workdir = workdir_of(experiment)
    with locks.hold(workdir):
        if (evaluation := finished(experiment)) is not None:
            tell(
                report.summary_table(evaluation),
                f"This run is finished: nothing was done. Report: {workdir / 'report.html'}",
            )
            return workdir / "report.html"
        splits = build.load_data(experiment.data)
        mesh = build.make_mesh(experiment, splits)
        tell(
            f"{experiment.name}: {experiment.method.name}, {experiment.epochs} epochs, seed "
            f"{experiment.seed}, in {workdir}, on {sharding.describe(mesh)}"
        )
        settings = build.training_settings(experiment)
        run_lib.step_config(settings, splits)  # what is wrong with it is told before teachers train
        student = _student(experiment, splits, mesh)
        if is_lead():
            write_text_atomic(workdir / "config.json", json.dumps(to_dict(experiment), indent=1))
        roles = TEACHERS[experiment.method.name]
        wanted = [build.teacher_settings(experiment, role) for role in roles]
        found = teachers.obtain_all(wanted, splits, mesh)
        training = run_lib.make("student", settings, workdir, splits, mesh, student, found)
        result = loop.fit(training)
        path = _evaluate(experiment, workdir, splits, student, found, training, result)
        barrier("the report is written")
        return path


def finished(experiment: Experiment) -> dict[str, Any] | None:
    """The evaluation of a finished run of this very configuration, in its folder; None without one."""
    evaluation = _finished_here(experiment)
    return evaluation if everywhere(evaluation is not None) else None


def _finished_here(experiment: Experiment) -> dict[str, Any] | None:
    try:
        evaluation = json.loads((workdir_of(experiment) / "evaluation.json").read_text())
        # Values that came later get their defaults.
        saved = of_results(to_experiment(evaluation["config"], saved=True))
    except (OSError, ValueError):
        return None
    return evaluation if saved == of_results(experiment) else None


def _student(experiment: Experiment, splits: Splits, mesh: Any) -> run_lib.Network:
    net = build.describe_network(experiment.student, experiment.precision, splits.train)
    bundle = described.from_description(net, experiment.bn_groups)
    evaluator = for_network("student", described.in_float32(net), experiment.eval, mesh)
    return run_lib.Network(bundle, net, evaluator)


def _evaluate(experiment, workdir, splits, student, found, phase, result) -> Path:
    limit = experiment.eval.max_examples
    test = base.first(splits.test, limit)
    shown = found if experiment.eval.teachers else {}
    subjects, sources = _subjects(student, shown, phase, result)
    state_dir = workdir / "autoattack"
    evaluation, flags = full.evaluate_all(
        experiment, test, subjects, sources, experiment.eval.attacks, state_dir
    )
    evaluation["nets"]["student (best)"]["selected_by"] = {
        "split": phase.split, "epoch": result.best_step // phase.steps_per_epoch
    } | result.best_scores["student"]  # fmt: skip
    for role, teacher in found.items():
        names = ("source", "identity", "model")
        evaluation["teachers"][role] = {name: getattr(teacher, name) for name in names}
    for role, source in sources.items():
        record = evaluation["nets"][source.title]
        accuracy = {n: a["accuracy"] for n, a in record["attacks"].items()}
        evaluation["teachers"][role]["accuracy"] = {"clean": record["clean"]} | accuracy
    evaluation["timing"] = _timing(phase, result)
    grid = None
    if experiment.eval.grid:
        grid = full.example_images(experiment, test, subjects[0], flags[subjects[0].title])
    path = full.save(workdir, evaluation, flags, grid)
    autoattack.forget_state(state_dir, flags.values())
    tell(
        report.summary_table(evaluation),
        f"Report: {path}\nCheckpoints: {workdir / 'best'} and {workdir / 'last'}",
    )
    return path


def _timing(phase: loop.TrainingRun, result: loop.FitResult) -> dict[str, Any]:
    per_epoch = min(phase.steps_per_epoch * phase.batch_size, len(phase.train))
    records = read_metrics(phase.workdir / METRICS_FILE)
    return train_log.of_training(records, result.seconds, phase.total * phase.batch_size, per_epoch)


def _subjects(student, found, phase, result) -> tuple[list[Subject], dict[str, Subject]]:
    bundle, _, evaluator = student
    average = "SWA" if phase.step.swa_start else "EMA"
    spe, subjects = phase.steps_per_epoch, []
    for label, state in (("best", result.best), ("last", result.last)):
        step = int(state.step)
        saved = {"step": step, "epoch": step // spe, "sweep": label == "best"}
        nets = {f"student ({label})": state.student.variables}
        if state.ema is not None:
            nets[f"student {average} ({label})"] = state.ema
        subjects += [Subject(t, "student", bundle, v, evaluator, **saved) for t, v in nets.items()]
    sources = {
        role: Subject(f"{role} teacher", "teacher", t.bundle, t.variables, t.evaluator, sweep=True)
        for role, t in found.items()
    }
    subjects += sources.values()
    step = int(result.last.step)
    for role in (r for r in phase.method.trained_teachers if r in found):
        variables = result.last.teachers[role].variables
        title = f"{role} teacher after {phase.method.name.upper()}"
        original = sources[role]
        subjects.append(
            Subject(
                title, "teacher", original.bundle, variables, original.evaluator, step, step // spe
            )
        )
    return subjects, sources


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


def evaluate_checkpoint(
    experiment: Experiment, path: str, attack_names: list[str], transfer_from: str = ""
) -> Path:
    """`--mode=evaluate`: the student (and its moving average) of a checkpoint, again.

    AutoAttack that was interrupted continues when the same evaluation is started again.

    Args:
      experiment: data, eps and evaluation settings.
      path: folder of a run, of its best/ or last/, of one step, or of an imported network.
      attack_names: names of `attacks.make` or `attacks.SUITES`.
      transfer_from: folder like `path`, of another run: its student's adversarial images (PGD_trades
        and CW) are shown to this one, the black-box evaluation by transfer. "" for none.

    Returns:
      Path of the report, in <run>/evaluations/<number>.

    Raises:
      ValueError: a checkpoint does not fit the data.
    """
    bundle, variables, meta, folder = networks.load(path)
    mesh = sharding.make_mesh(experiment.run.devices, [experiment.eval.batch_size])
    splits = build.load_data(experiment.data)
    _check_fits(meta["config"]["net"], folder, splits)
    limit = experiment.eval.max_examples
    test = base.first(splits.test, limit)
    net = described.in_float32(meta["config"]["net"])
    evaluator = for_network("student", net, experiment.eval, mesh)
    step, epoch = meta["step"], meta["epoch"]
    saved = "imported network" if "origin" in meta else f"student ({Path(folder).parent.name})"
    nets = {saved: variables}
    if (Path(folder) / "ema").is_dir():
        average = "SWA" if meta["experiment"]["swa_start"] else "EMA"
        nets[f"student {average}"] = networks.load(folder, "ema")[1]
    subjects = [
        Subject(
            t, "student", bundle, sharding.put_replicated(mesh, v), evaluator, step, epoch, True
        )
        for t, v in nets.items()
    ]
    sources = {}
    if transfer_from:
        shown = experiment.eval.model_copy(update={"transfer": True})
        experiment = experiment.model_copy(update={"eval": shown})
        sources = _transfer_source(experiment, transfer_from, splits, mesh)
        subjects += sources.values()
    root = Path(folder).parent.parent / "evaluations"
    state_dir = root / "unfinished"
    evaluation, flags = full.evaluate_all(
        experiment, test, subjects, sources, attack_names, state_dir
    )
    evaluation["checkpoint"] = folder
    if "origin" in meta:
        evaluation["select_on"] = ""  # nothing was selected here
    number = 1 + max((int(p.name) for p in root.glob("*") if p.name.isdigit()), default=0)
    grid = full.example_images(experiment, test, subjects[0], flags[subjects[0].title])
    path = full.save(root / str(number), evaluation, flags, grid)
    autoattack.forget_state(state_dir, flags.values())
    tell(report.summary_table(evaluation), f"Report: {path}")
    barrier("the report is written")
    return path


def _check_fits(net: dict[str, Any], folder: str, splits: Splits) -> None:
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


def _transfer_source(experiment, path: str, splits: Splits, mesh: Any) -> dict[str, Subject]:
    """The student of another run, as the source of transferred attacks."""
    bundle, variables, meta, folder = networks.load(path)
    _check_fits(meta["config"]["net"], folder, splits)
    name = Path(folder).parent.parent.name
    net = described.in_float32(meta["config"]["net"])
    evaluator = for_network("transfer source", net, experiment.eval, mesh)
    variables = sharding.put_replicated(mesh, variables)
    return {name: Subject(f"source {name}", "source", bundle, variables, evaluator)}


def use_compilation_cache(experiment: Experiment) -> None:
    """Points XLA's persistent cache at config.run.compilation_cache.

    Every program is kept: a start compiles a hundred tiny ones beside the large, which takes seconds. On GPU
    JAX keeps XLA's autotuning results there too.
    """
    folder = experiment.run.compilation_cache
    if folder == "off":
        return
    jax.config.update("jax_compilation_cache_dir", folder or str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
