"""2-D convolution whose gradients XLA:CPU runs fast, also inside `lax.scan`.

XLA:CPU runs the automatic input gradient of a convolution 7 to 35 times slower inside a loop than
outside: the transposed convolution reads its kernel with input and output channels exchanged, a layout
that only the entry computation is relieved of (jax issue #12868). Here the backward pass is written by
hand so that the input gradient is an ordinary forward convolution. Depthwise convolutions, for which
XLA:CPU has no fast path at all, become a sum of shifted products. On other backends the stock
convolution is used unchanged.

Values and gradients equal those of the stock convolution up to rounding. A custom derivative rules out
forward mode (`jax.jvp`, `jax.jacfwd`); reverse mode over reverse mode works.
"""

import contextlib
import contextvars
import functools

import jax
import jax.numpy as jnp
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")
_form = contextvars.ContextVar("form of exported convolutions", default="")


@contextlib.contextmanager
def exported_convolutions(form: str):
    """Inside, `canonical_conv` has a form that does not depend on this process's backend.

    Args:
      form: "stock": the stock convolution. "by_platform": the program holds both forms of depthwise
        convolutions and the platform that it is compiled for chooses.
    """
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


def canonical_conv(
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count=1,
    batch_group_count=1,
    precision=None,
    preferred_element_type=None,
):
    """`lax.conv_general_dilated`, in the form that is fast on the default backend.

    Meant for `flax.linen.Conv(conv_general_dilated=canonical_conv)`. Layouts other than NHWC/HWIO,
    dilation, batch groups and grouped but not depthwise convolutions take the stock path.

    Args:
      lhs: images [B, H, W, C].
      rhs: kernel [kh, kw, C / feature_group_count, F], same dtype.
      window_strides: two ints.
      padding: "SAME", "VALID", "SAME_LOWER" or ((top, bottom), (left, right)).
      lhs_dilation: as in `lax.conv_general_dilated`, like all arguments after it.
      rhs_dilation: see `lax.conv_general_dilated`.
      dimension_numbers: see `lax.conv_general_dilated`.
      feature_group_count: 1, or C for a depthwise convolution.
      batch_group_count: see `lax.conv_general_dilated`.
      precision: see `lax.conv_general_dilated`.
      preferred_element_type: see `lax.conv_general_dilated`.

    Returns:
      [B, H', W', F] in the dtype of the inputs.
    """
    depthwise = 1 < feature_group_count == lhs.shape[-1] == rhs.shape[-1]
    form = _form.get() or ("cpu" if jax.default_backend() == "cpu" else "stock")
    plain = (
        form != "stock"
        and lhs.ndim == 4
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and batch_group_count == 1
        and preferred_element_type is None
        and (feature_group_count == 1 or depthwise)
    )
    if not plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    if depthwise and form == "by_platform":
        return lax.platform_dependent(
            lhs,
            rhs,
            cpu=lambda x, kernel: _depthwise(x, kernel, strides, pads),
            default=lambda x, kernel: _stock(x, kernel, strides, pads, precision, kernel.shape[-1]),
        )
    if depthwise:
        return _depthwise(lhs, rhs, strides, pads)
    return _conv(lhs, rhs, strides, pads, precision)


def _depthwise(x, kernel, strides, pads):
    """Sum over the kernel's taps of (shifted, strided image) * tap, accumulated in float32."""
    taps = kernel.shape[:2]
    out = [
        (n + low + high - k) // s + 1
        for n, k, s, (low, high) in zip(x.shape[1:3], taps, strides, pads, strict=True)
    ]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def window(start, axis):
        stop = start + (out[axis] - 1) * strides[axis] + 1
        return slice(start, stop, strides[axis])

    total = sum(
        padded[:, window(i, 0), window(j, 1)].astype(wide) * kernel[i, j, 0].astype(wide)
        for i in range(taps[0])
        for j in range(taps[1])
    )
    return total.astype(x.dtype)


def _stock(x, kernel, strides, pads, precision, groups=1):
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
def _conv(x, kernel, strides, pads, precision):
    return _stock(x, kernel, strides, pads, precision)


def _conv_fwd(x, kernel, strides, pads, precision):
    return _stock(x, kernel, strides, pads, precision), (x, kernel)


def _conv_bwd(strides, pads, precision, saved, g):
    x, kernel = saved
    # Input gradient: g, dilated by the stride, convolved with the kernel flipped in space and with its
    # channels exchanged. Without the barrier XLA folds flip and exchange back into the convolution,
    # and the slow layout returns.
    turned = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    # This padding makes the result exactly as large as x.
    dx_pads = [
        (k - 1 - low, n + low - (m - 1) * s - 1)
        for n, m, k, s, (low, _) in zip(
            x.shape[1:3], g.shape[1:3], kernel.shape[:2], strides, pads, strict=True
        )
    ]
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
    (dkernel,) = jax.vjp(lambda w: _stock(x, w, strides, pads, precision), kernel)[1](g)
    return dx, dkernel


_conv.defvjp(_conv_fwd, _conv_bwd)
