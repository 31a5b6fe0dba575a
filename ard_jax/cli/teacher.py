"""`--mode=teacher`: will this network help as a robust teacher, and by which numbers.

    python -m ard_jax.main --mode=teacher --checkpoint=RUN_OR_IMPORTED_NETWORK --students=RUN

Data, eps and attack (config.eval.select_attack) are those of --config, or of the run. What is measured:
`evaluation.teacher_quality`.
"""

import datetime
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ard_jax import __version__
from ard_jax.checkpoints import manager, networks
from ard_jax.cli import train, train_checks
from ard_jax.config import build
from ard_jax.config.schema import Experiment
from ard_jax.data import Splits, base
from ard_jax.evaluation import full, teacher_quality
from ard_jax.evaluation.evaluator import Evaluator, for_network
from ard_jax.io.files import write_text_atomic
from ard_jax.models import described
from ard_jax.reporting import record, tables, teacher_tables
from ard_jax.runtime import sharding
from ard_jax.runtime.distributed import barrier, is_lead, tell


class _Loaded(NamedTuple):
    evaluator: Evaluator
    variables: Any
    model: str


def run(experiment: Experiment, path: str, students: list[str], out: str = "") -> Path:
    """Measures and judges a teacher on the test split, tells it, and writes teacher.json.

    Args:
      experiment: data, eps and evaluation settings.
      path: folder of the teacher: of a run, of its best/ or last/, of one step, or of an imported network.
      students: folders like `path`, of reference students.
      out: folder to make; "" for the next of <run>/teacher/<number>.

    Returns:
      Path of teacher.json.

    Raises:
      ValueError: a checkpoint is missing or does not fit the data, or the folder cannot be written.
    """
    root = Path(manager.find(path)).parent.parent / "teacher"
    train_checks.check_result_folder(root, out, record.TEACHER_FILE)
    mesh = sharding.make_mesh(experiment.run.devices, [experiment.eval.batch_size])
    splits = build.load_data(experiment.data)
    titles = _titles(students)
    for folder in (path, *students):
        net, _, where = networks.describe_checkpoint(folder)
        train_checks.check_fits(net, str(where), splits)
    loaded = {
        title: _load(title, folder, experiment, splits, mesh)
        for title, folder in {"teacher": path, **titles}.items()
    }
    teacher = loaded.pop("teacher")
    attack = build.evaluation_attack(experiment.eval.select_attack, experiment)
    test = base.first(splits.test, experiment.eval.max_examples)
    quality = teacher_quality.judge(
        teacher_quality.measure(
            teacher.evaluator, teacher.variables, test, attack,
            {title: (one.evaluator, one.variables) for title, one in loaded.items()},
        )
    )  # fmt: skip
    report = record.TeacherReport(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=" ".join(["python", "-m", "ard_jax.main", *sys.argv[1:]]),
        versions={"jax": jax.__version__, "ard_jax": __version__},
        checkpoint=path,
        model=teacher.model,
        dataset=full.dataset_record(test),
        eps=experiment.eps,
        norm=experiment.norm,
        attack=full.spec_record(attack),
        students=titles,
        quality=quality,
    )
    _tell(report)
    with train.result_folder(root, out, record.TEACHER_FILE) as (made, _):
        if is_lead():
            made.mkdir(parents=True, exist_ok=True)
            text = json.dumps(report.to_json(), indent=1)
            write_text_atomic(made / record.TEACHER_FILE, text)
        tell(f"Written: {made / record.TEACHER_FILE}")
        barrier("the judgement is written")
    return made / record.TEACHER_FILE


def _titles(students: list[str]) -> dict[str, str]:
    """Short and different titles of these step folders -> the folders."""
    names = [Path(folder).parent.parent.name for folder in students]
    short = len(set(names)) == len(names)
    return dict(zip(names if short else students, students, strict=True))


def _load(title: str, path: str, experiment: Experiment, splits: Splits, mesh: Any) -> _Loaded:
    _, variables, meta, folder = networks.load(path)
    train_checks.check_unchanged_data(meta, folder, experiment, splits)
    net = meta["config"]["net"]
    evaluator = for_network(title, described.in_float32(net), experiment.eval, mesh, splits)
    return _Loaded(evaluator, sharding.put_replicated(mesh, variables), net["model"])


def _tell(report: record.TeacherReport) -> None:
    data, quality = report.dataset, report.quality
    table = teacher_tables.table({"": quality})
    assert table is not None  # there are always the clean images
    verdict, *findings = teacher_tables.lines(report.model, quality)
    tell(
        f"{report.checkpoint}: {data.name}, {data.split}, {data.num_examples} images, {report.norm} eps "
        f"{tables.eps_text(report.eps)}, {report.attack.label}\n",
        *tables.text(table, 120),
        "\n" + teacher_tables.NOTE,
        f"\n{verdict}",
        *(f"- {line}" for line in findings),
    )
