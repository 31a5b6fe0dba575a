"""Networks, attacks and scores as a configuration names them."""

from typing import Any

import jax

from ard_jax import attacks, models
from ard_jax.checkpoints import manager
from ard_jax.config.schema import AttackConfig, Experiment, NetConfig
from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation.evaluator import Evaluator
from ard_jax.models import ModelBundle

_REMOVED = ("cnn_a", "resnet4b")  # checkpoints of 0.1.0 may hold them


def describe(net: NetConfig, precision: str, dataset: ArrayDataset) -> dict[str, Any]:
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


def create(description: dict[str, Any], bn_groups: int = 1) -> ModelBundle:
    """The network of a description; `bn_groups`, of `models.create`, matters where it is trained.

    Raises:
      ValueError: unknown name, or options or image size that it cannot take.
    """
    if description["model"] in _REMOVED:
        raise ValueError(
            f"model {description['model']!r} is no longer part of ard_jax; attack it as a JAX function of "
            "your own (attacks.autoattack), or take another network (--mode=import --source=list)"
        )
    return models.create(
        description["model"],
        description["num_classes"],
        tuple(description["image_shape"]),
        init=description["init"],
        dtype=description["precision"],
        normalization=description["normalization"],
        bn_groups=bn_groups,
        **description["kwargs"],
    )


def describe_checkpoint(path: str) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """(description of the network, meta, step folder) of a checkpoint of ours; reads no arrays.

    Raises:
      CheckpointError: missing or damaged.
    """
    folder = manager.find(path)
    meta = manager.read_meta(folder)
    try:
        return meta["config"]["net"], meta, folder
    except (KeyError, TypeError) as error:
        raise manager.CheckpointError(f"{folder} is not a checkpoint of ard_jax") from error


def load(
    path: str, item: str = "student", bn_groups: int = 1
) -> tuple[ModelBundle, Any, dict[str, Any], str]:
    """(network, variables, its checkpoint's meta, step folder) of a checkpoint of ours.

    Args:
      path: folder of a run, of its best/ or last/, or of one step.
      item: "student" or "ema" (its average, exponential or SWA).
      bn_groups: of `models.create`, where it is trained.

    Raises:
      CheckpointError: missing or damaged.
    """
    description, meta, folder = describe_checkpoint(path)
    bundle = create(description, bn_groups)
    shapes = jax.eval_shape(bundle.init, jax.random.key(0))
    return bundle, manager.load_variables(folder, item, shapes), meta, str(folder)


def in_float32(description: dict[str, Any]) -> ModelBundle:
    """The network of a description as it is evaluated, whatever precision it trains in.

    bfloat16 rounds the gradients that attacks follow, so that a network would seem more robust than it is.
    """
    return create(description | {"precision": "float32"})


def evaluator(name: str, bundle: ModelBundle, experiment: Experiment, mesh: Any) -> Evaluator:
    """The network's evaluator under the experiment's evaluation settings; see `in_float32`."""
    return Evaluator(
        name,
        lambda variables, images: bundle.apply(variables, images, False)[0],
        mesh=mesh,
        batch_size=experiment.eval.batch_size,
        seed=experiment.eval.seed,
        unroll=1,  # our convolutions are fast inside loops on every backend
    )


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
