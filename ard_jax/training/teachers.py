"""Gets each teacher: from a checkpoint of ours, by training it once by its recipe, or from the run's seed.

A trained teacher is kept in the teachers' cache folder under a name that depends on everything that
shaped it, and later runs use it. A teacher is never silently random or silently wrong: its origin is
recorded, and its clean accuracy is checked against a floor before a student learns from it. A partner,
which learns beside the student, is random on purpose, and starts with every run anew.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from ard_jax import methods, rng
from ard_jax.checkpoints import manager, networks
from ard_jax.config.build import TeacherSettings
from ard_jax.data import Splits, base
from ard_jax.evaluation.evaluator import Evaluator, for_network
from ard_jax.models import ModelBundle, described
from ard_jax.runtime import locks, once
from ard_jax.runtime.distributed import tell
from ard_jax.runtime.sharding import put_replicated, replicated
from ard_jax.training import loop, run

_NOT_ROBUST = tuple(set(methods.names()) - set(methods.ATTACKING))  # trained without an attack


class TeacherError(ValueError):
    """A teacher that does not fit the data or is not good enough to teach."""


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher, ready to use.

    Attributes:
      role: one of `schema.ROLES`.
      bundle: the network.
      variables: its variables, replicated on the mesh.
      evaluator: its compiled prediction and attacks.
      source: where it came from, for people.
      identity: the same for machines: a run only continues with the same teacher.
      model: architecture name.
      folder: where its network lies, "" for a partner.
    """

    role: str
    bundle: ModelBundle
    variables: Any
    evaluator: Evaluator
    source: str
    identity: str
    model: str
    folder: str = ""


def check_checkpoints(wanted: Iterable[TeacherSettings], splits: Splits) -> None:
    """Looks at every checkpoint that a teacher is to come from, but not at its arrays.

    Raises:
      TeacherError: all that are missing or do not fit the data, together.
    """
    problems, found = [], {}
    for settings in wanted:
        if settings.checkpoint:
            try:
                net, meta, folder = networks.describe_checkpoint(settings.checkpoint)
                problems += _misfits(settings.role, f"checkpoint {folder}", net, splits)
                method = (meta["config"].get("method") or {}).get("name")
                if settings.must_be_robust and method in _NOT_ROBUST:
                    problems.append(
                        f"the {settings.role} teacher (checkpoint {folder}) was trained by {method!r}, but "
                        f"{settings.must_be_robust} needs a teacher that is robust, without one the student "
                        "falls to chance; give a run of sat or trades"
                    )
                elif settings.role == "robust" and method in _NOT_ROBUST:
                    text = f"the robust teacher (checkpoint {folder}) was trained by {method!r}"
                    once.warn(text, f"{text}, without an attack")
                found.setdefault(str(folder), []).append(settings.role)
            except manager.CheckpointError as error:
                problems.append(f"the {settings.role} teacher: {error}")
    if problems:
        raise TeacherError("; ".join(problems))
    for folder, roles in found.items():
        if len(roles) > 1:
            text = f"the {' and the '.join(roles)} teacher are one network, checkpoint {folder}"
            once.warn(text, text)


def obtain_all(wanted: Iterable[TeacherSettings], splits: Splits, mesh: Any) -> dict[str, Teacher]:
    """Returns role -> teacher. Every checkpoint is looked at before the first teacher is trained.

    Raises:
      TeacherError: see `check_checkpoints` and `obtain`.
    """
    wanted = list(wanted)
    check_checkpoints(wanted, splits)
    return {settings.role: obtain(settings, splits, mesh) for settings in wanted}


def obtain(settings: TeacherSettings, splits: Splits, mesh: Any) -> Teacher:
    """Returns a teacher, trained first if need be; of a partner its beginning.

    Raises:
      TeacherError: wrong classes or image shape, or a clean accuracy under the floor.
      CheckpointError: a checkpoint that is missing or damaged.
    """
    s, role, folder = settings, settings.role, ""
    if s.checkpoint:
        bundle, variables, meta, folder = networks.load(
            s.checkpoint, bn_groups=s.bn_groups, remat=s.remat
        )
        description = meta["config"]["net"]
        source, identity = origin(meta, folder)
    else:
        description = s.describe(splits.train)
        bundle = described.from_description(description, s.bn_groups, s.remat)
    in_float32 = described.in_float32(description)
    evaluator = for_network(f"{role} teacher", in_float32, s.eval, mesh, splits)
    if s.seed is not None:
        variables, source, identity = _begin(s.seed, role, bundle, description, mesh)
    elif not s.checkpoint:
        network = run.Network(bundle, description, evaluator)
        variables, source, identity, folder = _train(s, splits, mesh, network)
    if problems := _misfits(role, source, description, splits):
        raise TeacherError("; ".join(problems))
    if s.precision and s.precision != description["precision"]:
        description = description | {"precision": s.precision}
        bundle = described.from_description(description, s.bn_groups, s.remat)
        identity = f"{identity}, computing in {s.precision}"
    variables = put_replicated(mesh, variables)
    about = (source, identity, description["model"], folder)
    teacher = Teacher(role, bundle, variables, evaluator, *about)
    if s.seed is None:
        _check_floor(teacher, s, splits)
    return teacher


