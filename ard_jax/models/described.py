"""Networks by their description: the plain record that is saved with every checkpoint."""

from collections.abc import Collection, Mapping
from typing import Any

from ard_jax import models
from ard_jax.models.bundle import ModelBundle

_REMOVED = ("cnn_a", "resnet4b")  # checkpoints of 0.1.0 may hold them
_FIELDS = {"model", "num_classes", "image_shape", "init", "precision", "normalization", "kwargs"}


def from_description(
    description: dict[str, Any], bn_groups: int = 1, remat: bool = False
) -> ModelBundle:
    """The network of a description; `bn_groups` and `remat`, of `models.create`, matter where it is trained.

    Raises:
      ValueError: not a description, unknown name, or options or image size that it cannot take.
    """
    check_fields(description, _FIELDS)
    if not isinstance(description["kwargs"], Mapping):
        raise ValueError(f"kwargs={description['kwargs']!r}: must be option -> value")
    if description["model"] in _REMOVED:
        raise ValueError(
            f"model {description['model']!r} is no longer part of ard_jax; attack it as a JAX function of "
            "your own (attacks.autoattack), or take another network (--mode=import --source=list)"
        )
    return models.create(
        description["model"],
        description["num_classes"],
        description["image_shape"],
        init=description["init"],
        dtype=description["precision"],
        normalization=description["normalization"],
        bn_groups=bn_groups,
        remat=remat,
        **description["kwargs"],
    )


def check_fields(description: Any, fields: Collection[str]) -> None:
    """Raises ValueError unless a description has these fields."""
    given = set(description) if isinstance(description, Mapping) else set()
    if missing := sorted(set(fields) - given):
        raise ValueError(
            f"{type(description).__name__} is no description of a network, which a checkpoint has: it lacks "
            f"{', '.join(missing)}"
        )


def in_float32(description: dict[str, Any]) -> ModelBundle:
    """The network of a description as it is evaluated, whatever precision it trains in.

    bfloat16 rounds the gradients that attacks follow, so that a network would seem more robust than it is.
    """
    known = isinstance(description, Mapping)
    return from_description({**description, "precision": "float32"} if known else description)
