"""What is built from an experiment: data, devices, attacks, networks, the method."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ard_jax import attacks, data, methods, optim
from ard_jax.attacks import registry
from ard_jax.config import parse
from ard_jax.config.schema import (
    CONTENT,
    EVALUATION,
    NOTHING,
    PARTNERS,
    AttackConfig,
    AwpConfig,
    DataConfig,
    EvalConfig,
    Experiment,
    MethodConfig,
    NetConfig,
    PartnerConfig,
    RunConfig,
    TeacherConfig,
    TeachersConfig,
)
from ard_jax.data import Splits, augment
from ard_jax.data.base import ArrayDataset
from ard_jax.methods import TEACHERS, Parts
from ard_jax.runtime import sharding

# Fields that came later: a run of an earlier version is one with their defaults.
_LATER = (
    "bn_groups", "average_bn", "label_smoothing", "attack.eps_ramp", "data.flip", "data.extra_fraction",
    "data.crop_area", "data.crop_sizes", "data.crop_boundaries", "data.mixup", "data.cutmix",
    "data.mix_probability", "accumulate",
    *(
        f"{group}.{name}"
        for group in ("student_optim", "robust_teacher_optim")
        for name in ("optimizer", "beta2", "clip_norm", "last_lr")
    ),
)  # fmt: skip
# Options of data that no teacher's recipe has.
_OF_STUDENT = (
    "flip", "extra", "extra_fraction", "mixup", "cutmix", "mix_probability", "crop_sizes", "crop_boundaries",
)  # fmt: skip
# Attacks whose images are transferred from the teachers, as the authors' black-box evaluation does.
_TRANSFER = ("pgd_trades", "cw_inf")
_SWEEP = "pgd_sat"  # the attack of accuracies over a range of eps


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What the evaluation of a run measures, and what its record tells of the run.

    Attributes:
      name: of the run.
      seed: of the run.
      eps: radius in pixel units.
      norm: "linf" or "l2".
      select_on: split that chose the best checkpoint; "" where nothing was chosen.
      config: the whole experiment, as the record holds it.
      eval: what else to measure.
      attacks: name -> Attack, made on every network.
      suites: names of AutoAttack and its like, of `attacks.SUITES`.
      transfer: name -> Attack whose images are transferred from the teachers.
      select: the Attack that chooses the best checkpoint.
      sweep: radius -> Attack, None at radius 0.
    """

    name: str
    seed: int
    eps: float
    norm: str
    select_on: str
    config: dict[str, Any]
    eval: EvalConfig
    attacks: dict[str, Any]
    suites: tuple[str, ...]
    transfer: dict[str, Any]
    select: Any
    sweep: dict[float, Any]


def evaluation_settings(
    experiment: Experiment, names: Iterable[str] | None = None
) -> EvaluationSettings:
    """The experiment's evaluation, under its own attacks or those of other names.

    Raises:
      ValueError: a name that is neither an attack's nor a suite's, or attacks that are too weak alone.
    """
    e = experiment
    names = list(e.eval.attacks if names is None else names)
    plain, suites = split_names(names)
    if problem := registry.weak_alone(names):
        raise ValueError(f"attacks={','.join(names)}: {problem}")
    radii = [float(factor * e.eps) for factor in e.eval.eps_sweep]
    return EvaluationSettings(
        name=e.name,
        seed=e.seed,
        eps=e.eps,
        norm=e.norm,
        select_on=e.select_on,
        config=parse.to_dict(e),
        eval=e.eval,
        attacks={name: evaluation_attack(name, e) for name in plain},
        suites=tuple(suites),
        transfer={name: evaluation_attack(name, e) for name in _TRANSFER},
        select=evaluation_attack(e.eval.select_attack, e),
        sweep={eps: evaluation_attack(_SWEEP, e, eps) if eps > 0 else None for eps in radii},
    )


def evaluable() -> list[str]:
    """Names of the attacks that an evaluation can make: those that need no teacher, and suites."""
    alone = [name for name in attacks.names() if not attacks.make(name).needs_teacher]
    return list(dict.fromkeys([*alone, *attacks.SUITES]))


