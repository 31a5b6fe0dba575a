"""`--mode=compare`: methods times seeds under one protocol, ending in tables and a plot.

    python -m ard_jax.main --mode=compare --config=configs/compare_digits.py

The configuration has `name`, `workdir` ("" for runs/<name>), `seeds`, `methods` (names out of `runs`, in the
order of the table), `runs` (name -> a whole experiment), `main_attack`, and optionally `data_dir` (replaces
data.dir of every run) and `full_reports`: True gives each run the report of a single run, with its teachers,
transfer attacks, eps sweep and examples, as its own `eval` says; otherwise these are left out of the runs,
and the teachers are evaluated once. `teachers` (name -> checkpoint) makes every run with a robust teacher
once with each of them, as <method>-<name>. `published` has the papers' numbers (`Comparison.published`),
which the report shows beside the measured ones.

Each run lies in <workdir>/<method>/seed<k> and is a run like any other: it can be continued, evaluated and
looked at alone. The order is seed by seed. A finished run is not repeated, an unfinished one is continued, a
failed one is tried again at the next start. The tables are written anew after every run.
"""

import contextlib
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from ard_jax import __version__, data
from ard_jax.cli import train, train_checks
from ard_jax.config import build
from ard_jax.config.comparison import Comparison, teacher_values
from ard_jax.config.schema import Experiment
from ard_jax.data.base import first
from ard_jax.evaluation import full
from ard_jax.evaluation.full import EvaluatedNetwork
from ard_jax.io.files import check_writable, write_text_atomic
from ard_jax.reporting import comparison_page
from ard_jax.reporting.record import ComparedTeacher, ComparisonRecord, Evaluation, Run
from ard_jax.runtime import locks
from ard_jax.runtime.distributed import everywhere, is_lead, tell
from ard_jax.training import run as run_lib
from ard_jax.training import teachers
from ard_jax.training.loop import TrainingDivergedError

INTERRUPTED = 130  # what shells report after Ctrl-C
# What stops one run and not the comparison; the last is e.g. a network that does not fit the memory.
_FAILURES = (ValueError, TrainingDivergedError, jax.errors.JaxRuntimeError)
# What a teacher's numbers depend on, beside the teacher.
_TEACHER_KEYS = ("data", "eps", "norm", "precision", "select_on", "eval")


def run(comparison: Comparison) -> int:
    """Runs what is not finished, and reports.

    Returns:
      Exit code: 0 when every run is finished, 1 when some failed, 130 after Ctrl-C.

    Raises:
      FolderBusyError: another process works on this comparison.
      DataError: the data, which all runs share, cannot be read.
      ConfigChangedError: the folder holds a run of another configuration, or on other data.
    """
    check_writable(comparison.workdir, "config.workdir")
    train_checks.check_kind(comparison.workdir, comparison=True)
    _check_named(comparison)
    errors: dict[tuple[str, int], str] = {}
    found: dict[str, ComparedTeacher] = {}
    with locks.hold(comparison.workdir):
        interrupted = True
        with contextlib.suppress(KeyboardInterrupt):
            _check_kept(comparison)
            _check_extra(comparison)
            found = _teachers(comparison)
            for key in _unfinished(comparison):
                errors |= _run_one(comparison, key, found)
                _write(comparison, found, errors)
            interrupted = False
        record = _write(comparison, found, errors)
    tell(f"\n{comparison_page.text(record)}\n\nReport: {comparison.workdir / 'comparison.html'}")
    if errors:
        total = len(comparison.experiments)
        tell(f"FAILED: {len(errors)} of {total} runs; see Warnings.", file=sys.stderr)
    if interrupted:
        tell("Interrupted; the same command continues.", file=sys.stderr)
        return INTERRUPTED
    return 1 if errors else 0


