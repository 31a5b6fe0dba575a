"""What is built from an experiment: data, devices, attacks, networks, the method."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from ard_jax import attacks, data, methods, optim
from ard_jax.attacks import threat_model
from ard_jax.config.parse import to_dict
from ard_jax.config.schema import AttackConfig, EvalConfig, Experiment, NetConfig
from ard_jax.data import Splits
from ard_jax.data.base import ArrayDataset
from ard_jax.methods import TEACHERS, Parts
from ard_jax.runtime import sharding

# Parts of a configuration that do not change the trained parameters or the choice among them.
_IRRELEVANT = {
    "eval": (
        "attacks", "batch_size", "max_examples", "eps_sweep", "transfer", "grid", "teachers",
        "autoattack_examples", "autoattack_nets", "save_images",
    ),
    "data": ("dir", "loader", "image_size", "workers", "prefetch", "on_device"),
}  # fmt: skip
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
      attacks: name -> AttackSpec, made on every network.
      suites: names of AutoAttack and its like, of `attacks.SUITES`.
      transfer: name -> AttackSpec whose images are transferred from the teachers.
      select: the AttackSpec that chooses the best checkpoint.
      sweep: radius -> AttackSpec, None at radius 0.
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
      ValueError: a name that is neither an attack's nor a suite's.
    """
    e = experiment
    plain, suites = split_names(e.eval.attacks if names is None else names)
    radii = [float(factor * e.eps) for factor in e.eval.eps_sweep]
    return EvaluationSettings(
        name=e.name,
        seed=e.seed,
        eps=e.eps,
        norm=e.norm,
        select_on=e.select_on,
        config=to_dict(e),
        eval=e.eval,
        attacks={name: evaluation_attack(name, e) for name in plain},
        suites=tuple(suites),
        transfer={name: evaluation_attack(name, e) for name in _TRANSFER},
        select=evaluation_attack(e.eval.select_attack, e),
        sweep={eps: evaluation_attack(_SWEEP, e, eps) if eps > 0 else None for eps in radii},
    )


def split_names(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(names of `attacks.make`, names of `attacks.SUITES`), each in the order given.

    Raises:
      ValueError: a name that is neither.
    """
    names = list(names)
    for name in names:
        threat_model.check_choice("attack", name, [*attacks.names(), *attacks.SUITES])
    return [n for n in names if n not in attacks.SUITES], [n for n in names if n in attacks.SUITES]


def load_data(experiment: Experiment) -> Splits:
    """The experiment's data, validated.

    Raises:
      DataError: see `data.load`.
    """
    d = experiment.data
    holdout = d.holdout if d.holdout < 1 else int(d.holdout)
    reading = data.Reading(d.loader, d.image_size, d.workers, d.prefetch)
    return data.load(d.name, d.dir or None, holdout=holdout, seed=d.split_seed, reading=reading)


def make_mesh(experiment: Experiment, splits: Splits) -> Any:
    """The experiment's devices: `sharding.make_mesh` for all batches that it trains on."""
    teachers = (getattr(experiment.teachers, role) for role in TEACHERS[experiment.method.name])
    recipes = [t.recipe.batch_size for t in teachers if t is not None and not t.checkpoint]
    sizes = {experiment.batch_size, *recipes}
    if experiment.data.last_batch == "keep":
        sizes |= {len(splits.train) % size for size in sizes}
    return sharding.make_mesh(experiment.run.devices, sizes)


def describe_network(net: NetConfig, precision: str, dataset: ArrayDataset) -> dict[str, Any]:
    """All that is needed to build the network again; saved with every checkpoint."""
    return {
        "model": net.model,
        "kwargs": dict(net.kwargs),
        "init": net.init or "torch",
        "normalization": net.normalization or None,
        "precision": precision,
        "num_classes": dataset.num_classes,
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
    }


def training_attack(attack: AttackConfig, experiment: Experiment) -> Any:
    """The AttackSpec of an inner attack at the experiment's radius."""
    overrides: dict[str, Any] = dict(attack.options)
    if attack.step_size:
        overrides["step_size"] = attack.step_size
    if attack.steps:
        overrides["steps"] = attack.steps
    if attack.init:
        overrides["start"] = attack.init
    return attacks.make(attack.name, eps=experiment.eps, norm=experiment.norm, **overrides)


def evaluation_attack(name: str, experiment: Experiment, eps: float | None = None) -> Any:
    """The AttackSpec of an evaluation attack, at the experiment's radius or another."""
    eps = experiment.eps if eps is None else eps
    size = experiment.eval.step_sizes.get(name)
    overrides = {"step_size": size * eps / experiment.eps} if size else {}
    return attacks.make(name, eps=eps, norm=experiment.norm, **overrides)


def make_method(
    experiment: Experiment, student: Any, teachers: dict[str, Any], steps_per_epoch: int
) -> methods.Method:
    """The experiment's method on these networks."""
    e = experiment
    parts = Parts(
        student=student,
        student_optim=optim.make(e.student_optim, e.epochs),
        attack=training_attack(e.attack, e),
        teachers=teachers,
        teacher_optims={"robust": optim.make(e.robust_teacher_optim, e.epochs)},
        epochs=e.epochs,
        steps_per_epoch=steps_per_epoch,
        attack_bn=e.attack.bn,
        attack_bn_stats=e.attack.bn_stats,
        awp=methods.Awp(e.awp.gamma, e.awp.start) if e.awp.gamma else None,
    )
    return methods.create(e.method.name, parts, **e.method.options)


def comparable(
    experiment: Experiment, net: dict[str, Any], splits: Splits, **extra: Any
) -> dict[str, Any]:
    """What two runs must agree on for one to continue the other.

    Where the data lies may change, what it is may not: a checksum of the training split stands for it.
    """
    raw = to_dict(experiment)
    for name in ("run", "workdir", "teachers"):
        del raw[name]
    if raw["bn_groups"] == 1:  # as for checkpoints from before there were groups
        del raw["bn_groups"]
    for group, names in _IRRELEVANT.items():
        for name in names:
            del raw[group][name]
    train = splits.train
    return raw | {"net": net, "train_split": f"{len(train)} images, {train.checksum():08x}"} | extra
