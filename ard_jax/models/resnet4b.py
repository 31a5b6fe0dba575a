"""ResNet-4B of alpha-beta-CROWN (VNN-COMP 2021): a small residual network without BatchNorm.

Verified-Intelligence/alpha-beta-CROWN, resnet4b. Every convolution and shortcut has a bias. 123,734
parameters for 10 classes and 32x32 images; features are flattened channel-first, see `cnn_a`.
"""

import flax.linen as nn

from ard_jax.models.bundle import Architecture
from ard_jax.models.cnn_a import flatten_channel_first
from ard_jax.models.layers import Layers


class PlainBlock(nn.Module):
    """conv3x3(stride)-ReLU-conv3x3, plus shortcut, ReLU; all with bias.

    The shortcut is a 1x1 convolution where shapes change, else the identity.

    Attributes:
      layers: makes the layers.
      features: output channels.
      stride: stride of the first convolution and of the shortcut.
    """

    layers: Layers
    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        """[B, H, W, C] -> [B, H', W', features]."""
        channels = x.shape[-1]
        conv1 = self.layers.conv("conv1", self.features, stride=self.stride, bias_inputs=channels)
        conv2 = self.layers.conv("conv2", self.features, bias_inputs=self.features)
        y = conv2(nn.relu(conv1(x)))
        if self.stride != 1 or channels != self.features:
            shortcut = self.layers.conv(
                "shortcut__0", self.features, 1, self.stride, bias_inputs=channels
            )
            x = shortcut(x)
        return nn.relu(y + x)


class ResNet4b(nn.Module):
    """conv3x3(16, stride 2)-ReLU, 2 stages of 2 blocks (32 channels, strides 2), linear(100)-ReLU, linear.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
    """

    layers: Layers
    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32."""
        x = nn.relu(self.layers.conv("conv1", 16, stride=2, bias_inputs=x.shape[-1])(x))
        for stage in (1, 2):
            for index in range(2):
                stride = 2 if index == 0 else 1
                x = PlainBlock(self.layers, 32, stride, name=f"layer{stage}__{index}")(x)
        x = nn.relu(self.layers.linear("linear1", 100)(flatten_channel_first(x)))
        return self.layers.linear("linear2", self.num_classes)(x)


def resnet4b(layers: Layers, num_classes: int) -> Architecture:
    """ResNet-4B (see the module's docstring)."""
    return Architecture(ResNet4b(layers, num_classes), min_size=8)