def _check_named(comparison: Comparison) -> None:
    """Raises TeacherError for all named teachers whose checkpoints are missing or do not fit the data."""
    named = {name: one for name, one in comparison.teachers.items() if name != one.role}
    if not named:
        return
    users = [comparison.experiments[one.methods[0], comparison.seeds[0]] for one in named.values()]
    wanted = [
        build.teacher_settings(e, one.role) for e, one in zip(users, named.values(), strict=True)
    ]
    teachers.check_checkpoints(wanted, build.load_data(users[0].data))


def _check_kept(comparison: Comparison) -> None:
    """Raises ConfigChangedError for a run of another configuration, or a finished one on other data."""
    train_checks.check_begun(comparison.experiments.values())
    done = [e for e in comparison.experiments.values() if train_checks.finished(e) is not None]
    if done:
        with contextlib.suppress(data.DataError):  # told by the next run, if there is one
            train_checks.check_finished(done, build.load_data(done[0].data))


def _check_extra(comparison: Comparison) -> None:
    """Raises DataError for further images that a run cannot use, before the first run."""
    left = {
        json.dumps([e.data.extra, e.data.extra_fraction]): e
        for e in comparison.experiments.values()
        if e.data.extra and train_checks.finished(e) is None
    }
    splits = None
    for experiment in left.values():
        splits = splits or build.load_data(experiment.data)
        run_lib.extra_images(build.training_settings(experiment), splits)


def _unfinished(comparison: Comparison) -> Iterator[tuple[str, int]]:
    """The runs that are left to do, announced with the time that they may take."""
    total, durations = len(comparison.experiments), _Durations()
    done = {key: train_checks.finished(e) for key, e in comparison.experiments.items()}
    for (method, _), evaluation in done.items():
        timing = evaluation and evaluation.timing
        if timing and timing.train_seconds is not None:
            durations.add(method, timing.train_seconds)
    left = [key for key, evaluation in done.items() if evaluation is None]
    tell(f"{comparison.name}: {total} runs ({len(comparison.methods)} methods, "
         f"{len(comparison.seeds)} seeds), {total - len(left)} finished before, "
         f"in {comparison.workdir}")  # fmt: skip
    for index, (method, seed) in enumerate(left):
        number = total - len(left) + index + 1
        estimate = durations.of([m for m, _ in left[index:]])
        tell(f"\n[{number}/{total}] {method}, seed {seed}{estimate}")
        began = time.monotonic()
        yield method, seed
        if train_checks.finished(comparison.experiments[method, seed]) is not None:
            durations.add(method, time.monotonic() - began)


class _Durations:
    """Seconds of finished runs by method, and what they say about those to come."""

    def __init__(self):
        self.known: dict[str, list[float]] = {}

    def add(self, method: str, seconds: float) -> None:
        self.known.setdefault(method, []).append(seconds)

    def of(self, methods: list[str]) -> str:
        every = [s for seconds in self.known.values() for s in seconds]
        if not every:
            return ""
        own = [self.known.get(method, every) for method in methods]
        minutes = sum(sum(seconds) / len(seconds) for seconds in own) / 60
        return f" (about {minutes:.0f} min left)" if minutes >= 1 else " (less than 1 min left)"


def _run_one(
    comparison: Comparison, key: tuple[str, int], found: dict[str, ComparedTeacher]
) -> dict[tuple[str, int], str]:
    """Trains and evaluates one run. Returns {} or {key: why it failed}."""
    experiment = comparison.experiments[key]
    try:
        for name, shared in comparison.teachers.items():
            if key[0] in shared.methods and name in found and found[name].error:
                raise teachers.TeacherError(f"no {name} teacher: {found[name].error}")
        train.run(experiment)
    except (data.DataError, train_checks.NoRoomError):
        raise  # every run would say the same
    except _FAILURES as error:
        tell(f"FAILED: {key[0]}, seed {key[1]}: {error}", file=sys.stderr)
        return {key: str(error) or type(error).__name__}
    return {}


