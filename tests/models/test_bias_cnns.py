"""cnn_a and resnet4b (`verification_networks`): biased convolutions and channel-first flattening."""

import jax
import numpy as np
import pytest
import verification_networks

from ard_jax import interop, models
from ard_jax.models import described


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


@pytest.mark.parametrize(
    ("name", "definition", "size"), [("cnn_a", cnn_a, 214_918), ("resnet4b", resnet4b, 123_734)]
)
def test_published_size_and_logits_by_definition(name, definition, size):
    assert models.num_params(verification_networks.create(name)) == size
    shape = (16, 24, 3)  # not square: height and width must not be exchanged in flattening
    bundle = verification_networks.create(name, 7, shape)
    rng = np.random.default_rng(0)
    layout = interop.torch_layout(bundle)
    state = {key: rng.normal(size=size).astype(np.float32) for key, size in layout.items()}
    variables = interop.torch_names.to_variables(bundle, state)
    x = rng.uniform(size=(3, *shape)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        logits, stats = jax.jit(lambda v, x: bundle.apply(v, x, False))(variables, x)
    expected = definition(x.transpose(0, 3, 1, 2).astype(np.float64), state)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert stats == {}


@pytest.mark.parametrize("name", verification_networks.NETWORKS)
def test_the_package_does_not_have_them(name):
    with pytest.raises(ValueError, match=f"unknown model '{name}'"):
        models.create(name)
    description = {"model": name, "kwargs": {}, "init": "torch", "normalization": None,
                   "precision": "float32", "num_classes": 10, "image_shape": [32, 32, 3]}  # fmt: skip
    with pytest.raises(ValueError, match=f"'{name}' is no longer part.*attacks.autoattack"):
        described.from_description(description)
    layout = interop.torch_layout(verification_networks.create(name))
    with pytest.raises(ValueError, match="no classifier of ours"):
        interop.recognise.recognise({key: np.ones(size) for key, size in layout.items()})


def test_other_networks_have_no_convolution_bias():
    layout = interop.torch_layout(models.create("resnet20"))
    assert not [name for name in layout if "conv" in name and name.endswith("bias")]
