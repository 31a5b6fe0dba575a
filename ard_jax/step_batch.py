"""What the train step does around its method: augmentation, fixed views."""

from typing import Any

import jax

from ard_jax import rng
from ard_jax.data import augment
from ard_jax.methods import given
from ard_jax.state import RunState


def prepare(config: Any, state: RunState, batch: dict[str, Any], root: jax.Array) -> dict[str, Any]:
    """The batch as the method gets it.

    Args:
      config: `steps.StepConfig`.
      state: before the step.
      batch: "image" uint8 [B,H,W,C]; with views "index" int32 [B] and the columns
        `given.logits_column` [B,V,K].
      root: key of the run.
    """
    key, kind = rng.stream(root, "augment", state.step), config.augment
    images, pad = batch["image"], augment.padding(kind, config.pad)
    if not config.views:
        return batch | {"image": augment.augment(key, images, kind, pad=config.pad)}
    view = state.step // config.steps_per_epoch % config.views
    moves = view_moves(root, batch["index"], view, kind, pad)
    images = augment.to_float(augment.move(images, moves, pad))
    return _at_view(batch, state, view) | {"image": images}


def view_moves(
    root: jax.Array, index: jax.Array, view: jax.Array, kind: str, pad: int
) -> augment.Moves:
    """The moves of one of the fixed views of each image, a function of (seed, index, view) only.

    Args:
      root: key of the run.
      index: int32 [B], positions in the training split.
      view: int32 scalar, from 0.
      kind: of augmentation, see `augment.augment`.
      pad: its padding, pixels.
    """
    key = rng.stream(root, "view", view)
    return augment.draw(jax.vmap(lambda i: jax.random.fold_in(key, i))(index), kind, pad)


def _at_view(batch: dict[str, Any], state: RunState, view: jax.Array) -> dict[str, Any]:
    """With the teachers' logits at this view [B,K] in place of those at all of them [B,V,K]."""
    names = [name for name in map(given.logits_column, state.teachers) if name in batch]
    at = {n: jax.lax.dynamic_index_in_dim(batch[n], view, 1, keepdims=False) for n in names}
    return batch | at
