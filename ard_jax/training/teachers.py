"""Gets each teacher: from a checkpoint of ours, or by training it once by its recipe.

A trained teacher is kept in the teachers' cache folder under a name that depends on everything that
shaped it, and later runs use it. A teacher is never silently random or silently wrong: its origin is
recorded, and its clean accuracy is checked against a floor before a student learns from it.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from ard_jax.checkpoints import manager, networks
from ard_jax.config import build
from ard_jax.config.schema import Experiment, TeacherConfig
from ard_jax.data import Splits, base
from ard_jax.evaluation.evaluator import Evaluator, for_network
from ard_jax.models import ModelBundle, described
from ard_jax.runtime import locks
from ard_jax.runtime.distributed import tell
from ard_jax.runtime.sharding import put_replicated
from ard_jax.training import loop, phases


class TeacherError(ValueError):
    """A teacher that does not fit the data or is not good enough to teach."""


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher, ready to use.

    Attributes:
      role: "robust" or "clean".
      bundle: the network.
      variables: its variables, replicated on the mesh.
      evaluator: its compiled prediction and attacks.
      source: where it came from, for people.
      identity: the same for machines: a run only continues with the same teacher.
      model: architecture name.
    """

    role: str
    bundle: ModelBundle
    variables: Any
    evaluator: Evaluator
    source: str
    identity: str
    model: str


def obtain_all(
    roles: tuple[str, ...], experiment: Experiment, splits: Splits, mesh: Any
) -> dict[str, Teacher]:
    """Returns role -> teacher. Every checkpoint is looked at before the first teacher is trained.

    Raises:
      TeacherError: all checkpoints that are missing or do not fit the data, together; see `obtain`.
    """
    problems = []
    for role in roles:
        path = getattr(experiment.teachers, role).checkpoint
        if path:
            try:
                net, _, folder = networks.describe_checkpoint(path)
                problems += _misfits(role, f"checkpoint {folder}", net, splits)
            except manager.CheckpointError as error:
                problems.append(f"the {role} teacher: {error}")
    if problems:
        raise TeacherError("; ".join(problems))
    return {role: obtain(role, experiment, splits, mesh) for role in roles}


def obtain(role: str, experiment: Experiment, splits: Splits, mesh: Any) -> Teacher:
    """The teacher of a role, trained first if need be.

    Raises:
      TeacherError: wrong classes or image shape, or a clean accuracy under the floor.
      CheckpointError: a checkpoint that is missing or damaged.
    """
    config: TeacherConfig = getattr(experiment.teachers, role)
    if config.checkpoint:
        bundle, variables, meta, folder = networks.load(
            config.checkpoint, bn_groups=experiment.bn_groups
        )
        description = meta["config"]["net"]
        source, identity = _origin(meta, folder)
    else:
        description = build.describe_network(config.net, experiment.precision, splits.train)
        bundle = described.from_description(description, experiment.bn_groups)
    evaluator = for_network(
        f"{role} teacher", described.in_float32(description), experiment.eval, mesh
    )
    if not config.checkpoint:
        variables, source, identity = _train(
            role, experiment, splits, mesh, (bundle, description, evaluator)
        )
    if problems := _misfits(role, source, description, splits):
        raise TeacherError("; ".join(problems))
    variables = put_replicated(mesh, variables)
    teacher = Teacher(role, bundle, variables, evaluator, source, identity, description["model"])
    _check_floor(teacher, config.min_clean, experiment, splits)
    return teacher


def _origin(meta: dict[str, Any], folder: str) -> tuple[str, str]:
    """(source, identity) of a teacher from a checkpoint."""
    if imported := meta.get("origin"):
        # By its arrays: two files of one architecture agree in everything else.
        arrays = {"net": meta["config"]["net"], "arrays": imported["arrays_sha256"]}
        return (
            f"checkpoint {folder}, imported from {imported['file']}",
            f"imported {_digest(arrays)}",
        )
    return f"checkpoint {folder}", f"checkpoint {_digest(meta['config'])} step {meta['step']}"


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _train(role: str, experiment: Experiment, splits: Splits, mesh: Any, network: Any):
    """(variables, source, identity) of the recipe's result, trained now or found in the cache."""
    config, (_, net, _) = getattr(experiment.teachers, role), network
    recipe = phases.teacher_experiment(experiment, role, config)
    identity = _digest(build.comparable(recipe, net, splits))
    name = f"{role}-{net['model']}-{experiment.data.name}-{config.recipe.method}-{identity}"
    folder = Path(experiment.teachers.cache) / name
    phase = dataclasses.replace(
        phases.student_phase(recipe, folder, splits, mesh, network, {}),
        title=f"{role} teacher",
        long_note="To use a pretrained one instead, stop and add "
        f"--config.teachers.{role}.checkpoint=FOLDER (of a run of ard_jax, or of an imported network).",
    )
    waiting = f"Another process is training the {role} teacher in {folder}; waiting for it."
    with locks.hold(folder, on_busy=lambda: tell(waiting)):
        done = (folder / "last" / str(phase.total)).is_dir()
        tell(f"{'Using the' if done else 'Training a'} {role} teacher ({net['model']}, "
             f"{config.recipe.method}, {config.recipe.epochs} epochs): {folder}")  # fmt: skip
        result = loop.fit(phase)
    source = (
        f"trained by this project's recipe {config.recipe.method!r}, {config.recipe.epochs} epochs, "
        f"seed {config.recipe.seed}, best of its {phase.split} split at epoch "
        f"{result.best_step // phase.steps_per_epoch}; kept in {folder}"
    )
    return result.best.student.variables, source, f"recipe {identity}"


def _misfits(role: str, source: str, net: dict[str, Any], splits: Splits) -> list[str]:
    """Why this network cannot take the data; empty when it can."""
    data, found = splits.train, []
    if net["num_classes"] != data.num_classes:
        found.append(
            f"the {role} teacher ({source}) has {net['num_classes']} classes, but {data.name} has "
            f"{data.num_classes}; give a teacher of the same classes"
        )
    if tuple(net["image_shape"]) != tuple(data.image_shape):
        found.append(
            f"the {role} teacher ({source}) takes images of shape {tuple(net['image_shape'])}, but "
            f"{data.name} has {tuple(data.image_shape)}"
        )
    return found


def _check_floor(teacher: Teacher, floor: float, experiment: Experiment, splits: Splits) -> None:
    limit = experiment.eval.max_examples
    test = base.first(splits.test, limit)
    clean = teacher.evaluator.run(teacher.variables, test, {}).accuracy("clean")
    tell(f"  {teacher.role} teacher: clean accuracy {clean:.2%} on {len(test)} test images")
    if clean < floor:
        raise TeacherError(
            f"the {teacher.role} teacher ({teacher.source}) has a clean accuracy of {clean:.2%}, under "
            f"the floor of {floor:.2%} (config.teachers.{teacher.role}.min_clean). The usual cause is "
            f"input normalisation: this network is given [0,1] images normalised by "
            f"{teacher.bundle.normalization!r}; a checkpoint trained on other statistics loses tens of "
            "points. Set the right normalisation, train longer, or lower the floor if this is meant."
        )
