"""One experiment from its configuration to its report: data, teachers, student, evaluation."""

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from ard_jax.attacks.auto_attack.diagnostics import radius_warnings
from ard_jax.checkpoints import manager, networks
from ard_jax.cli import train_checks
from ard_jax.config import build
from ard_jax.config.parse import to_dict
from ard_jax.config.schema import PARTNERS, Experiment
from ard_jax.data import Splits, base
from ard_jax.evaluation import autoattack, full
from ard_jax.evaluation.evaluator import for_network
from ard_jax.evaluation.full import EvaluatedNetwork, RunFacts
from ard_jax.io.cache_folder import cache_dir
from ard_jax.io.files import check_writable, write_text_atomic
from ard_jax.io.metric_writer import METRICS_FILE, MetricWriter, read_metrics
from ard_jax.methods import TEACHERS
from ard_jax.models import described
from ard_jax.reporting import record, run_page
from ard_jax.runtime import locks, sharding
from ard_jax.runtime.distributed import barrier, is_lead, tell
from ard_jax.training import loop, teachers, train_log
from ard_jax.training import run as run_lib
from ard_jax.training import start as begin


def run(experiment: Experiment) -> Path:
    """Trains (or continues, or finds finished), evaluates and reports. Returns the report's path."""
    workdir = train_checks.workdir_of(experiment)
    if (done := _report_of_finished(experiment, workdir)) is not None:
        return done
    check_writable(workdir, "config.workdir")
    train_checks.check_kind(workdir, comparison=False)
    train_checks.check_mirrors(experiment)
    roles = TEACHERS[experiment.method.name]
    wanted = [build.teacher_settings(experiment, role) for role in roles]
    if any(settings.recipe for settings in wanted):
        check_writable(experiment.teachers.cache, "config.teachers.cache")
    # What is wrong with data, settings or checkpoints is told before there is a folder.
    splits = build.load_data(experiment.data)
    train_checks.check_radii(experiment, splits)
    mesh = build.make_mesh(experiment, splits)
    settings = build.training_settings(experiment)
    steps_per_epoch = run_lib.step_config(settings, splits).steps_per_epoch
    run_lib.extra_images(settings, splits)
    _, suites = build.split_names(experiment.eval.attacks)
    autoattack.check_defined(suites, splits.test.num_classes)
    teachers.check_checkpoints(wanted, splits)
    student = _student(experiment, splits, mesh)
    begin.check(experiment.start_from, student.description, splits)
    train_checks.check_resumable(experiment, steps_per_epoch)
    train_checks.check_batches(experiment, splits, mesh)
    train_checks.check_size(experiment, splits, mesh, student.bundle, wanted)
    with locks.hold(workdir):
        if (done := _report_of_finished(experiment, workdir)) is not None:
            return done  # by a process that just let go of the folder
        tell(
            f"{experiment.name}: {experiment.method.name}, {experiment.epochs} epochs, seed "
            f"{experiment.seed}, in {workdir}, on {sharding.describe(mesh)}"
        )
        train_checks.tell_of_attack(experiment)
        tell(*(f"WARNING: {t}" for t in radius_warnings(experiment.eps, experiment.norm)))
        train_checks.tell_of_late_epochs(experiment)
        # In a folder that holds a run the values may be refused, and must not replace those it has.
        fresh = not any((workdir / "last").glob("[0-9]*"))
        if fresh:
            _write_config(experiment, workdir)
        try:
            if experiment.start_from:
                started = begin.load(experiment.start_from, student.bundle)
                student = student._replace(variables=started.variables, origin=started.identity)
            found = teachers.obtain_all(wanted, splits, mesh)
        except (teachers.TeacherError, begin.StartError):
            if fresh:
                _leave_nothing(workdir)
            raise
        training = run_lib.make("student", settings, workdir, splits, mesh, student, found)
        config = train_checks.with_other_splits(training.config, splits)
        training = dataclasses.replace(training, config=config)
        result = loop.fit(training)
        if not fresh:
            _write_config(experiment, workdir)
        path = _evaluate(experiment, workdir, splits, student, found, training, result)
        barrier("the report is written")
        return path


def _write_config(experiment: Experiment, workdir: Path) -> None:
    if is_lead():
        write_text_atomic(workdir / "config.json", json.dumps(to_dict(experiment), indent=1))


def _leave_nothing(workdir: Path) -> None:
    """Takes back what a run wrote before it was refused; the folder stays if it holds anything else."""
    if is_lead():
        with contextlib.suppress(OSError):
            (workdir / "config.json").unlink()
            (workdir / ".lock").unlink()  # which is held: on other systems than POSIX it stays
            workdir.rmdir()


