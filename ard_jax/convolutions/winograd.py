"""3x3 convolutions of stride 1 in 16 products of matrices for each 2x2 outputs, where XLA:CPU is faster so.

Winograd's F(2x2, 3x3) (Lavin and Gray 2015, arXiv 1509.09308): tiles of 4x4 inputs that overlap by two, and
the kernel, are transformed by sums; tiles and kernel are multiplied, for each of the 16 positions a product
[tiles, C] @ [C, F]; sums of these are the output. A direct convolution multiplies 36 times where this does
16 times. XLA:CPU's convolutions run at the rate of products of matrices: only fewer of them are faster.

Results differ from the direct form by rounding, 1e-6 of the largest value. `_MEASURED` chooses; it can cost
time and not correctness.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Strides = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]
# "auto" or "off", the value of config.run.winograd. It belongs to what jit tells programs apart by.
use = jax.make_user_context("auto")
# Channels, the fewer of in and out: tiles of each device, from which on it was faster than XLA's convolution
# (docs/performance.md; with 16 and 32 channels it never was by much).
_MEASURED = ((512, 32), (256, 64), (128, 256), (64, 512))
# Of the transformed tiles of the images in one round of the loop, on each device: they stay in the cache.
_TILES_BYTES = 4 << 20


def pays(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads, parts: int) -> bool:
    """Whether `conv` can compute this convolution and is expected to be faster; arguments as there."""
    out = _out_size(x, pads)
    if (
        use.value != "auto"
        or kernel.shape[:2] != (3, 3)
        or tuple(strides) != (1, 1)
        or not x.dtype == kernel.dtype == jnp.float32
        or min(out) < 1
    ):
        return False
    tiles = len(x) // math.gcd(len(x), parts) * _tiles(out)
    fewest = next((count for c, count in _MEASURED if min(kernel.shape[2:]) >= c), None)
    return fewest is not None and tiles >= fewest


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def conv(
    x: jax.Array,
    kernel: jax.Array,
    pads: Pads,
    precision: Any = None,
    parts: int = 1,
    turned: bool = False,
):
    """The convolution of images [B, H, W, C] with a kernel [3, 3, C, F], stride 1.

    A loop takes a few images at a time. They are not neighbours: round i takes image i of each of so many
    parts of the batch, and so every device that holds a part of it works through its own images.

    Args:
      x: float32.
      kernel: float32.
      pads: ((top, bottom), (left, right)), of any sign and size that leave an output.
      precision: of the products, see `lax.dot`.
      parts: devices that the batch is split over.
      turned: the kernel is [3, 3, F, C], to be flipped in space and its channels exchanged, as in an input
        gradient.

    Returns:
      [B, H', W', F].
    """
    out = _out_size(x, pads)
    transformed, features = _kernel_products(kernel), kernel.shape[-1]
    if turned:
        # Both directions share the transforms, and XLA is slow at those of a kernel with exchanged channels.
        order, features = (3, 1, 2, 0), kernel.shape[-2]
        transformed = [[transformed[i][j].T for j in order] for i in order]

    def of_images(images: jax.Array):
        products = [
            [jnp.matmul(tile, u, precision=precision) for tile, u in zip(*rows, strict=True)]
            for rows in zip(_input_tiles(images, pads, out), transformed, strict=True)
        ]
        return _outputs(products, (len(images), *out, features))

    size = _images_at_a_time(len(x), out, max(kernel.shape[2:]), parts)
    if size == len(x):
        return of_images(x)
    x = x.reshape(size, -1, *x.shape[1:])

    def one_round(i: Any, y: jax.Array):
        images = lax.dynamic_index_in_dim(x, i, 1, keepdims=False)
        return lax.dynamic_update_index_in_dim(y, of_images(images), i, 1)

    y = jnp.zeros((*x.shape[:2], *out, features), x.dtype)
    y = lax.fori_loop(0, x.shape[1], one_round, y)
    return y.reshape(-1, *y.shape[2:])


def _out_size(x: jax.Array, pads: Pads) -> tuple[int, ...]:
    return tuple(n + low + high - 2 for n, (low, high) in zip(x.shape[1:3], pads, strict=True))


def _tiles(out: tuple[int, ...]) -> int:
    """Tiles of one image."""
    return math.prod(-(-n // 2) for n in out)


def _images_at_a_time(batch: int, out: tuple[int, ...], channels: int, parts: int) -> int:
    """A divisor of the batch, and a multiple of `parts` if that is one."""
    parts = math.gcd(batch, parts)
    each = batch // parts
    fitting = _TILES_BYTES // (_tiles(out) * channels * 16 * 4)
    return parts * max(n for n in range(1, each + 1) if each % n == 0 and n <= max(1, fitting))


def _kernel_products(kernel: jax.Array) -> list[list[jax.Array]]:
    """4 G kernel G^T: 4 x 4 matrices [C, F].

    Without the factor 4 (`_outputs` has its inverse) some of them would be slices of the kernel, which XLA
    leaves inside an attack's loop; sums and products it takes out of it. Each is therefore made of
    matrices, not cut out of a larger array.
    """

    def line(a: jax.Array, b: jax.Array, c: jax.Array):
        return [2 * a, a + b + c, a - b + c, 2 * c]

    columns = [line(*(kernel[i, j] for i in range(3))) for j in range(3)]
    return [line(*row) for row in zip(*columns, strict=True)]


def _input_tiles(x: jax.Array, pads: Pads, out: tuple[int, ...]) -> list[list[jax.Array]]:
    """B^T d B of the tiles d, which start at every second row and column: 4 x 4 matrices [tiles, C]."""
    tiles = [-(-n // 2) for n in out]
    edges = [
        (low, 2 * t + 2 - n - low, 0) for t, n, (low, _) in zip(tiles, x.shape[1:3], pads, strict=True)
    ]  # fmt: skip
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    rows, columns = ([slice(i, i + 2 * t - 1, 2) for i in range(4)] for t in tiles)

    def line(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array):
        return [a - c, b + c, c - b, b - d]

    by_row = [line(*(padded[:, i, j] for i in rows)) for j in columns]
    return [
        [tile.reshape(-1, x.shape[-1]) for tile in line(*row)] for row in zip(*by_row, strict=True)
    ]


def _outputs(products: list[list[jax.Array]], shape: tuple[int, ...]) -> jax.Array:
    """A^T m A / 4 of the 4 x 4 products m [tiles, F], put together: [b, H', W', F] of that shape."""
    images, height, width, features = shape

    def line(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array):
        return [a + b + c, b - c - d]

    by_row = [line(*column) for column in zip(*products, strict=True)]
    y = [line(*row) for row in zip(*by_row, strict=True)]
    tiles = (images, -(-height // 2), -(-width // 2), features)
    y = jnp.stack([jnp.stack([part.reshape(tiles) for part in row], 3) for row in y], 2)
    return y.reshape(images, 2 * tiles[1], 2 * tiles[2], features)[:, :height, :width] / 4
