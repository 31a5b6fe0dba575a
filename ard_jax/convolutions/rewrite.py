"""A user's function with its convolutions in the forms that XLA:CPU runs fast.

XLA:CPU runs the input gradient of a stock convolution 7 to 35 times slower inside a loop, such as an attack,
than outside of it. So a function from images to logits is traced, and each convolution of its jaxpr that
`canonical_conv` has a form for is replaced, in any layout and inside of nested jits, loops and remats.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from ard_jax.convolutions.canonical_conv import canonical_conv

_DERIVATIVES = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
_OURS = "cpu_conv.py"


def fast_on_cpu(function: Callable, *examples: Any) -> Callable:
    """Returns the function with our convolutions; it itself on other backends, or with nothing to replace.

    Warns of convolutions that keep XLA's form: dilated, grouped but not depthwise, of other dimensions, or
    inside of a custom derivative.

    Args:
      function: pure; of arrays or pytrees of them.
      *examples: arguments, or their shapes.
    """
    if jax.default_backend() != "cpu":
        return function
    traced, found = _Traced(function, examples), _Found()
    found.look(traced.closed.jaxpr)
    if found.left:
        kinds = ", ".join(sorted(found.left))
        warnings.warn(f"convolutions that stay slow in an attack's loop: {kinds}", stacklevel=2)
    return _rewritten(function, traced) if found.replaceable else function


class _Traced:
    """A function's jaxpr for arguments of these shapes."""

    def __init__(self, function: Callable, arguments: Any):
        self.shapes = _shapes(arguments)
        self.closed, shape = jax.make_jaxpr(function, return_shape=True)(*self.shapes)
        self.structure = jax.tree.structure(shape)


def _shapes(arguments: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), arguments)


class _Found:
    """What convolutions there are in a jaxpr."""

    def __init__(self):
        self.replaceable = 0
        self.left: set[str] = set()

    def look(self, jaxpr: core.Jaxpr) -> None:
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            if name == "conv_general_dilated":
                if reason := _obstacle(eqn):
                    self.left.add(reason)
                else:
                    self.replaceable += 1
            elif name in _DERIVATIVES:
                if not _is_ours(eqn) and _has_convolution(eqn):
                    self.left.add("of a custom derivative")
            elif name in _FORMS:
                for inner in core.jaxprs_in_params(eqn.params):
                    self.look(inner)
            elif _has_convolution(eqn):
                self.left.add(f"inside of {name}")


def _has_convolution(eqn: core.JaxprEqn) -> bool:
    return any(
        inner.primitive.name == "conv_general_dilated" or _has_convolution(inner)
        for jaxpr in core.jaxprs_in_params(eqn.params)
        for inner in jaxpr.eqns
    )


def _is_ours(eqn: core.JaxprEqn) -> bool:
    info = eqn.params["call_jaxpr"].jaxpr.debug_info
    return _OURS in str(getattr(info, "func_src_info", ""))


def _obstacle(eqn: core.JaxprEqn) -> str:
    """Why a convolution has no form of ours; "" if it has."""
    p = eqn.params
    lhs, rhs, out = (cast(Any, v.aval) for v in (*eqn.invars, *eqn.outvars))
    groups, channels = p["feature_group_count"], lhs.shape[p["dimension_numbers"].lhs_spec[1]]
    outputs = rhs.shape[p["dimension_numbers"].rhs_spec[0]]
    if lhs.ndim != 4:
        return f"{lhs.ndim - 2}-dimensional"
    if any(d != 1 for d in (*p["lhs_dilation"], *p["rhs_dilation"])):
        return "dilated"
    if (
        p["batch_group_count"] != 1
        or groups not in (1, channels)
        or (groups > 1 and outputs != groups)
    ):
        return "grouped"
    if p["preferred_element_type"] not in (None, out.dtype):
        return "of mixed precision"
    return ""


