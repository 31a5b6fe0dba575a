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
from typing import Any

import jax
from jax import lax

from ard_jax.convolutions import cpu_conv, winograd

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
        with winograd.use("off"):
            yield
    finally:
        _form.reset(token)


def exported_form() -> str:
    """The form of `exported_convolutions` around the caller; "" outside of an export."""
    return _form.get()


def _is_plain(
    *,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    batch_group_count: int = 1,
    preferred_element_type: Any = None,
) -> bool:
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    return not dilated and batch_group_count == 1 and preferred_element_type is None


def canonical_conv(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Any,
    padding: Any,
    *,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **options: Any,
):
    """`lax.conv_general_dilated`, in the form that is fast on the default backend.

    Meant for `flax.linen.Conv(conv_general_dilated=canonical_conv)`. Layouts other than NHWC/HWIO,
    dilation, batch groups and grouped but not depthwise convolutions take the stock path.

    Args:
      lhs: images [B, H, W, C].
      rhs: kernel [kh, kw, C / feature_group_count, F], same dtype.
      window_strides: two ints.
      padding: "SAME", "VALID", "SAME_LOWER" or ((top, bottom), (left, right)).
      dimension_numbers: see `lax.conv_general_dilated`.
      feature_group_count: 1, or C for a depthwise convolution.
      precision: see `lax.conv_general_dilated`.
      **options: of `lax.conv_general_dilated`; other values than its defaults take the stock path.

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
        and _is_plain(**options)
        and (feature_group_count == 1 or depthwise)
    )
    if not plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            precision=precision,
            **options,
        )
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    if depthwise and form == "by_platform":
        return lax.platform_dependent(
            lhs,
            rhs,
            cpu=lambda x, kernel: cpu_conv.depthwise(x, kernel, strides, pads),
            default=lambda x, kernel: cpu_conv.stock(
                x, kernel, strides, pads, precision, kernel.shape[-1]
            ),
        )
    if depthwise:
        return cpu_conv.depthwise(lhs, rhs, strides, pads)
    if rhs.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
        return cpu_conv.pointwise(lhs, rhs, strides, precision)
    return cpu_conv.conv(lhs, rhs, strides, pads, precision)
