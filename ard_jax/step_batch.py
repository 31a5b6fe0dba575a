"""What the train step does around its method: augmentation, fixed views, attacks that go on where they ended.

Warm start (ATTA: Zheng et al. 2020, "Efficient Adversarial Training with Transferable Adversarial Examples",
CVPR): the perturbation of each training image is kept, and the next attack on it begins there, so that few
steps per epoch add up to a strong attack. It is kept in the frame of the padded image before the crop and the
mirroring, so that each pixel gets its own perturbation back, wherever the image shows it.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ard_jax import rng
from ard_jax.data import augment
from ard_jax.methods import given
from ard_jax.state import RunState

# int8: perturbation / eps * 127, and -128 all over for an image that was not attacked yet.
_LEVELS, _UNKNOWN = 127, -128


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Size and scale of what is kept.

    Attributes:
      examples: N, images of the training split.
      shape: (H,W,C).
      pad: zeros on each side of an image before it is cropped, pixels; 0 where it is not.
      eps: Linf radius of the attack, pixel units.
      reset: epochs after which every attack draws its own start again; 0 for never.
    """

    examples: int
    shape: tuple[int, int, int]
    pad: int
    eps: float
    reset: int

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """[N, H+2 pad, W+2 pad, C], of int8."""
        height, width, channels = self.shape
        return (self.examples, height + 2 * self.pad, width + 2 * self.pad, channels)

    @property
    def bytes(self) -> int:
        """Memory of it, on every device."""
        return math.prod(self.kept_shape)

    def begin(self) -> jax.Array:
        """`RunState.perturbations` before the first step."""
        return jnp.full(self.kept_shape, _UNKNOWN, jnp.int8)


def device_memory() -> int:
    """Bytes that a device of this process has; 0 where nobody says.

    Devices that are part of the host share its memory.
    """
    devices = jax.local_devices()
    if limit := (devices[0].memory_stats() or {}).get("bytes_limit", 0):
        return limit
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    except (ValueError, OSError, AttributeError):  # not on every system
        return 0


def prepare(
    config: Any, state: RunState, batch: dict[str, Any], root: jax.Array
) -> tuple[dict[str, Any], Callable[[RunState], RunState]]:
    """The batch as the method gets it, and what is to be done with the state after the method's step.

    Args:
      config: `steps.StepConfig`.
      state: before the step.
      batch: "image" uint8 [B,H,W,C]; with views or a warm start "index" int32 [B], all different; with
        views the columns `given.logits_column` [B,V,K].
      root: key of the run.
    """
    key, kind = rng.stream(root, "augment", state.step), config.augment
    images, pad = batch["image"], augment.padding(kind, config.pad)
    if not config.views and config.warm_start is None:
        images = augment.augment(key, images, kind, pad=config.pad)
        return batch | {"image": images}, lambda new: new
    epoch = state.step // config.steps_per_epoch + 1
    if config.views:
        view = (epoch - 1) % config.views
        moves, batch = (
            view_moves(root, batch["index"], view, kind, pad),
            _at_view(batch, state, view),
        )
    else:
        moves = augment.draw(jax.random.split(key, len(images)), kind, pad)
    batch = batch | {"image": augment.to_float(augment.move(images, moves, pad))}
    if config.warm_start is None:
        return batch, lambda new: new
    return _warm(config.warm_start, state, batch, moves, epoch)


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


def _warm(warm: WarmStart, state: RunState, batch: dict[str, Any], moves: Any, epoch: jax.Array):
    index, images = batch["index"], batch["image"]
    frames = state.perturbations.at[index].get(mode="promise_in_bounds")
    known = frames[:, 0, 0, 0] != _UNKNOWN
    if warm.reset:
        known &= (epoch - 1) % warm.reset != 0
    frames = jnp.where(known[:, None, None, None], frames, 0)
    shown = augment.window(frames, moves, images.shape[1:]).astype(jnp.float32)
    kept = given.KeptStart(shown * (warm.eps / _LEVELS), known, [])

    def keep(new: RunState) -> RunState:
        if len(kept.ended) != 1:
            raise ValueError(
                f"the method attacked the student {len(kept.ended)} times in a step; a warm start of the "
                "attack (config.attack.warm_start) needs one attack"
            )
        found = jnp.round((kept.ended[0] - images) * (_LEVELS / warm.eps))
        found = jnp.clip(found, -_LEVELS, _LEVELS).astype(jnp.int8)
        after = augment.put_window(frames, moves, found)
        at = state.perturbations.at[index]
        return new.replace(
            perturbations=at.set(after, mode="promise_in_bounds", unique_indices=True)
        )

    return batch | {"kept_start": kept}, keep
