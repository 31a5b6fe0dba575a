"""cnn_a and resnet4b: networks with biased convolutions and channel-first flattening."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import interop, models

NETWORKS = ("cnn_a", "resnet4b")


def conv(x, state, name, stride, pad):
    """[B, C, H, W] convolution by PyTorch's definition, in float64 numpy."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))
    windows = windows[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, weight) + bias[:, None, None]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


def cnn_a(x, state):
    x = relu(conv(x, state, "0", 2, 1))
    x = relu(conv(x, state, "2", 2, 1))
    return linear(relu(linear(x.reshape(len(x), -1), state, "5")), state, "7")


def resnet4b(x, state):
    x = relu(conv(x, state, "conv1", 2, 1))
    for block, stride in (("layer1.0", 2), ("layer1.1", 1), ("layer2.0", 2), ("layer2.1", 1)):
        y = conv(relu(conv(x, state, f"{block}.conv1", stride, 1)), state, f"{block}.conv2", 1, 1)
        x = relu(y + (conv(x, state, f"{block}.shortcut.0", stride, 0) if stride == 2 else x))
    return linear(relu(linear(x.reshape(len(x), -1), state, "linear1")), state, "linear2")


@pytest.mark.parametrize(("name", "definition"), [("cnn_a", cnn_a), ("resnet4b", resnet4b)])
def test_logits_by_definition(name, definition):
    shape = (16, 24, 3)  # not square: height and width must not be exchanged in flattening
    bundle = models.create(name, 7, shape)
    variables = jax.jit(bundle.init)(jax.random.key(1))
    state = interop.to_torch(bundle, variables)
    x = np.random.default_rng(0).uniform(size=(3, *shape)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        logits, stats = jax.jit(lambda v, x: bundle.apply(v, x, False))(variables, x)
    expected = definition(x.transpose(0, 3, 1, 2).astype(np.float64), state)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert stats == {}


@pytest.mark.parametrize(("name", "count"), [("cnn_a", 214_918), ("resnet4b", 123_734)])
def test_published_sizes(name, count):
    assert models.num_params(models.create(name)) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_training_mode_and_bfloat16(name):
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 8, 8, 3)), jnp.float32)
    bundle = models.create(name, 4, (8, 8, 3))
    variables = jax.jit(bundle.init)(jax.random.key(0))
    assert variables["batch_stats"] == {}
    evaluated, _ = bundle.apply(variables, x, False)
    trained, stats = bundle.apply(variables, x, True)
    np.testing.assert_allclose(evaluated, trained, rtol=0, atol=1e-6)
    assert stats == {}
    half, _ = models.create(name, 4, (8, 8, 3), dtype="bfloat16").apply(variables, x, False)
    assert half.dtype == jnp.float32
    assert 0 < float(jnp.max(jnp.abs(half - evaluated))) < 0.03 * float(jnp.max(jnp.abs(evaluated)))


@pytest.mark.parametrize("name", NETWORKS)
def test_initial_biases_fill_the_range_of_pytorch(name):
    bundle = models.create(name)
    state = interop.to_torch(bundle, jax.jit(bundle.init)(jax.random.key(0)))
    biases = {key: value for key, value in state.items() if key.endswith("bias")}
    for key, bias in biases.items():
        weight = state[key.replace("bias", "weight")]
        bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
        assert np.abs(bias).max() <= bound, key
        # Of 10 or more uniform values the largest is above half the bound, except once in 1000 draws.
        assert np.abs(bias).max() > 0.5 * bound, key


def test_initial_biases_of_flax_are_zero():
    bundle = models.create("cnn_a", init="flax")
    params = jax.jit(bundle.init)(jax.random.key(0))["params"]
    assert not np.any(params["0"]["bias"]) and np.any(params["0"]["kernel"])


def test_other_networks_have_no_convolution_bias():
    layout = interop.torch_layout(models.create("resnet20"))
    assert not [name for name in layout if "conv" in name and name.endswith("bias")]