def _rewritten(function: Callable, first: _Traced) -> Callable:
    def run(*arguments: Any) -> Any:
        again = first.shapes == _shapes(arguments)
        traced = first if again else _Traced(function, arguments)
        flat = _evaluate(traced.closed.jaxpr, traced.closed.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(traced.structure, flat)

    return run


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Runs a jaxpr with our convolutions."""
    values: dict[Any, Any] = {}

    def read(v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else values[v]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
        form = _FORMS.get(eqn.primitive.name)
        inputs = [read(v) for v in eqn.invars]
        outputs = form(eqn, *inputs) if form and _has_work(eqn) else _as_it_is(eqn, inputs)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _has_work(eqn: core.JaxprEqn) -> bool:
    return eqn.primitive.name == "conv_general_dilated" or _has_convolution(eqn)


def _as_it_is(eqn: core.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    found = eqn.primitive.get_bind_params(eqn.params)
    # Older versions of JAX give the functions of a custom derivative apart.
    functions, parameters = found if isinstance(found, tuple) else ((), found)
    outputs = eqn.primitive.bind(*functions, *inputs, **parameters)
    return outputs if eqn.primitive.multiple_results else [outputs]


def _closed(closed: core.ClosedJaxpr) -> Callable:
    return lambda *arguments: _evaluate(closed.jaxpr, closed.consts, arguments)


def _convolution(eqn: core.JaxprEqn, lhs: Any, rhs: Any) -> list[Any]:
    if _obstacle(eqn):
        return list(_as_it_is(eqn, [lhs, rhs]))
    p = eqn.params
    numbers = p["dimension_numbers"]
    (n, c, *space), (o, i, *taps) = numbers.lhs_spec, numbers.rhs_spec
    batch, channels, *rows = numbers.out_spec
    y: Any = canonical_conv(
        lhs.transpose(n, *space, c), rhs.transpose(*taps, i, o), p["window_strides"], p["padding"],
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=p["feature_group_count"],
        precision=p["precision"],
    )  # fmt: skip
    where = [0] * 4
    for axis, source in ((batch, 0), (rows[0], 1), (rows[1], 2), (channels, 3)):
        where[axis] = source
    return [y.transpose(where)]


def _jit(eqn: core.JaxprEqn, *inputs: Any) -> list[Any]:
    return _closed(eqn.params["jaxpr"])(*inputs)  # inlined: the caller is compiled as one


def _remat(eqn: core.JaxprEqn, *inputs: Any) -> list[Any]:
    p = eqn.params
    inner = jax.checkpoint(
        lambda *arguments: _evaluate(p["jaxpr"], (), arguments),
        prevent_cse=p["prevent_cse"],
        policy=p["policy"],
    )
    return inner(*inputs)


def _scan(eqn: core.JaxprEqn, *inputs: Any) -> list[Any]:
    p, body = eqn.params, _closed(eqn.params["jaxpr"])
    first, second = p["num_consts"], p["num_consts"] + p["num_carry"]
    consts, carry, xs = inputs[:first], inputs[first:second], inputs[second:]

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        outputs = body(*consts, *carry, *x)
        return tuple(outputs[: p["num_carry"]]), tuple(outputs[p["num_carry"] :])

    last, ys = lax.scan(
        step, tuple(carry), tuple(xs), p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    return [*last, *ys]


def _while(eqn: core.JaxprEqn, *inputs: Any) -> list[Any]:
    p = eqn.params
    first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    goes_on, body = _closed(p["cond_jaxpr"]), _closed(p["body_jaxpr"])
    return list(
        lax.while_loop(
            lambda carry: goes_on(*inputs[:first], *carry)[0],
            lambda carry: tuple(body(*inputs[first:second], *carry)),
            tuple(inputs[second:]),
        )
    )


def _cond(eqn: core.JaxprEqn, index: Any, *inputs: Any) -> list[Any]:
    return list(lax.switch(index, [_closed(b) for b in eqn.params["branches"]], *inputs))


_FORMS: dict[str, Callable[..., list[Any]]] = {
    "conv_general_dilated": _convolution,
    "jit": _jit,
    "pjit": _jit,
    "closed_call": lambda eqn, *inputs: _closed(eqn.params["call_jaxpr"])(*inputs),
    "remat2": _remat,
    "checkpoint": _remat,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
