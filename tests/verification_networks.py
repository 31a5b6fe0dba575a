"""cnn_a and resnet4b of alpha-beta-CROWN: published robust networks, small enough for exact checks.

Verified-Intelligence/alpha-beta-CROWN. Convolutions have a bias, there is no BatchNorm, and features are
flattened channel-first, as PyTorch lays them out, so that the linear layer's kernel is that of the original.
They are written in the terms of `ard_jax.models`, and are no part of it.
"""

import flax.linen as nn
import jax.numpy as jnp
import pytest

from ard_jax import models
from ard_jax.interop import families, recognise
from ard_jax.models.bundle import Architecture, make_bundle
from ard_jax.models.layers import Layers, Linear

KUANGLIU = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}


def conv(name, features, kernel=3, stride=1, pad=None):
    pad = (kernel // 2 if pad is None else pad,) * 2
    return nn.Conv(features, (kernel, kernel), (stride, stride), (pad, pad), name=name,
                   conv_general_dilated=models.canonical_conv)  # fmt: skip


def flatten(x):
    return jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)


class CnnA(nn.Module):
    """conv4x4(16, stride 2), conv4x4(32, stride 2), linear(100), linear; places in the nn.Sequential."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool):
        for name, features in (("0", 16), ("2", 32)):
            x = nn.relu(conv(name, features, 4, 2, pad=1)(x))
        x = nn.relu(Linear(100, name="5")(flatten(x)))
        return Linear(self.num_classes, name="7")(x)


class PlainBlock(nn.Module):
    """conv3x3-ReLU-conv3x3 of 32 channels, plus a 1x1 convolution where shapes change, ReLU."""

    stride: int

    @nn.compact
    def __call__(self, x):
        y = conv("conv2", 32)(nn.relu(conv("conv1", 32, stride=self.stride)(x)))
        if self.stride != 1:
            x = conv("shortcut__0", 32, 1, self.stride)(x)
        return nn.relu(y + x)


class ResNet4b(nn.Module):
    """conv3x3(16, stride 2), 2 stages of 2 blocks (strides 2), linear(100), linear."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(conv("conv1", 16, stride=2)(x))
        for stage in (1, 2):
            for index in (0, 1):
                x = PlainBlock(2 - index, name=f"layer{stage}__{index}")(x)
        x = nn.relu(Linear(100, name="linear1")(flatten(x)))
        return Linear(self.num_classes, name="linear2")(x)


# name -> (module, smallest image size, names of its tensors, normalisation of the published weights)
NETWORKS = {
    "cnn_a": (CnnA, 4, r"[0257]\.(weight|bias)", KUANGLIU),
    "resnet4b": (
        ResNet4b, 8, r"(conv1|layer\d\.\d+\.(conv\d|shortcut\.0)|linear[12])\.(weight|bias)", "cifar10",
    ),
}  # fmt: skip


def architecture(name, num_classes):
    module, size, *_ = NETWORKS[name]
    return Architecture(module(num_classes), min_size=size)


def create(name, num_classes=10, image_shape=(32, 32, 3), normalization=None):
    """The ModelBundle, as `models.create` makes them."""
    return make_bundle(
        name, architecture(name, num_classes), num_classes, image_shape, normalization
    )


@pytest.fixture(scope="module", autouse=True)
def registered():
    """In a module that imports this, files of these networks are recognised as those of the package's."""
    with pytest.MonkeyPatch.context() as patch:
        for name, (_, _, pattern, normalization) in NETWORKS.items():

            def build(layers: Layers, num_classes, name=name):
                return architecture(name, num_classes)

            def guess(shapes, classes, name=name, normalization=normalization):
                return families.Guess(name, {}, "alpha-beta-CROWN", normalization)

            patch.setitem(models.MODELS, name, build)
            patch.setitem(families._FAMILIES, pattern, guess)
        patch.setattr(recognise, "_HEADS", (*recognise._HEADS, "linear2", "7"))
        yield
