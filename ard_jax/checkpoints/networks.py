"""Networks out of checkpoints."""

from typing import Any

import jax

from ard_jax.checkpoints import manager
from ard_jax.models.bundle import ModelBundle
from ard_jax.models.described import from_description


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
    path: str, item: str = "student", bn_groups: int = 1, remat: bool = False
) -> tuple[ModelBundle, Any, dict[str, Any], str]:
    """(network, variables, its checkpoint's meta, step folder) of a checkpoint of ours.

    Args:
      path: folder of a run, of its best/ or last/, or of one step.
      item: "student" or "ema" (its average, exponential or SWA).
      bn_groups: of `models.create`, where it is trained.
      remat: likewise.

    Raises:
      CheckpointError: missing or damaged.
    """
    description, meta, folder = describe_checkpoint(path)
    bundle = from_description(description, bn_groups, remat)
    shapes = jax.eval_shape(bundle.init, jax.random.key(0))
    return bundle, manager.load_variables(folder, item, shapes), meta, str(folder)
