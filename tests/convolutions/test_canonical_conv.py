import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ard_jax.convolutions import cpu_conv
from ard_jax.models import canonical_conv
from ard_jax.runtime import sharding

# The package exports the function under the module's name.
MODULE = importlib.import_module("ard_jax.convolutions.canonical_conv")
NHWC = ("NHWC", "HWIO", "NHWC")


def operands(shape, kernel, features, groups=1, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    w_shape = (kernel, kernel, shape[-1] // groups, features)
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in (shape, w_shape))


def outputs_and_gradients(conv, strides, padding, groups):
    options = {"dimension_numbers": NHWC, "feature_group_count": groups}

    @jax.jit
    def run(x, w):
        y, vjp = jax.vjp(lambda x, w: conv(x, w, strides, padding, **options), x, w)
        cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype)
        return (y, *vjp(cotangent))

    return run


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [
        (1, (1, 1), "SAME"),
        (1, (2, 2), "VALID"),
        (3, (1, 1), ((1, 1), (1, 1))),
        (3, (2, 2), ((1, 1), (1, 1))),
        (3, (2, 2), "SAME_LOWER"),
        (3, (1, 3), ((2, 0), (1, 3))),
        (4, (2, 2), ((1, 1), (1, 1))),
        (5, (2, 1), "SAME"),
        # Kernel larger than the stride needs, and rows of the image that no output reads.
        (2, (3, 3), "VALID"),
    ],
)
def test_values_and_gradients_equal_the_stock_convolution(kernel, strides, padding, depthwise):
    channels = 4
    groups, features = (channels, channels) if depthwise else (1, 6)
    x, w = operands((2, 8, 9, channels), kernel, features, groups)
    ours = outputs_and_gradients(canonical_conv, strides, padding, groups)(x, w)
    stock = outputs_and_gradients(lax.conv_general_dilated, strides, padding, groups)(x, w)
    for a, b in zip(ours, stock, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.max(np.abs(b)))


def test_what_it_does_not_rewrite_still_equals_the_stock_convolution():
    x, w = operands((2, 8, 8, 4), 3, 6)
    x_grouped, w_grouped = operands((2, 8, 8, 4), 3, 6, groups=2)
    nhwc = {"dimension_numbers": NHWC}
    cases = [
        (x, w, {**nhwc, "rhs_dilation": (2, 2)}),
        (x, w, {**nhwc, "lhs_dilation": (2, 2)}),
        (x_grouped, w_grouped, {**nhwc, "feature_group_count": 2}),
        (x, w, {**nhwc, "preferred_element_type": jnp.float32}),
        # Without dimension numbers lax means NCHW and OIHW.
        (x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), {}),
    ]
    for x, w, options in cases:
        pad = ((1, 1), (1, 1))
        ours = canonical_conv(x, w, (1, 1), pad, **options)
        stock = lax.conv_general_dilated(x, w, (1, 1), pad, **options)
        np.testing.assert_array_equal(ours, stock)


def test_gradient_of_a_gradient():
    x, w = operands((1, 6, 6, 2), 3, 3)

    def penalty(conv):
        def inner(x, w):
            y = conv(x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=NHWC)
            return jnp.sum(y**3)

        def outer(x, w):
            gx, gw = jax.grad(inner, argnums=(0, 1))(x, w)
            return jnp.sum(gx**2) + jnp.sum(jnp.sin(gw))

        return jax.jit(jax.grad(outer, argnums=(0, 1)))(x, w)

    ours, stock = penalty(canonical_conv), penalty(lax.conv_general_dilated)
    for a, b in zip(ours, stock, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.max(np.abs(b)))


def test_bfloat16_depthwise_accumulates_in_float32():
    x, w = operands((2, 8, 8, 4), 5, 4, groups=4, dtype=jnp.bfloat16)
    ours = canonical_conv(x, w, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=4)
    exact = lax.conv_general_dilated(
        x.astype("float32"), w.astype("float32"), (1, 1), "SAME",
        dimension_numbers=NHWC, feature_group_count=4,
    )  # fmt: skip
    assert ours.dtype == jnp.bfloat16
    # One rounding of the result (2^-9), not one for each of the 25 taps.
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 4])
def test_other_backends_get_the_stock_convolution(monkeypatch, groups):
    x, w = operands((2, 8, 8, 4), 3, 4, groups)

    def primitives():
        options = {"dimension_numbers": NHWC, "feature_group_count": groups}
        jaxpr = jax.make_jaxpr(lambda x, w: canonical_conv(x, w, (1, 1), "SAME", **options))(x, w)
        return [eqn.primitive.name for eqn in jaxpr.eqns]

    assert primitives() != ["conv_general_dilated"]
    monkeypatch.setattr(MODULE.jax, "default_backend", lambda: "gpu")
    assert primitives() == ["conv_general_dilated"]


@pytest.mark.parametrize(
    ("side", "stride", "dtype", "parts"),
    [
        (16, 1, jnp.float32, 1),  # an image at a time, windows that share a copy
        (16, 1, jnp.float32, 3),
        (16, 1, jnp.bfloat16, 4),
        (16, 2, jnp.float32, 3),
        (12, 1, jnp.float32, 1),  # three images at a time
        (12, 1, jnp.float32, 4),
        (2, 2, jnp.float32, 1),
        (2, 2, jnp.float32, 3),
    ],
)
def test_kernel_gradient_is_a_sum_over_images(side, stride, dtype, parts):
    side, padding = side * stride, ((1, 1), (1, 1))
    x, w = operands((6, side, side, 24), 3, 25, dtype=dtype)
    with cpu_conv.splits_batch(parts):  # of 4 the batch is no multiple
        ours = outputs_and_gradients(canonical_conv, (stride, stride), padding, 1)
        assert "while" in ours.lower(x, w).as_text()
        ours = ours(x, w)
    exact = (operand.astype(jnp.float32) for operand in (x, w))
    stock = outputs_and_gradients(lax.conv_general_dilated, (stride, stride), padding, 1)(*exact)
    # bfloat16 has 8 significant bits, and the cotangent is rounded to them, too.
    tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
    for a, b in zip(ours, stock, strict=True):
        assert a.dtype == dtype
        a = a.astype(jnp.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.max(np.abs(b)))


@pytest.mark.multidevice
def test_sums_over_images_stay_on_their_device():
    mesh = sharding.make_mesh(4)
    same, split = sharding.replicated(mesh), sharding.split_batch(mesh)
    x, w = operands((8, 16, 16, 48), 3, 48)
    kernels = (w, operands(x.shape, 3, 48, groups=48)[1])

    def gradients(x, kernels):
        def loss(kernels):
            options = {"dimension_numbers": NHWC}
            y = canonical_conv(x, kernels[0], (1, 1), "SAME", **options)
            z = canonical_conv(x, kernels[1], (1, 1), "SAME", feature_group_count=48, **options)
            return jnp.mean(jnp.sin(y)) + jnp.mean(jnp.sin(z))

        with cpu_conv.splits_batch(4):
            return jax.grad(loss)(kernels)

    program = jax.jit(gradients, in_shardings=(split, same), out_shardings=same)
    text = program.lower(x, kernels).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text
    for a, b in zip(program(x, kernels), jax.jit(gradients)(x, kernels), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.max(np.abs(b)))
