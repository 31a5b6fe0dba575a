"""Square Attack's moves: the first candidate and every next one, in Linf and L2."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import rng
from ard_jax.attacks import threat_model
from ard_jax.attacks.auto_attack import square_windows
from ard_jax.attacks.threat_model import ThreatModel
from ard_jax.losses import checks


class SquareDraws(NamedTuple):
    """Recorded random numbers of Linf with shared windows, in place of those from the key.

    Attributes:
      stripes: [B,1,W,C], +1 or -1, of the first candidate.
      row: [Q] int, the window's top row at query 0..Q-1.
      col: [Q] int, its left column.
      sign: [Q,C], +1 or -1.
    """

    stripes: jax.Array
    row: jax.Array
    col: jax.Array
    sign: jax.Array


@dataclasses.dataclass(frozen=True)
class SquareOptions:
    """How Square searches, and what it draws.

    Attributes:
      p_init: share of the pixels that the first windows cover.
      shared: one window (and in Linf one sign per channel) a query for the whole batch, as in
        AutoAttack; False draws them per image.
      rescale: stretch the schedule of window sizes to the budget, as torchattacks and the original
        attack do, also for papers' 100 queries; AutoAttack does not.
      image_keys: [B] typed keys of what is drawn per image, so that an image's draws do not depend
        on its row. None makes them of the key and the row.
      draws: recorded random numbers, for replays; Linf only.

    Raises:
      ValueError: on construction, for a bad value.
    """

    p_init: float = 0.8
    shared: bool = True
    rescale: bool = False
    image_keys: jax.Array | Any = None
    draws: SquareDraws | None = None

    def __post_init__(self):
        """Checks the number."""
        checks.number(self.p_init, "p_init", 0.0, 1.0)
        checks.flag(self.shared, "shared")
        checks.flag(self.rescale, "rescale")


def _signs(keys: jax.Array, shape: tuple[int, ...]):
    """One array of +1 and -1 per key, [B,*shape].

    Folded, since the same keys give the windows: signs out of the same bits would follow the position.
    """

    def draw(key: jax.Array):
        return jax.random.rademacher(jax.random.fold_in(key, 1), shape, jnp.float32)

    return jax.vmap(draw)(keys)


def _uniforms(keys: jax.Array, count: int):
    return jax.vmap(lambda k: jax.random.uniform(k, (count,)))(keys)


def _offset(uniform: jax.Array, extent: int, side: jax.Array):
    """A window's first row or column; as in the original the last possible one is never drawn."""
    return jnp.floor(uniform * (extent - side)).astype(jnp.int32)


def _channel_norm(x: jax.Array):
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True))


def _image_norm(x: jax.Array):
    return threat_model.per_image(threat_model.l2_norm(x), x)


def _scaled_to(delta: jax.Array, eps: float | jax.Array):
    """Every image's perturbation stretched to length eps."""
    return eps * delta / (_image_norm(delta) + 1e-12)


def start_noise(images: jax.Array, key: jax.Array, threat: ThreatModel, options: SquareOptions):
    """The first perturbation: vertical stripes (Linf), or tiles of bumps (L2)."""
    _, height, width, channels = images.shape
    keys, draws = jax.vmap(jax.random.fold_in, (0, None))(options.image_keys, 0), options.draws
    if threat.norm == "linf":
        stripes = _signs(keys, (1, width, channels)) if draws is None else draws.stripes
        return threat.eps * jnp.asarray(stripes, images.dtype)
    side, corners = square_windows.tiles(height, width)
    tile = square_windows.bump(side)
    index, pattern = np.zeros((height, width), np.int32), np.zeros((2, height, width), np.float32)
    for i, (row, col) in enumerate(corners):
        window = (slice(row, row + side), slice(col, col + side))
        index[window], pattern[0][window], pattern[1][window] = i, tile, tile.T
    turned = jax.random.bernoulli(rng.stream(key, "tiles"), 0.5, (len(corners),))[index]
    pattern = jnp.where(turned, pattern[1], pattern[0])[None, :, :, None]
    return _scaled_to(pattern * _signs(keys, (len(corners), channels))[:, index], threat.eps)


def _propose_linf(
    state: Any,
    images: jax.Array,
    uniforms: jax.Array,
    sign: jax.Array,
    side: jax.Array,
    threat: ThreatModel,
):
    """A window of the perturbation set to +-eps per channel (by adding 2 eps and cutting)."""
    _, height, width, _ = images.shape
    window = square_windows.mask(
        _offset(uniforms[:, 0], height, side), _offset(uniforms[:, 1], width, side),
        side, height, width,
    )  # fmt: skip
    moved = state.images + 2.0 * threat.eps * sign[:, None, None, :] * window
    return threat.cut(moved, images)


def _propose_l2(
    state: Any,
    images: jax.Array,
    uniforms: jax.Array,
    sign: jax.Array,
    side: jax.Array,
    tile: jax.Array,
    eps: float | jax.Array,
):
    """Mass moved from a second window into a bump added to the first, then length eps again."""
    _, height, width, channels = images.shape
    rows = [_offset(uniforms[:, j], height, side) for j in (0, 2)]
    cols = [_offset(uniforms[:, j], width, side) for j in (1, 3)]
    into, out_of = (
        square_windows.mask(r, c, side, height, width) for r, c in zip(rows, cols, strict=True)
    )
    tile = jnp.where((uniforms[:, 4] > 0.5)[:, None, None], jnp.swapaxes(tile, 0, 1), tile)
    hill = square_windows.placed(tile, rows[0], cols[0], height, width)
    delta = state.images - images
    mass = jnp.square(_image_norm(delta * jnp.maximum(into, out_of)))
    spare = jnp.maximum(eps**2 - jnp.square(_image_norm(delta)), 0.0) / channels
    old = delta * into / (1e-12 + _channel_norm(delta * into))
    new = (hill * sign[:, None, None, :] + old) * into
    new = new / (1e-12 + _channel_norm(new)) * jnp.sqrt(spare + mass)
    delta = jnp.where(into > 0, new, jnp.where(out_of > 0, 0.0, delta))
    return jnp.clip(images + _scaled_to(delta, eps), 0.0, 1.0)


def proposer(
    images: jax.Array,
    key: jax.Array,
    threat: ThreatModel,
    options: SquareOptions,
    budget: int | jax.Array,
):
    """(state, query index) -> the next candidates."""
    _, height, width, channels = images.shape
    sides = square_windows.sides(options.p_init, height, width, threat.norm)
    tiles = jnp.asarray(square_windows.bumps(sides)) if threat.norm == "l2" else None
    keys, draws, sides = options.image_keys, options.draws, jnp.asarray(sides)

    def propose(state: Any, i: jax.Array):
        level = square_windows.level(i, budget if options.rescale else None)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, i + 1)  # 0 made the first candidate
        of_window = rng.stream(key, "query", i)[None] if options.shared else own
        uniforms, side = _uniforms(of_window, 5), sides[level]
        if tiles is not None:
            sign = _signs(own, (channels,))
            return _propose_l2(state, images, uniforms, sign, side, tiles[level], threat.eps)
        if draws is None:
            sign = _signs(of_window, (channels,))
            return _propose_linf(state, images, uniforms, sign, side, threat)
        window = square_windows.mask(
            jnp.asarray(draws.row)[i][None], jnp.asarray(draws.col)[i][None], side, height, width
        )
        sign = jnp.asarray(draws.sign, images.dtype)[i]
        return threat.cut(state.images + 2.0 * threat.eps * sign * window, images)

    return propose
