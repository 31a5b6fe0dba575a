"""Convolutions in the forms that XLA:CPU runs fast; `canonical_conv` chooses among them.

All take images [B, H, W, C], a kernel [kh, kw, C / groups, F], strides (two ints) and padding ((top,
bottom), (left, right)), and return [B, H', W', F]. What was measured is in docs/performance.md.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ard_jax.convolutions import winograd

Strides = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]
_NHWC = ("NHWC", "HWIO", "NHWC")
_parts = contextvars.ContextVar("devices that the batch is split over", default=0)
_MANY_POSITIONS = 256  # of an image, from which on the kernel gradient takes one image at a time
_CACHED_POSITIONS = 512  # of the output, per round of a sum over images


@contextlib.contextmanager
def splits_batch(parts: int):
    """To be traced inside: the batch is split over so many devices, and sums over images stay local.

    Outside of it the results are the same, but kernel gradients of a batch that is split gather its images.
    """
    token = _parts.set(parts)
    try:
        yield
    finally:
        _parts.reset(token)


def devices_of_batch() -> int:
    """The `parts` of `splits_batch`; 1 outside of it."""
    return _parts.get() or 1


def _possible_parts() -> int:
    """Whoever did not say how the batch is split may have split it over all devices."""
    return _parts.get() or jax.device_count()


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads):
    """Sum over the kernel's taps of (shifted, strided image) * tap, accumulated in float32."""
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return _shifted_products(padded, kernel, strides, _out_size(x, kernel, strides, pads))


def _depthwise_fwd(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads):
    return depthwise(x, kernel, strides, pads), (x, kernel)


