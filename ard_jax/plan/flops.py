"""Floating point operations of single primitives, by the formulas of XLA's cost analysis."""

import math
from typing import Any

MATRIX = ("conv_general_dilated", "dot_general")
# Other names for the same memory.
VIEWS = (
    "reshape", "transpose", "rev", "squeeze", "expand_dims", "copy", "copy_p", "stop_gradient",
)  # fmt: skip
_MOVES = (
    "broadcast_in_dim", "convert_element_type", "concatenate", "pad", "slice", "iota", "select_n",
    "bitcast_convert_type", "random_wrap", "random_unwrap",
)  # fmt: skip
_ARITHMETIC = (
    "add", "add_any", "sub", "mul", "div", "rem", "max", "min", "neg", "abs", "sign", "square", "sqrt",
    "rsqrt", "exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "pow", "integer_pow", "floor",
    "ceil", "round", "clamp", "erf", "erf_inv", "sin", "cos", "is_finite", "nextafter",
    "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not",
    "shift_left", "shift_right_logical", "shift_right_arithmetic",
)  # fmt: skip
# XLA fuses these into what reads them.
ELEMENTWISE = (*_MOVES, *_ARITHMETIC)
REDUCTIONS = (
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin",
)  # fmt: skip


def flops_of(eqn: Any) -> float:
    """FLOPs of one equation of a jaxpr; 0 for data movement and for what is not known."""
    name = eqn.primitive.name
    if name == "conv_general_dilated":
        return _convolution(eqn)
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        depth = math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * depth
    if name in _ARITHMETIC:
        return float(math.prod(eqn.outvars[0].aval.shape))
    if name in REDUCTIONS:
        return float(math.prod(eqn.invars[0].aval.shape))
    return 0.0


def _convolution(eqn: Any) -> float:
    """2 x output channels and batch x input channels per group x products that meet a real input."""
    p = eqn.params
    lhs, rhs = (v.aval.shape for v in eqn.invars)
    out, numbers = eqn.outvars[0].aval.shape, p["dimension_numbers"]
    pairs = 1
    for i, (low, high) in enumerate(p["padding"]):
        pairs *= _products(
            lhs[numbers.lhs_spec[2 + i]],
            rhs[numbers.rhs_spec[2 + i]],
            (p["window_strides"][i], p["lhs_dilation"][i], p["rhs_dilation"][i]),
            (low, high),
        )
    batch, features = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    return 2.0 * batch * features * rhs[numbers.rhs_spec[1]] * pairs


def _products(size: int, taps: int, factors: tuple[int, int, int], pads: tuple[int, int]) -> int:
    """(output position, kernel tap) pairs along one axis that read neither padding nor dilation."""
    stride, spread, dilation = factors
    wide = (size - 1) * spread + 1
    outputs = (wide + sum(pads) - (taps - 1) * dilation - 1) // stride + 1
    places = (o * stride + t * dilation - pads[0] for o in range(outputs) for t in range(taps))
    return sum(0 <= at < wide and at % spread == 0 for at in places)