def _teachers(comparison: Comparison) -> dict[str, ComparedTeacher]:
    """Name or role -> record of each teacher, evaluated once; with an error for one that cannot teach.

    Kept in teachers.json with the teacher's identity and the protocol, and measured again if these change.
    """
    path = comparison.workdir / "teachers.json"
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    kept = kept if everywhere(bool(kept)) else {}
    found, splits = {}, None
    for name, (role, methods) in comparison.teachers.items():
        users = [e for (method, _), e in comparison.experiments.items() if method in methods]
        config = {k: v for k, v in comparison.protocol.items() if k.split(".")[0] in _TEACHER_KEYS}
        config = json.loads(json.dumps(config | teacher_values(users[0], role)))
        old = ComparedTeacher.from_json(kept.get(name, {}))
        old = old if old.config == config else ComparedTeacher(config=config)
        old = dataclasses.replace(old, role=role, methods=methods)
        if old.net and all(train_checks.finished(e) is not None for e in users):
            found[name] = old
            continue
        splits = splits or build.load_data(users[0].data)
        try:
            found[name] = _teacher(role, users[0], splits, old)
        except _FAILURES as error:
            tell(f"FAILED: {name} teacher: {error}", file=sys.stderr)
            found[name] = ComparedTeacher(error=str(error) or type(error).__name__)
        good = {n: record.to_json() for n, record in found.items() if not record.error}
        if is_lead():
            write_text_atomic(path, json.dumps(good, indent=1))
    return found


def _teacher(
    role: str, experiment: Experiment, splits: Any, old: ComparedTeacher
) -> ComparedTeacher:
    """The teacher's record: `old` if it is of this very teacher, else trained and evaluated now."""
    mesh = build.make_mesh(experiment, splits)
    teacher = teachers.obtain(build.teacher_settings(experiment, role), splits, mesh)
    if old.identity == teacher.identity:
        return old
    title = f"{role} teacher"
    network = EvaluatedNetwork(
        title, "teacher", teacher.bundle, teacher.variables, teacher.evaluator
    )
    test = first(splits.test, experiment.eval.max_examples)
    evaluation, _ = full.evaluate_all(build.evaluation_settings(experiment), test, [network])
    names = ("source", "identity", "model")
    known = {name: getattr(teacher, name) for name in names}
    return dataclasses.replace(old, net=evaluation.nets[title], **known)


def _write(
    comparison: Comparison, found: dict[str, ComparedTeacher], errors: dict[tuple[str, int], str]
) -> ComparisonRecord:
    """Writes every output out of what is finished now. Returns the record."""
    evaluations = {key: train_checks.finished(e) for key, e in comparison.experiments.items()}
    done = {key: evaluation for key, evaluation in evaluations.items() if evaluation is not None}
    record = comparison_page.summarize(
        ComparisonRecord(
            name=comparison.name,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=" ".join(["python", "-m", "ard_jax.main", *sys.argv[1:]]),
            versions={"jax": jax.__version__, "ard_jax": __version__},
            main_attack=comparison.main_attack,
            seeds=comparison.seeds,
            methods=comparison.methods,
            protocol=comparison.protocol,
            settings=comparison.settings,
            published=comparison.published,
            runs=tuple(_run_record(comparison, key, done, errors) for key in evaluations),
            teachers=found,
        ),
        done,
    )
    if is_lead():
        comparison_page.write(record, comparison.workdir)
    return record


def _run_record(
    comparison: Comparison,
    key: tuple[str, int],
    done: dict[tuple[str, int], Evaluation],
    errors: dict[tuple[str, int], str],
) -> Run:
    folder = Path(comparison.experiments[key].workdir).relative_to(comparison.workdir)
    run = Run(method=key[0], seed=key[1], folder=str(folder))
    if key in errors:
        run = dataclasses.replace(run, status="failed", error=errors[key])
    if key in done:
        times = done[key].timing
        run = dataclasses.replace(
            run, status="finished", train_seconds=times and times.train_seconds,
            seconds_per_epoch=times and times.seconds_per_epoch,
        )  # fmt: skip
    return run