def _report_of_finished(experiment: Experiment, workdir: Path) -> Path | None:
    """The report of a finished run, shown; None if there is something to do."""
    if (evaluation := train_checks.finished(experiment)) is None:
        return None
    with contextlib.suppress(base.DataError):  # the data may be gone, but not be others
        train_checks.check_finished([experiment], build.load_data(experiment.data))
    tell(
        run_page.summary_table(evaluation),
        f"This run is finished: nothing was done. Report: {workdir / run_page.REPORT_FILE}",
    )
    if not (workdir / run_page.REPORT_FILE).is_file():
        tell(
            f"WARNING: {workdir / run_page.REPORT_FILE} is not there any more; --mode=evaluate "
            f"--checkpoint={workdir} makes one"
        )
    if gone := train_checks.missing_checkpoints(workdir):
        tell(
            f"WARNING: {workdir} has no checkpoint in {'/ and '.join(gone)}/: only what else lies there is "
            "left. Put them back to evaluate, export or train on; to train anew, choose another "
            "--config.workdir"
        )
    return workdir / run_page.REPORT_FILE


def _student(experiment: Experiment, splits: Splits, mesh: Any) -> run_lib.Network:
    net = build.describe_network(experiment.student, experiment.precision, splits.train)
    bundle = described.from_description(net, experiment.bn_groups, experiment.run.remat)
    evaluator = for_network("student", described.in_float32(net), experiment.eval, mesh, splits)
    return run_lib.Network(bundle, net, evaluator)


def _evaluate(
    experiment: Experiment,
    workdir: Path,
    splits: Splits,
    student: Any,
    found: dict[str, teachers.Teacher],
    training: run_lib.TrainingRun,
    result: loop.FitResult,
) -> Path:
    settings = build.evaluation_settings(experiment)
    test = base.first(splits.test, settings.eval.max_examples)
    networks = _networks(student, found if settings.eval.teachers else {}, training, result)
    names = ("source", "identity", "model", "folder")
    known = {role: {name: getattr(t, name) for name in names} for role, t in found.items()}
    facts = RunFacts(
        teachers={role: record.Teacher(**values) for role, values in known.items()},
        timing=_timing(training, result),
    )
    state_dir = workdir / "autoattack"
    mirrors = functools.partial(
        MetricWriter, workdir, training.tensorboard, lead=is_lead(), tracking=training.tracking
    )
    path = full.evaluate_and_save(settings, test, networks, facts, workdir, state_dir, mirrors)
    tell(f"Report: {path}\nCheckpoints: {workdir / 'best'} and {workdir / 'last'}")
    return path


def _timing(training: loop.TrainingRun, result: loop.FitResult) -> record.Timing:
    per_epoch = min(training.steps_per_epoch * training.batch_size, len(training.train))
    records = read_metrics(training.workdir / METRICS_FILE)
    images = training.total * training.batch_size
    return record.Timing(**train_log.of_training(records, result.seconds, images, per_epoch))


