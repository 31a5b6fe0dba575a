import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from ard_jax.convolutions import cpu_conv, winograd
from ard_jax.convolutions.canonical_conv import exported_convolutions
from ard_jax.models import canonical_conv
from ard_jax.runtime import sharding

NHWC = ("NHWC", "HWIO", "NHWC")
PAD = ((1, 1), (1, 1))


def operands(batch, size, channels, features, dtype=np.float32):
    rng = np.random.default_rng(batch + channels)
    shapes = ((batch, *size, channels), (3, 3, channels, features))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@contextlib.contextmanager
def everywhere():
    """Every 3x3 convolution of stride 1 is Winograd's, in as many rounds of the loop as there can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_MEASURED", ((1, 1),))
        patch.setattr(winograd, "_TILES_BYTES", 1)
        yield


def ours(x, w, pads):
    return canonical_conv(x, w, (1, 1), pads, dimension_numbers=NHWC)


def stock(x, w, pads):
    return lax.conv_general_dilated(x, w, (1, 1), pads, dimension_numbers=NHWC)


def value_and_gradients(conv, x, w, pads):
    def run(x, w):
        y, vjp = jax.vjp(lambda x, w: conv(x, w, pads), x, w)
        return (y, *vjp(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)))

    return jax.jit(run)(x, w)


def is_winograd(x, w, strides=(1, 1), pads=PAD):
    def conv(x, w):
        return canonical_conv(x, w, strides, pads, dimension_numbers=NHWC)

    return "dot_general" in str(jax.make_jaxpr(conv)(x, w))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.tuples(*[st.integers(1, 9)] * 2),
    st.tuples(*[st.tuples(*[st.integers(0, 4)] * 2)] * 2),
    st.tuples(*[st.integers(1, 9)] * 2),
    st.integers(1, 6),
    st.sampled_from([1, 2, 3]),
)
def test_values_and_gradients_are_those_of_float64(size, pads, channels, batch, parts):
    if any(n + low + high < 3 for n, (low, high) in zip(size, pads, strict=True)):
        return
    x, w = operands(batch, size, *channels)
    with everywhere(), cpu_conv.splits_batch(parts):
        assert is_winograd(x, w, pads=pads)
        found = value_and_gradients(ours, x, w, pads)
    with jax.enable_x64(True):
        exact = value_and_gradients(stock, x.astype(np.float64), w.astype(np.float64), pads)
        for a, b in zip(found, exact, strict=True):
            assert a.dtype == jnp.float32 and a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.max(np.abs(b), initial=1))


def test_under_vmap_jit_scan_and_twice_differentiated():
    x, w = (jnp.stack([a, 2 * a]) for a in operands(4, (6, 5), 3, 3))

    def twice(conv):
        def steepness(x, w):
            gradients = jax.grad(lambda x, w: jnp.sum(jnp.sin(conv(x, w, PAD))), (0, 1))(x, w)
            return sum(jnp.sum(g**2) for g in gradients)

        def step(total, _):
            return total, jax.vmap(jax.grad(steepness, (0, 1)))(*total)

        return jax.jit(lambda *z: lax.scan(step, z, None, length=2)[1])(x, w)

    with everywhere():
        found = twice(ours)
    for a, b in zip(found, twice(stock), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.max(np.abs(b)))


def test_the_transform_of_the_kernel_leaves_the_loop():
    """XLA takes it out by itself, if none of its results is a mere slice of the kernel."""
    x, w = operands(2, (4, 4), 24, 24)

    def attack(x, w):
        def step(z, _):
            return z + jax.grad(lambda z: jnp.sum(ours(jax.nn.relu(ours(z, w, PAD)), w, PAD)))(
                z
            ), None

        return lax.scan(step, x, None, length=5)[0]

    with everywhere():
        text = jax.jit(attack).lower(x, w).compile().as_text()
    readers = []
    for computation in re.split(r"\n(?=\S)", text):
        for name in re.findall(r"(%\S+) = f32\[3,3,24,24\]\S* get-tuple-element", computation):
            uses = re.findall(rf" (\S+)\([^)]*{re.escape(name)}[,)]", computation)
            readers += [use for use in uses if use != "tuple"]
    assert "while(" in text and not readers


@pytest.mark.multidevice
@pytest.mark.parametrize("said", [True, False])
def test_a_split_batch_stays_on_its_devices(said):
    mesh = sharding.make_mesh(4)
    same, split = sharding.replicated(mesh), sharding.split_batch(mesh)
    x, w = operands(16, (8, 8), 6, 6)

    def gradient(x, w):
        def run():
            return jax.grad(lambda x: jnp.sum(jnp.sin(ours(x, w, PAD))))(x)

        with everywhere(), cpu_conv.splits_batch(4) if said else contextlib.nullcontext():
            return run()

    program = jax.jit(gradient, in_shardings=(split, same), out_shardings=split)
    text = program.lower(x, w).compile().as_text()
    assert "while(" in text
    assert not re.search("all-gather|all-to-all|all-reduce|collective-permute", text)
    exact = jax.grad(lambda x: jnp.sum(jnp.sin(stock(x, w, PAD))))(x)
    np.testing.assert_allclose(program(x, w), exact, rtol=1e-4, atol=1e-5 * np.max(np.abs(exact)))


def test_only_what_was_measured_to_be_faster_and_never_elsewhere():
    x, w = operands(8, (16, 16), 64, 64)
    with cpu_conv.splits_batch(1):
        assert not is_winograd(x[:4], w)  # so few tiles
        assert is_winograd(x, w)
        assert not is_winograd(x, w[..., :32])
        assert not is_winograd(x, w, strides=(2, 2))
        assert not is_winograd(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
        with winograd.use("off"):
            assert not is_winograd(x, w)
        for form in ("stock", "by_platform"):
            with exported_convolutions(form):
                assert not is_winograd(x, w)
    with cpu_conv.splits_batch(4):
        assert not is_winograd(x, w)  # each device has two images
