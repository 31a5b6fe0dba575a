"""MobileNetV2 for CIFAR (eminentgu/CIARD, cifar10_models/mobilenet_v2.py; from kuangliu/pytorch-cifar).

It differs from Sandler et al. 2018: ReLU instead of ReLU6, stem and second stage of stride 1, an expansion
convolution even where the expansion is 1, and a residual around EVERY stride-1 block, through a 1x1
convolution + BN where the channels change. 2,296,922 parameters for 10 classes. Our deviation: the average
pool of size 4 is a global one, the same at 32x32.
"""

import flax.linen as nn
import jax

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers, global_average_pool

# (expansion, output channels, blocks, stride of the first block)
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expansion-BN-ReLU, 3x3 depthwise(stride)-BN-ReLU, 1x1-BN; plus shortcut where stride is 1.

    Attributes:
      layers: makes the layers.
      expansion: hidden channels per input channel.
      features: output channels.
      stride: stride of the depthwise convolution.
    """

    layers: Layers
    expansion: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """[B, H, W, C] -> [B, H', W', features]."""
        hidden = self.expansion * x.shape[-1]
        y = self.layers.conv("conv1", hidden, 1)(x)
        y = nn.relu(self.layers.norm("bn1")(y, train))
        y = self.layers.conv("conv2", hidden, 3, self.stride, groups=hidden)(y)
        y = nn.relu(self.layers.norm("bn2")(y, train))
        y = self.layers.conv("conv3", self.features, 1)(y)
        y = self.layers.norm("bn3")(y, train)
        if self.stride != 1:
            return y
        if x.shape[-1] != self.features:
            x = self.layers.conv("shortcut__0", self.features, 1)(x)
            x = self.layers.norm("shortcut__1")(x, train)
        return y + x


class MobileNetV2(nn.Module):
    """The CIFAR MobileNetV2.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
    """

    layers: Layers
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32."""
        x = self.layers.conv("conv1", 32)(x)
        x = nn.relu(self.layers.norm("bn1")(x, train))
        index = 0
        for expansion, features, count, first_stride in _STAGES:
            for i in range(count):
                block = self.layers.block(InvertedResidual)(
                    self.layers,
                    expansion,
                    features,
                    first_stride if i == 0 else 1,
                    name=f"layers__{index}",
                )
                x = block(x, train)
                index += 1
        x = self.layers.conv("conv2", 1280, 1)(x)
        x = nn.relu(self.layers.norm("bn2")(x, train))
        return self.layers.linear("linear", self.num_classes)(global_average_pool(x))


def mobilenet_v2(layers: Layers, num_classes: int) -> Architecture:
    """The CIFAR MobileNetV2 (see the module's docstring)."""
    return Architecture(MobileNetV2(layers, num_classes), min_size=8)
