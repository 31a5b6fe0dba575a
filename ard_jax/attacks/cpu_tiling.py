"""A large batch attacked a few images at a time, where that is faster: small networks on CPU."""

from collections.abc import Callable
from typing import Any

import jax

from ard_jax.attacks.attack import Attack

# Measured (docs/performance.md): the activations of so many images of a small network stay in the cache of
# a core. Networks above the limit are bound by arithmetic and lose a little.
_IMAGES, _MAX_PARAMETERS = 16, 4_000_000


def run(
    spec: Attack,
    predict: Any,
    images: jax.Array,
    labels: jax.Array | None,
    key: jax.Array | None = None,
    *,
    params: Any,
    devices: int,
    teacher_logits: jax.Array | None = None,
    start: jax.Array | None = None,
    state: Any = None,
    **options: Any,
) -> Any:
    """`Attack.run` with the same random numbers, on CPU over tiles of the batch where that pays.

    In eval mode an image's result does not depend on its batch, so tiles change nothing but rounding. What
    does depend on it (a state, the Dice of a whole batch, restarts side by side) is run as it is, and so is
    a network that needs its attack unrolled (`loop.resolve_unroll`): tiles are a loop.

    Args:
      spec: the attack.
      predict: as of `Attack.run`, like what is not named here.
      images: [B,H,W,C].
      labels: [B].
      key: typed PRNG key.
      params: of the network in `predict`; only their number is looked at. None where `predict` looks at the
        whole batch (BatchNorm in train mode): no tiles.
      devices: over which the batch is split along its first dimension; each works through its own part.
      teacher_logits: [B,K] or None.
      start: [B,H,W,C] or None.
      state: see `Attack.run`.
      **options: of `Attack.run`.
    """
    tiled = params is not None and state is None and options.get("unroll") == 1
    tiles = number(spec, len(images), params, devices) if tiled else 1
    if tiles == 1:
        given = {} if start is None else {"start": start}
        return spec.run(
            predict, images, labels, key, teacher_logits=teacher_logits, state=state, **given, **options
        )  # fmt: skip
    if start is None:
        start = spec.own_start(images, key, options.get("eps"))
    rows = {"images": images, "labels": labels, "teacher_logits": teacher_logits, "start": start}
    rows = {name: v for name, v in rows.items() if v is not None}

    def one(tile: dict[str, Any]):
        return spec.run(predict, tile.pop("images"), tile.pop("labels", None), **tile, **options)

    return over(one, rows, tiles, devices)


def over(
    one: Callable[[dict[str, jax.Array]], jax.Array],
    rows: dict[str, jax.Array],
    tiles: int,
    devices: int,
) -> jax.Array:
    """one(rows) [B,...], by so many tiles of the rows one after the other.

    Args:
      one: arrays of b rows -> images of b rows.
      rows: arrays [B,...].
      tiles: that each device works through; 1 calls `one` as it is.
      devices: over which the batch is split along its first dimension.
    """
    if tiles == 1:
        return one(rows)

    def cut(v: jax.Array):
        """[B,...] to [tiles, devices, B / tiles / devices,...]: nothing changes its device."""
        return v.reshape(devices, tiles, -1, *v.shape[1:]).swapaxes(0, 1)

    def flat(tile: dict[str, Any]):
        found = one({name: v.reshape(-1, *v.shape[2:]) for name, v in tile.items()})
        return found.reshape(devices, -1, *found.shape[1:])

    found = jax.lax.map(flat, jax.tree.map(cut, rows))
    return found.swapaxes(0, 1).reshape(rows["images"].shape)


def number(spec: Attack, batch: int, params: Any, devices: int) -> int:
    """How many tiles each device works through; 1 where there is nothing to gain."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if (
        jax.default_backend() != "cpu"
        or not spec.tileable
        or size > _MAX_PARAMETERS
        or batch % devices
    ):
        return 1
    mine = batch // devices
    # The fewest tiles of not more images than that; tiles of a few images each are no gain.
    tiles = next(n for n in range(-(-mine // _IMAGES), mine + 1) if mine % n == 0)
    return tiles if mine // tiles >= _IMAGES // 2 else 1
