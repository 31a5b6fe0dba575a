"""EfficientNet-B0 (Tan and Le 2019) as torchvision has it: 5,288,548 parameters for 1,000 classes.

Deviation: no stochastic depth, and no dropout before the last layer.
"""

import flax.linen as nn
import jax

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers, SqueezeExcitation, conv_norm, global_average_pool

# (expansion, kernel, stride of the first block, output channels, blocks)
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class MBConv(nn.Module):
    """1x1-BN-SiLU if it expands, depthwise-BN-SiLU, squeeze and excitation, 1x1-BN; plus x if of its shape.

    Attributes:
      layers: makes the layers.
      expansion: hidden channels per input channel.
      kernel: of the depthwise convolution.
      features: output channels.
      stride: stride of the depthwise convolution.
    """

    layers: Layers
    expansion: int
    kernel: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """[B, H, W, C] -> [B, H', W', features]."""
        channels, part, y = x.shape[-1], 0, x
        hidden = self.expansion * channels
        if self.expansion != 1:
            y, part = conv_norm(self.layers, "block__0", hidden, 1)(y, train, nn.silu), 1
        name = f"block__{part}"
        depthwise = conv_norm(self.layers, name, hidden, self.kernel, self.stride, groups=hidden)
        y = depthwise(y, train, nn.silu)
        name = f"block__{part + 1}"
        y = SqueezeExcitation(self.layers, max(1, channels // 4), nn.silu, nn.sigmoid, name=name)(y)
        y = conv_norm(self.layers, f"block__{part + 2}", self.features, 1)(y, train)
        return y + x if self.stride == 1 and channels == self.features else y


class EfficientNet(nn.Module):
    """Stem of stride 2, stages of MBConvs, 1x1 convolution, global pool, linear.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
    """

    layers: Layers
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32."""
        x = conv_norm(self.layers, "features__0", 32, 3, 2)(x, train, nn.silu)
        for stage, (expansion, kernel, first_stride, features, count) in enumerate(_STAGES, 1):
            for index in range(count):
                stride = 1 if index else first_stride
                name = f"features__{stage}__{index}"
                block = self.layers.block(MBConv)(
                    self.layers, expansion, kernel, features, stride, name=name
                )
                x = block(x, train)
        x = conv_norm(self.layers, "features__8", 1280, 1)(x, train, nn.silu)
        return self.layers.linear("classifier__1", self.num_classes)(global_average_pool(x))


def efficientnet_b0(layers: Layers, num_classes: int) -> Architecture:
    """EfficientNet-B0 (see the module's docstring)."""
    return Architecture(EfficientNet(layers, num_classes), 32, normalization="imagenet")