def _depthwise_bwd(strides: Strides, pads: Pads, saved: tuple[jax.Array, jax.Array], g: jax.Array):
    x, kernel = saved
    # The input gradient is a depthwise convolution of g with the flipped kernel. Its padded input is
    # materialised: fused with the sum, the tests for the border make the loop ten times slower.
    edges = zip(_dx_pads(x, kernel, g, strides, pads), strides, strict=True)
    edges = [(0, 0, 0), *((low, high, s - 1) for (low, high), s in edges), (0, 0, 0)]
    padded = lax.optimization_barrier(lax.pad(g, jnp.zeros((), g.dtype), edges))
    dx = _shifted_products(padded, jnp.flip(kernel, (0, 1)), (1, 1), x.shape[1:3])
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def of_images(images: jax.Array, g: jax.Array):
        g = g.astype(wide)

        def of_window(window: jax.Array):
            products = (window.astype(wide) * g).reshape(-1, g.shape[-1])
            # XLA:CPU's own sums over positions are slower than a product with ones.
            return jnp.ones(len(products), wide) @ products

        return _by_tap(of_window, images, kernel, strides, pads)

    dkernel = _sum_over_images(of_images, x, g, _CACHED_POSITIONS // 2 // math.prod(g.shape[1:3]))
    dkernel = dkernel[:, :, None]
    return dx, dkernel.astype(kernel.dtype)


depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


def _shifted_products(padded: jax.Array, kernel: jax.Array, strides: Strides, out: Sequence[int]):
    wide = jnp.promote_types(padded.dtype, jnp.float32)
    total: Any = sum(
        _window(padded, (i, j), strides, out).astype(wide) * kernel[i, j, 0].astype(wide)
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )
    return total.astype(padded.dtype)


def _out_size(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads):
    return [
        (n + low + high - k) // s + 1
        for n, k, s, (low, high) in zip(x.shape[1:3], kernel.shape[:2], strides, pads, strict=True)
    ]


def _window(padded: jax.Array, tap: tuple[int, int], strides: Strides, out: Sequence[int]):
    """What one tap of the kernel sees: [B, out, out, C]."""
    rows, columns = (
        slice(start, start + (size - 1) * s + 1, s)
        for start, size, s in zip(tap, out, strides, strict=True)
    )
    return padded[:, rows, columns]


def _by_tap(
    of_window: Callable, images: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads
):
    """of_window(what a tap sees) for every tap: [kh, kw, ...]."""
    padded, out = jnp.pad(images, ((0, 0), *pads, (0, 0))), _out_size(images, kernel, strides, pads)
    return jnp.stack(
        [
            jnp.stack(
                [of_window(_window(padded, (i, j), strides, out)) for j in range(kernel.shape[1])]
            )
            for i in range(kernel.shape[0])
        ]
    )


def _sum_over_images(of_images: Callable, x: jax.Array, g: jax.Array, size: int):
    """Sum of of_images(some images, their g) over the batch, `size` images at a time: they fit the cache.

    Each device works through its own images: see `splits_batch`.
    """
    parts = devices_of_batch() if x.shape[0] % devices_of_batch() == 0 else 1
    local = x.shape[0] // parts
    size = max(c for c in range(1, local + 1) if local % c == 0 and c <= max(1, size))
    x, g = (a.reshape(parts, local, *a.shape[1:]) for a in (x, g))
    every = jax.vmap(of_images)

    def add(i: Any, total: jax.Array):
        images, gradients = (lax.dynamic_slice_in_dim(a, i * size, size, 1) for a in (x, g))
        return total + every(images, gradients)

    shape = jax.eval_shape(every, x[:, :size], g[:, :size])
    return jnp.sum(lax.fori_loop(0, local // size, add, jnp.zeros(shape.shape, shape.dtype)), 0)


def pointwise(x: jax.Array, kernel: jax.Array, strides: Strides, precision: Any):
    """A 1 x 1 convolution is a product of matrices, whose gradients are that, too."""
    x = x[:, :: strides[0], :: strides[1]]
    y = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=precision)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def stock(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads, precision: Any, groups: int = 1
):
    """`lax.conv_general_dilated` of NHWC images."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        dimension_numbers=_NHWC,
        feature_group_count=groups,
        precision=precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads, precision: Any):
    """The stock convolution, or Winograd's, with a backward pass of such and of products of matrices."""
    if winograd.pays(x, kernel, strides, pads, _possible_parts()):
        return winograd.conv(x, kernel, pads, precision, _possible_parts())
    return stock(x, kernel, strides, pads, precision)


def _conv_fwd(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads, precision: Any):
    return conv(x, kernel, strides, pads, precision), (x, kernel)


def _conv_bwd(
    strides: Strides, pads: Pads, precision: Any, saved: tuple[jax.Array, jax.Array], g: jax.Array
):
    x, kernel = saved
    # Input gradient: g, dilated by the stride, convolved with the kernel flipped in space and with its
    # channels exchanged.
    dx_pads = _dx_pads(x, kernel, g, strides, pads)
    if winograd.pays(g, kernel, strides, dx_pads, _possible_parts()):
        dx = winograd.conv(g, kernel, dx_pads, precision, _possible_parts(), True)
    else:
        # Without the barrier XLA folds flip and exchange back into the convolution, and the slow layout
        # returns.
        turned = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
        dx = lax.conv_general_dilated(
            g,
            turned,
            (1, 1),
            dx_pads,
            lhs_dilation=strides,
            dimension_numbers=_NHWC,
            precision=precision,
        )
    # XLA drops this one where only dx is used, as in the inner loop of an attack.
    return dx, _kernel_gradient(x, kernel, g, strides, pads, precision)


def _dx_pads(x: jax.Array, kernel: jax.Array, g: jax.Array, strides: Strides, pads: Pads):
    """The padding of the dilated g that makes the input gradient exactly as large as x."""
    return tuple(
        (k - 1 - low, n + low - (m - 1) * s - 1)
        for n, m, k, s, (low, _) in zip(
            x.shape[1:3], g.shape[1:3], kernel.shape[:2], strides, pads, strict=True
        )
    )


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, g: jax.Array, strides: Strides, pads: Pads, precision: Any
):
    """As a sum over images of products [taps * C, positions] @ [positions, F].

    Positions come last on the left: products of matrices are fastest so (the other way round, as
    convolutions have their arrays, they take twice as long).
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    (rows, columns), (kh, kw) = g.shape[1:3], kernel.shape[:2]
    positions = rows * columns
    # The shifts by rows of one large image are parts of one copy of it; several images, or strides, need
    # a copy for each tap.
    share = tuple(strides) == (1, 1) and positions >= _MANY_POSITIONS

    def of_images(images: jax.Array, g: jax.Array):
        padded = jnp.pad(jnp.moveaxis(images, -1, 0), ((0, 0), (0, 0), *pads))
        shifted = jnp.stack([padded[..., _steps(j, columns, strides[1])] for j in range(kw)])
        if share:
            shifted = lax.optimization_barrier(shifted)
        windows = [shifted[..., _steps(i, rows, strides[0]), :] for i in range(kh)]
        left = [w.reshape(-1, g.shape[0] * positions) for w in windows]
        left = left if share else [jnp.concatenate(left)]
        right = g.reshape(-1, g.shape[-1])
        products = [
            jnp.matmul(part, right, precision=precision, preferred_element_type=wide)
            for part in left
        ]
        return jnp.stack(products).reshape(kernel.shape)

    size = 1 if share else _CACHED_POSITIONS // positions
    return _sum_over_images(of_images, x, g, size).astype(kernel.dtype)


def _steps(start: int, count: int, stride: int) -> slice:
    return slice(start, start + (count - 1) * stride + 1, stride)


conv.defvjp(_conv_fwd, _conv_bwd)
