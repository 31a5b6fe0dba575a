"""Convolutions of anybody's function become ours: same values, same gradients, none left in its own form."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from ard_jax import attacks
from ard_jax.convolutions.rewrite import fast_on_cpu
from ard_jax.models import canonical_conv

KEY = jax.random.key(0)
X = jax.random.uniform(jax.random.key(1), (2, 9, 8, 4))
NHWC = ("NHWC", "HWIO", "NHWC")
LAYOUTS = [NHWC, ("NCHW", "OIHW", "NCHW"), ("NHWC", "OIHW", "NCHW"), ("CHWN", "IHWO", "CHWN")]


def stock_convolutions(function, *examples):
    """Number of convolutions in a function that are not inside of a custom derivative."""

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            if not eqn.primitive.name.startswith("custom_"):
                total += eqn.primitive.name == "conv_general_dilated"
                total += sum(map(count, jax.extend.core.jaxprs_in_params(eqn.params)))
        return total

    return count(jax.make_jaxpr(function)(*examples).jaxpr)


def check(function, x=X, left=0):
    fast = fast_on_cpu(function, x)
    assert stock_convolutions(fast, x) == left
    np.testing.assert_allclose(fast(x), function(x), rtol=1e-5, atol=1e-5)
    of = lambda f: jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))(x)  # noqa: E731
    np.testing.assert_allclose(of(fast), of(function), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(fast)(x), function(x), rtol=1e-5, atol=1e-5)
    return fast


def kernel(layout, channels=4, outputs=6, size=(3, 2)):
    sizes = {"H": size[0], "W": size[1], "I": channels, "O": outputs}
    return 0.3 * jax.random.normal(KEY, [sizes[axis] for axis in layout])


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(LAYOUTS), st.sampled_from([(1, 1), (2, 1), (2, 3)]), st.booleans(),
    st.sampled_from(["SAME", "VALID", ((0, 2), (1, 1))]),
)  # fmt: skip
def test_any_layout(layout, strides, depthwise, padding):
    lhs, rhs, out = layout
    w = kernel(rhs, 1 if depthwise else 4, 4 if depthwise else 6)
    there, back = ["NHWC".index(axis) for axis in lhs], [out.index(axis) for axis in "NHWC"]

    def function(x):
        y = lax.conv_general_dilated(
            x.transpose(there), w, strides, padding, dimension_numbers=layout,
            feature_group_count=4 if depthwise else 1,
        )  # fmt: skip
        return y.transpose(back)

    check(function)


def convolve(x):
    return lax.conv_general_dilated(x, kernel("HWIO", 4, 4), (1, 1), "SAME", dimension_numbers=NHWC)


INSIDE = {
    "jit": jax.jit(convolve),
    "jit in jit": jax.jit(lambda x: jax.jit(convolve)(x) + 1),
    "remat": jax.checkpoint(convolve),
    "scan": lambda x: lax.scan(lambda c, _: (convolve(c), c.sum()), x, None, length=3)[0],
    "scan over weights": lambda x: lax.scan(
        lambda c, w: (convolve(c) * w, w), x, jnp.arange(3.0), reverse=True)[0],
    "cond": lambda x: lax.cond(x.sum() > 0, convolve, lambda x: x, x),
    "switch": lambda x: lax.switch(1, [lambda x: x, convolve, jnp.sin], x),
    "vmap": lambda x: jax.vmap(lambda one: convolve(one[None])[0])(x),
    "relu beside it": lambda x: jax.nn.relu(convolve(x)),
    "closed over": functools.partial(lambda w, x: convolve(x) * w, jnp.ones(4)),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_at_any_depth(name):
    check(INSIDE[name])


def test_inside_of_a_while_loop():  # which has no gradient
    def function(x):
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, convolve(c[1])), (0, x))[1]

    fast = fast_on_cpu(function, X)
    assert stock_convolutions(fast, X) == 0
    np.testing.assert_allclose(fast(X), function(X), rtol=1e-5, atol=1e-5)


def test_parameters_that_are_traced_outside():
    w = kernel("HWIO")

    def loss(w):
        predict = lambda x: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)  # noqa: E731
        return jnp.sum(jnp.sin(fast_on_cpu(predict, X)(X)))

    def stock(w):
        return jnp.sum(
            jnp.sin(lax.conv_general_dilated(X, w, (1, 1), "SAME", dimension_numbers=NHWC))
        )

    for wrap in (lambda f: f, jax.jit):
        found = wrap(jax.grad(loss))(w)
        np.testing.assert_allclose(found, jax.grad(stock)(w), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 1)}, {"feature_group_count": 2}]
)
def test_what_has_no_form_of_ours_stays(options):
    w = kernel("HWIO", 4 // options.get("feature_group_count", 1))
    with pytest.warns(UserWarning, match="stay slow in an attack's loop: (dilated|grouped)"):
        check(
            lambda x: lax.conv_general_dilated(
                convolve(x), w, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NHWC, **options
            ),
            left=1,
        )


def test_a_derivative_of_ones_own_stays():
    @jax.custom_vjp
    def mine(x):
        return convolve(x)

    mine.defvjp(lambda x: (convolve(x), None), lambda _, g: (2 * g,))
    with pytest.warns(UserWarning, match="of a custom derivative"):
        fast = fast_on_cpu(mine, X)
    np.testing.assert_array_equal(jax.grad(lambda x: fast(x).sum())(X), jnp.full_like(X, 2))


def test_our_own_networks_are_left_as_they_are():
    function = lambda x: canonical_conv(x, kernel("HWIO"), (1, 1), "SAME", dimension_numbers=NHWC)  # noqa: E731
    assert fast_on_cpu(function, X) is function


def test_flax_linen():
    net = nn.Sequential(
        [nn.Conv(6, (3, 3)), nn.relu, nn.Conv(5, (3, 3), strides=2), nn.BatchNorm(True)]
    )
    variables = net.init(KEY, X)
    check(lambda x: net.apply(variables, x))


def test_flax_nnx():
    rngs = nnx.Rngs(0)
    first, second = (
        nnx.Conv(4, 6, (3, 3), rngs=rngs),
        nnx.Conv(6, 6, (3, 3), feature_group_count=6, rngs=rngs),
    )
    check(lambda x: second(nnx.relu(first(x))))


def test_equinox():
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    net = eqx.nn.Conv2d(4, 6, 3, key=KEY)
    check(lambda x: jax.vmap(net)(x.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize("attack", ["pgd", "apgd", "fab"])
def test_attacks_rewrite_what_they_are_given(attack):
    """Our input gradient has a barrier around its kernel, a stock one none."""
    w = kernel("HWIO", 3, 5)
    images, labels = jax.random.uniform(KEY, (2, 8, 8, 3)), jnp.array([0, 1])

    def number(convolution):
        def predict(x):
            return convolution(x, w, (1, 1), "SAME", dimension_numbers=NHWC).mean((1, 2))

        def run(x):
            return getattr(attacks, attack)(predict, x, labels, KEY, eps=0.03, steps=2)

        return str(jax.make_jaxpr(run)(images)).count("optimization_barrier")

    assert number(lax.conv_general_dilated) == number(canonical_conv) > 0