def _networks(
    student: Any,
    found: dict[str, teachers.Teacher],
    training: run_lib.TrainingRun,
    result: loop.FitResult,
) -> list[EvaluatedNetwork]:
    """The best and the last student, their averages, the teachers, and what became of trained ones."""
    bundle, evaluator = student.bundle, student.evaluator
    average = "SWA" if training.step.swa_start else "EMA"
    spe, networks = training.steps_per_epoch, []
    chosen = record.Selection(
        split=training.split, epoch=result.best_step // spe, scores=result.best_scores["student"]
    )
    for label, state in (("best", result.best), ("last", result.last)):
        step = int(state.step)
        saved = {"step": step, "epoch": step // spe, "sweep": label == "best"}
        nets = {f"student ({label})": state.student.variables}
        if state.ema is not None:
            nets[f"student {average} ({label})"] = state.ema
        networks += [
            EvaluatedNetwork(t, "student", bundle, v, evaluator, **saved) for t, v in nets.items()
        ]
    networks[0] = dataclasses.replace(networks[0], selected_by=chosen)
    networks += [
        EvaluatedNetwork(
            f"{role} teacher", "teacher", t.bundle, t.variables, t.evaluator, sweep=True, source=role
        )
        for role, t in found.items() if role not in PARTNERS
    ]  # fmt: skip
    step = int(result.last.step)
    for role in (r for r in training.method.trained_teachers if r in found):
        variables, t = result.last.teachers[role].variables, found[role]
        # A partner was random at the start: there is no row for it before.
        kind, source = (role, role) if role in PARTNERS else (f"{role} teacher", "")
        networks.append(
            EvaluatedNetwork(
                f"{kind} after {training.method.name.upper()}", "teacher", t.bundle, variables,
                t.evaluator, step, step // spe, sweep=bool(source), source=source,
            )
        )  # fmt: skip
    return networks


def evaluate_checkpoint(
    experiment: Experiment,
    path: str,
    attack_names: list[str],
    transfer_from: str = "",
    out: str = "",
) -> Path:
    """`--mode=evaluate`: the student (and its moving average) of a checkpoint, again.

    AutoAttack that was interrupted continues when the same evaluation is started again.

    Args:
      experiment: data, eps and evaluation settings.
      path: folder of a run, of its best/ or last/, of one step, or of an imported network.
      attack_names: names of `attacks.make` or `attacks.SUITES`.
      transfer_from: folder like `path`, of another run: its student's adversarial images (PGD_trades
        and CW) are shown to this one, the black-box evaluation by transfer. "" for none.
      out: folder to make for report and results; "" for the next of <run>/evaluations/<number>.

    Returns:
      Path of the report.

    Raises:
      ValueError: a checkpoint does not fit the data, or the folder cannot be written.
    """
    settings = build.evaluation_settings(experiment, attack_names)
    train_checks.check_result_folder(Path(manager.find(path)).parent.parent / "evaluations", out)
    bundle, variables, meta, folder = networks.load(path)
    mesh = sharding.make_mesh(experiment.run.devices, [experiment.eval.batch_size])
    splits = build.load_data(experiment.data)
    train_checks.check_radii(experiment, splits)
    train_checks.check_fits(meta["config"]["net"], folder, splits)
    train_checks.check_unchanged_data(meta, folder, experiment, splits)
    autoattack.check_defined(settings.suites, splits.test.num_classes)
    if transfer_from:
        shown = experiment.eval.model_copy(update={"transfer": True})
        experiment = experiment.model_copy(update={"eval": shown})
        settings = build.evaluation_settings(experiment, attack_names)
    net = described.in_float32(meta["config"]["net"])
    evaluator = for_network("student", net, settings.eval, mesh, splits)
    imported = "origin" in meta
    if imported:
        settings = dataclasses.replace(settings, select_on="")  # nothing was selected here
    nets = {"imported network" if imported else f"student ({Path(folder).parent.name})": variables}
    if (Path(folder) / "ema").is_dir():
        average = "SWA" if meta["experiment"]["swa_start"] else "EMA"
        nets[f"student {average}"] = networks.load(folder, "ema")[1]
    evaluated = [
        EvaluatedNetwork(
            title, "student", bundle, sharding.put_replicated(mesh, v), evaluator, meta["step"],
            meta["epoch"], sweep=True,
        )
        for title, v in nets.items()
    ]  # fmt: skip
    if transfer_from:
        evaluated.append(_transfer_source(settings, transfer_from, splits, mesh))
    test = base.first(splits.test, settings.eval.max_examples)
    with result_folder(Path(folder).parent.parent / "evaluations", out) as (made, unfinished):
        facts = RunFacts(checkpoint=folder)
        report = full.evaluate_and_save(settings, test, evaluated, facts, made, unfinished)
        tell(f"Report: {report}")
        barrier("the report is written")
    return report


@contextlib.contextmanager
def result_folder(
    root: Path, out: str, file: str = record.EVALUATION_FILE
) -> Iterator[tuple[Path, Path | None]]:
    """Makes the folder of the result `file`: `out`, or the next number in `root`; none stays after an error.

    Yields:
      (the folder, that of AutoAttack's unfinished batches; None where another process uses it).

    Raises:
      FolderBusyError: another process evaluates into `out`.
      ValueError: another process has done so.
    """
    made = Path(out) if out else _next_number(root)
    held = locks.hold(made, flag="--out", keep=False) if out else locks.try_hold(root)
    try:
        with held as alone:
            train_checks.check_result_folder(root, out, file)
            yield made, (made if out else root) / "unfinished" if alone else None
    except BaseException:
        if is_lead():
            with contextlib.suppress(OSError):  # something is in it
                made.rmdir()
        raise


def _next_number(root: Path) -> Path:
    """Makes the next numbered folder; two processes at once get two."""
    numbers = [int(p.name) for p in root.glob("*") if p.name.isdigit()]
    for number in itertools.count(1 + max(numbers, default=0)):
        try:
            if is_lead():
                (root / str(number)).mkdir(parents=True)
            return root / str(number)
        except FileExistsError:
            continue
    raise AssertionError("there is always a next number")


def _transfer_source(
    settings: full.EvaluationSettings, path: str, splits: Splits, mesh: Any
) -> EvaluatedNetwork:
    """The student of another run, as the source of transferred attacks."""
    bundle, variables, meta, folder = networks.load(path)
    train_checks.check_fits(meta["config"]["net"], folder, splits)
    name = Path(folder).parent.parent.name
    net = described.in_float32(meta["config"]["net"])
    evaluator = for_network("transfer source", net, settings.eval, mesh, splits)
    variables = sharding.put_replicated(mesh, variables)
    return EvaluatedNetwork(f"source {name}", "source", bundle, variables, evaluator, source=name)


def use_compilation_cache(experiment: Experiment) -> None:
    """Points XLA's persistent cache at config.run.compilation_cache.

    Every program is kept: a start compiles a hundred tiny ones beside the large, which takes seconds. On GPU
    JAX keeps XLA's autotuning results there too.
    """
    folder = experiment.run.compilation_cache
    if folder == "off":
        return
    if folder:
        check_writable(folder, "config.run.compilation_cache")
    elif cache_dir().is_file():
        check_writable(str(cache_dir()), "ARD_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", folder or str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