def _begin(seed: int, role: str, bundle: ModelBundle, description: dict[str, Any], mesh: Any):
    """(variables, source, identity) of a partner at the first step of the run of this seed."""
    key = put_replicated(mesh, rng.stream(jax.random.key(seed), f"init {role}"))
    variables = jax.jit(bundle.init, out_shardings=replicated(mesh))(key)
    source = f"began with the student, from seed {seed}, and learned beside it"
    return variables, source, f"partner {_digest(description)}"


def origin(meta: dict[str, Any], folder: str) -> tuple[str, str]:
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


def kept_in(settings: TeacherSettings, net: dict[str, Any], splits: Splits) -> tuple[Path, str]:
    """(folder of the cache, identity) of a teacher that is trained by its recipe; net: its description."""
    recipe = settings.recipe
    assert recipe is not None
    identity = _digest(recipe.comparable(net, splits))
    name = f"{settings.role}-{net['model']}-{recipe.data.name}-{recipe.method}-{identity}"
    return Path(settings.cache) / name, identity


def _train(settings: TeacherSettings, splits: Splits, mesh: Any, network: run.Network):
    """(variables, source, identity, folder) of the recipe's result, trained now or found in the cache."""
    role, recipe, net = settings.role, settings.recipe, network.description
    assert recipe is not None  # there is no checkpoint
    folder, identity = kept_in(settings, net, splits)
    training = dataclasses.replace(
        run.make(f"{role} teacher", recipe, folder, splits, mesh, network, {}),
        long_note="To use a pretrained one instead, stop and add "
        f"--config.teachers.{role}.checkpoint=FOLDER (of a run of ard_jax, or of an imported network).",
    )
    waiting = f"Another process is training the {role} teacher in {folder}; waiting for it."
    with locks.hold(folder, on_busy=lambda: tell(waiting)):
        done = (folder / "last" / str(training.total)).is_dir()
        tell(f"{'Using the' if done else 'Training a'} {role} teacher ({net['model']}, "
             f"{recipe.method}, {recipe.epochs} epochs): {folder}")  # fmt: skip
        result = loop.fit(training)
    source = (
        f"trained by this project's recipe {recipe.method!r}, {recipe.epochs} epochs, seed {recipe.seed}, "
        f"best of its {training.split} split at epoch {result.best_step // training.steps_per_epoch}; "
        f"kept in {folder}"
    )
    return result.best.student.variables, source, f"recipe {identity}", str(folder)


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
    if problem := base.class_mismatch(net.get("class_names") or (), data.class_names):
        found.append(f"the {role} teacher ({source}) does not fit {data.name}: {problem}")
    return found


def _check_floor(teacher: Teacher, settings: TeacherSettings, splits: Splits) -> None:
    limit, floor = settings.eval.max_examples, settings.min_clean
    test = base.first(splits.test, limit)
    clean = teacher.evaluator.run(teacher.variables, test, {}).accuracy("clean")
    tell(f"  {teacher.role} teacher: clean accuracy {clean:.2%} on {len(test)} test images")
    if clean < floor:
        cause = (
            f"It was trained for {settings.recipe.epochs} epochs: train it longer, or lower the floor if it "
            "is meant."
            if settings.recipe
            else "The usual cause is input normalisation: this network is given [0,1] images normalised by "
            f"{teacher.bundle.normalization!r}; a checkpoint trained on other statistics loses tens of "
            "points. Set the right normalisation, or lower the floor if this is meant."
        )
        raise TeacherError(
            f"the {teacher.role} teacher ({teacher.source}) has a clean accuracy of {clean:.2%}, under "
            f"the floor of {floor:.2%} (config.teachers.{teacher.role}.min_clean). {cause}"
        )
