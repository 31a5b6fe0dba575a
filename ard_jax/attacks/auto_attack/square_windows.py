"""Square Attack's schedule, window sizes and L2 bumps: small tables, made with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

# p halves after these queries of a budget of 10,000 (Andriushchenko et al. 2020).
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def level(query: jax.Array, budget: jax.Array | int | None = None) -> jax.Array:
    """How often p has been halved at a query (counted from 0): 0..9, int32.

    Args:
      query: int, possibly traced.
      budget: None for the raw schedule, as in AutoAttack. A number of queries stretches or shrinks
        the schedule to it, as the original attack and torchattacks do: query becomes
        floor(query / budget * 10000).
    """
    query = jnp.asarray(query, jnp.int32)
    if budget is not None:
        # floor(query * 10000 / budget) in two steps, because the product may not fit 32 bits.
        whole, rest = jnp.divmod(query * 100, budget)
        query = whole * 100 + (rest * 100) // budget
    return jnp.sum(query > jnp.asarray(_HALVED_AFTER)).astype(jnp.int32)


def sides(p_init: float, height: int, width: int, norm: str) -> np.ndarray:
    """Window side of every level, [10] int32: round(sqrt(p H W)), at least 1 and within the image.

    In L2 at least 3 and odd (where the image is large enough).
    """
    table = []
    for halvings in range(len(_HALVED_AFTER) + 1):
        side = round(float(np.sqrt(p_init / 2**halvings * height * width)))
        largest = min(height, width)
        if norm == "l2":
            side = max(side, 3)
            side += side % 2 == 0
            largest -= largest % 2 == 0 and largest > 1
        table.append(min(max(side, 1), largest))
    return np.asarray(table, np.int32)


def _hill(height: int, width: int) -> np.ndarray:
    """Nested rectangles around the middle, the k-th of weight 1/k^2; Euclidean norm 1."""
    row = np.abs(np.arange(height) - height // 2)[:, None]
    col = np.abs(np.arange(width) - width // 2)[None, :]
    weights = 1.0 / np.arange(1, max(height // 2, width // 2) + 2) ** 2
    tails = np.cumsum(weights[::-1])[::-1]
    hill = tails[np.maximum(row, col)]
    return hill / np.linalg.norm(hill)


def bump(side: int) -> np.ndarray:
    """L2's window: a hill above its negative, [side,side] float32 of Euclidean norm 1."""
    upper = side // 2
    both = np.concatenate(
        [_hill(upper, side) if upper else np.zeros((0, side)), -_hill(side - upper, side)]
    )
    return (both / np.linalg.norm(both)).astype(np.float32)


def bumps(table: np.ndarray) -> np.ndarray:
    """`bump` of every side in [10] `table`, zero-padded: [10,S,S] float32, S the largest side."""
    largest = int(table.max())
    padded = np.zeros((len(table), largest, largest), np.float32)
    for i, side in enumerate(table):
        padded[i, :side, :side] = bump(int(side))
    return padded


def tiles(height: int, width: int) -> tuple[int, list[tuple[int, int]]]:
    """L2's start: (side, top left corners) of the tiles, about five a side, that fit the image."""
    side = max(min(height, width) // 5, 1)
    first = max((height - 5 * side) // 2, 0)
    rows = range(first, height - side + 1, side)
    cols = range(first, width - side + 1, side)
    return side, [(row, col) for row in rows for col in cols]


def mask(row: jax.Array, col: jax.Array, side: jax.Array, height: int, width: int) -> jax.Array:
    """1.0 inside windows at [B] positions (B may be 1), of a common side: [B,H,W,1] float32."""
    r, c = jnp.arange(height)[None, :], jnp.arange(width)[None, :]
    rows = (r >= row[:, None]) & (r < row[:, None] + side)
    cols = (c >= col[:, None]) & (c < col[:, None] + side)
    return (rows[:, :, None] & cols[:, None, :])[..., None].astype(jnp.float32)


def placed(tile: jax.Array, row: jax.Array, col: jax.Array, height: int, width: int) -> jax.Array:
    """A zero-padded [S,S] or [B,S,S] tile put at [B] positions of an empty image: [B,H,W,1]."""
    largest = tile.shape[-1]
    r, c = jnp.arange(height)[None, :] - row[:, None], jnp.arange(width)[None, :] - col[:, None]
    inside = ((r >= 0) & (r < largest))[:, :, None] & ((c >= 0) & (c < largest))[:, None, :]
    tile = jnp.broadcast_to(tile, (row.shape[0], largest, largest))
    clipped = [jnp.clip(a, 0, largest - 1) for a in (r, c)]
    picked = jax.vmap(lambda t, r, c: t[r][:, c])(tile, *clipped)
    return jnp.where(inside, picked, 0.0)[..., None]