def split_names(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(names of `attacks.make`, names of `attacks.SUITES`), each in the order given.

    Raises:
      ValueError: a name that is neither.
    """
    names = list(names)
    for name in names:
        registry.check_name(name, evaluable())
    return [n for n in names if n not in attacks.SUITES], [n for n in names if n in attacks.SUITES]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingSettings:
    """What one training is, before its data and networks are at hand.

    Attributes:
      seed, epochs, batch_size, accumulate, bn_groups, ema_decay, swa_start, average_bn, label_smoothing,
        select_on, data, eval, run: as in `schema.Experiment`.
      method: name of the method.
      options: its options that are given.
      attack: the inner attack.
      select_attack: the attack whose accuracy counts in selection.
      make_method: (student, {role: teacher}, steps per epoch) -> `methods.Method`.
      comparable: (description of the network, splits, **extra) -> what two runs must agree on for one to
        continue the other.
      recorded: the whole configuration, for the checkpoints.
      extension_problem: length of a run that is otherwise the same -> why it cannot be trained on to this
        length; "" if it can.
    """

    seed: int
    epochs: int
    batch_size: int
    accumulate: int
    bn_groups: int
    ema_decay: float
    swa_start: int
    average_bn: str
    label_smoothing: float
    select_on: str
    data: DataConfig
    eval: EvalConfig
    run: RunConfig
    method: str
    options: dict[str, Any]
    attack: attacks.Attack
    select_attack: attacks.Attack
    make_method: Callable[..., methods.Method]
    comparable: Callable[..., dict[str, Any]]
    recorded: dict[str, Any]
    extension_problem: Callable[[int], str]


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherSettings:
    """Where a teacher comes from and what it must be.

    Attributes:
      role: one of `schema.ROLES`.
      checkpoint: folder of a run of ours or of an imported network; "" to train by the recipe.
      min_clean: clean accuracy in [0,1] below which the run stops.
      bn_groups, remat: see `models.create`, where it is trained or attacked.
      eval: how it is evaluated.
      cache: folder that keeps trained teachers.
      describe: training images -> description of the network that the recipe trains.
      recipe: its training; None with a checkpoint, and for a partner.
      seed: from which a partner begins, that is a network which learns beside the student; else None.
      precision: compute type while the student trains, "" for that of the network.
      must_be_robust: what needs it to be robust, so that a run without an attack is refused; "" if nothing.
    """

    role: str
    checkpoint: str
    min_clean: float
    bn_groups: int
    eval: EvalConfig
    cache: str
    describe: Callable[[ArrayDataset], dict[str, Any]]
    recipe: TrainingSettings | None
    seed: int | None = None
    must_be_robust: str = ""
    precision: str = ""
    remat: bool = False


def training_settings(experiment: Experiment) -> TrainingSettings:
    """Returns the training of the experiment's student."""
    e = experiment
    return TrainingSettings(
        seed=e.seed, epochs=e.epochs, batch_size=e.batch_size, accumulate=e.accumulate, bn_groups=e.bn_groups,
        ema_decay=e.ema_decay, swa_start=e.swa_start, average_bn=e.average_bn,
        label_smoothing=e.label_smoothing, select_on=e.select_on,
        data=e.data, eval=e.eval, run=e.run, method=e.method.name, options=e.method.options,
        attack=training_attack(e.attack, e),
        select_attack=evaluation_attack(e.eval.select_attack, e),
        make_method=functools.partial(make_method, e),
        comparable=functools.partial(comparable, e),
        recorded=parse.to_dict(e),
        extension_problem=functools.partial(extension_problem, e),
    )  # fmt: skip


def teacher_settings(experiment: Experiment, role: str) -> TeacherSettings:
    """Returns the teacher of a role, and its training where there is no checkpoint."""
    teacher: TeacherConfig | PartnerConfig = getattr(experiment.teachers, role)
    recipe, checkpoint, min_clean, seed = None, "", 0.0, experiment.seed
    if isinstance(teacher, TeacherConfig):
        checkpoint, min_clean, seed = teacher.checkpoint, teacher.min_clean, None
        if not checkpoint:
            recipe = training_settings(teacher_experiment(experiment, role, teacher))
    needing = methods.needs_robust_teacher(experiment.method.name, experiment.igdm)
    return TeacherSettings(
        role, checkpoint, min_clean, experiment.bn_groups, experiment.eval, experiment.teachers.cache,
        functools.partial(describe_network, teacher.net, experiment.precision), recipe, seed,
        needing if role == "robust" else "", experiment.teachers.precision, experiment.run.remat,
    )  # fmt: skip


def load_data(config: DataConfig) -> Splits:
    """Returns the data, validated.

    Raises:
      DataError: see `data.load`.
    """
    holdout = config.holdout if config.holdout < 1 else int(config.holdout)
    return data.load(
        config.name, config.dir or None, holdout=holdout, seed=config.split_seed,
        reading=reading(config),
    )  # fmt: skip


def reading(config: DataConfig) -> data.Reading:
    """How images are read; a file's workers are left out where the command line has the memory loader."""
    workers = config.workers if config.loader == "grain" else 0
    return data.Reading(
        config.loader, config.image_size, workers, config.prefetch, config.class_order,
        config.resize, config.classes, config.test_files,
    )  # fmt: skip


def make_mesh(experiment: Experiment, splits: Splits) -> Any:
    """The experiment's devices: `sharding.make_mesh` for all batches that it trains on."""
    teachers = (getattr(experiment.teachers, role) for role in TEACHERS[experiment.method.name])
    recipes = [
        t.recipe.batch_size for t in teachers if isinstance(t, TeacherConfig) and not t.checkpoint
    ]
    parts, size = experiment.accumulate, experiment.batch_size
    sizes, count = {size // parts, *recipes}, len(splits.train)
    if experiment.data.last_batch == "keep":
        sizes |= {count % other for other in recipes}
        if not experiment.data.extra:  # which fills the last batch
            sizes.add(count % size // parts)
    return sharding.make_mesh(experiment.run.devices, sizes)


def describe_network(net: NetConfig, precision: str, dataset: ArrayDataset) -> dict[str, Any]:
    """All that is needed to build the network again; saved with every checkpoint."""
    return {
        "model": net.model,
        "kwargs": dict(net.kwargs),
        "init": net.init or "torch",
        "normalization": net.statistics(),
        "precision": precision,
        "num_classes": dataset.num_classes,
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
    }


def training_attack(attack: AttackConfig, experiment: Experiment) -> Any:
    """The Attack of an inner attack at the experiment's radius."""
    overrides: dict[str, Any] = dict(attack.options)
    for name in ("name", "eps", "norm"):
        if name in overrides:
            place = "config.attack.name" if name == "name" else f"config.{name}"
            raise ValueError(
                f"options.{name}={overrides[name]!r}: set {place}, which the attack takes"
            )
    if attack.step_size:
        overrides["step_size"] = attack.step_size
    if attack.steps:
        overrides["steps"] = attack.steps
    if attack.init:
        overrides["start"] = attack.init
    return attacks.make(attack.name, eps=experiment.eps, norm=experiment.norm, **overrides)


def attacks_beside(experiment: Experiment) -> tuple[str, ...]:
    """Attacks that an evaluation makes unasked: those of transfer, and of accuracy over radii."""
    sweep = (_SWEEP,) if experiment.eval.eps_sweep else ()
    return (*(_TRANSFER if experiment.eval.transfer else ()), *sweep)


def evaluation_attack(name: str, experiment: Experiment, eps: float | None = None) -> Any:
    """The Attack of an evaluation attack, at the experiment's radius or another."""
    eps = experiment.eps if eps is None else eps
    size = experiment.eval.step_sizes.get(name)
    overrides = {"step_size": size * eps / experiment.eps} if size else {}
    return attacks.make(name, eps=eps, norm=experiment.norm, **overrides)


def _optimizer(parts: int, *given: Any) -> optim.Optimizer:
    made = optim.make(*given)
    return optim.accumulating(made, parts) if parts > 1 else made


def make_method(
    experiment: Experiment, student: Any, teachers: dict[str, Any], steps_per_epoch: int
) -> methods.Method:
    """The experiment's method on these networks."""
    e = experiment
    updates = steps_per_epoch * methods.updates_per_step(e.method.name, e.method.options)
    make = functools.partial(_optimizer, e.accumulate)
    parts = Parts(
        student=student,
        student_optim=make(e.student_optim, e.epochs, updates),
        attack=training_attack(e.attack, e) if e.method.name in methods.ATTACKING else None,
        teachers=teachers,
        teacher_optims={
            role: make(e.robust_teacher_optim, e.epochs)
            for role in methods.TRAINED_TEACHERS[e.method.name]
            if role not in PARTNERS
        },
        epochs=e.epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=e.batch_size,
        attack_bn=e.attack.bn,
        attack_bn_stats=e.attack.bn_stats if e.attack.bn == "train" else "discard",
        eps_ramp=e.attack.eps_ramp,
        soft_labels=has_soft_labels(e),
        awp=methods.Awp(e.awp.gamma, e.awp.start) if e.awp.gamma else None,
        igdm=e.igdm if e.igdm.weight else None,
    )
    return methods.create(e.method.name, parts, **e.method.options)


def has_soft_labels(experiment: Experiment) -> bool:
    """Whether every batch of the student's has soft labels."""
    return experiment.label_smoothing > 0 or experiment.data.mixes


def comparable(
    experiment: Experiment, net: dict[str, Any], splits: Splits, **extra: Any
) -> dict[str, Any]:
    """What two runs must agree on for one to continue the other.

    Where the data lies may change, what it is may not: a checksum of the training split stands for it.
    """
    split = describe_split(splits.train)
    return own_settings(experiment) | {"net": net, "train_split": split} | extra


def own_settings(experiment: Experiment) -> dict[str, Any]:
    """The part of `comparable` that the configuration alone tells."""
    raw = parse.without(parse.to_dict(experiment), NOTHING, EVALUATION, CONTENT)
    for path in _LATER:
        *groups, name = path.split(".")
        owner, kept = experiment, raw
        for group in groups:
            owner, kept = getattr(owner, group), kept[group]
        if getattr(owner, name) == type(owner).model_fields[name].default:
            del kept[name]
    if not experiment.igdm.weight:
        del raw["igdm"]
    return raw


def describe_split(dataset: ArrayDataset) -> str:
    """Which images these are: their number and a checksum."""
    return f"{len(dataset)} images, {dataset.checksum():08x}"


def extension_problem(experiment: Experiment, epochs: int) -> str:
    """Why a finished run of `epochs` epochs is not the beginning of this one; "" if it is."""
    e = experiment
    optims = {"student_optim": e.student_optim}
    if "robust" in methods.TRAINED_TEACHERS[e.method.name]:
        optims["robust_teacher_optim"] = e.robust_teacher_optim
    passed = jnp.arange(1, epochs + 1)
    for name, config in optims.items():
        before, now = (optim.learning_rate(config, n, passed) for n in (epochs, e.epochs))
        if different := np.flatnonzero(np.broadcast_to(before != now, passed.shape)).tolist():
            return (
                f"config.{name}.schedule={config.schedule!r} depends on the length of the run: from epoch "
                f"{different[0] + 1} on the rate would have been another"
            )
    if reason := methods.length_matters(e.method.name, e.method.options):
        return f"config.method.{reason}"
    if e.igdm.weight and not e.igdm.ramp_epochs:
        return "config.igdm.ramp_epochs=0: the weight of gradient matching grows over the length of the run"
    return ""


def teacher_experiment(experiment: Experiment, role: str, teacher: TeacherConfig) -> Experiment:
    """A teacher's recipe as an experiment of its own, whose "student" is the teacher.

    It has the plain augmentation and the data set's own images: what lifts the student must not change its
    teacher, or two students could not be compared.
    """
    recipe, d = teacher.recipe, experiment.data
    unused = {name: DataConfig.model_fields[name].default for name in _OF_STUDENT}
    options = {"beta": recipe.beta} if recipe.method == "trades" else {}
    return experiment.replace(
        name=f"{role}_teacher",
        seed=recipe.seed,
        workdir="",
        start_from="",
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        accumulate=1,
        ema_decay=0.0,
        swa_start=0,
        average_bn="averaged",
        label_smoothing=0.0,
        awp=AwpConfig(),
        igdm=methods.Igdm(),
        data=d.replace(augment=augment.plain(d.augment, d.mirrors), **unused),
        student=teacher.net,
        student_optim=recipe.optim,
        # Unused; fixed, so that the identity is too.
        robust_teacher_optim=optim.OptimConfig.model_validate({"start": 150}),
        attack=recipe.attack,
        method=MethodConfig(name=recipe.method, options=options),
        teachers=TeachersConfig(cache=experiment.teachers.cache),
        eval=experiment.eval.replace(every=recipe.eval_every, dense_from=0),
    )
