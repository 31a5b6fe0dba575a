"""ShuffleNetV2 x1.0 (Ma et al. 2018) as torchvision has it: 2,278,604 parameters for 1,000 classes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers, conv_norm, global_average_pool, max_pool

_STAGES = ((116, 4), (232, 8), (464, 4))  # output channels, blocks


def shuffle_channels(x: jax.Array) -> jax.Array:
    """Channels of the first and second half of [B, H, W, C] in turns; same shape and dtype."""
    *size, channels = x.shape
    return jnp.swapaxes(x.reshape(*size, 2, channels // 2), -1, -2).reshape(x.shape)


class ShuffleUnit(nn.Module):
    """Two branches, joined and shuffled: the first is half of x, or, with stride 2, convolutions of x.

    Attributes:
      layers: makes the layers.
      features: output channels.
      stride: 1 or 2.
    """

    layers: Layers
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """[B, H, W, C] -> [B, H', W', features]."""
        half = self.features // 2
        if self.stride == 1:
            first, second = jnp.split(x, 2, axis=-1)
        else:
            second = x
            first = self._depthwise("branch1", 0, x, train)
            first = self._pointwise("branch1", 2, half, first, train)
        second = self._pointwise("branch2", 0, half, second, train)
        second = self._depthwise("branch2", 3, second, train)
        second = self._pointwise("branch2", 5, half, second, train)
        return shuffle_channels(jnp.concatenate((first, second), axis=-1))

    def _depthwise(self, branch: str, part: int, x: jax.Array, train: bool):
        channels = x.shape[-1]
        conv = self.layers.conv(f"{branch}__{part}", channels, stride=self.stride, groups=channels)
        return self.layers.norm(f"{branch}__{part + 1}")(conv(x), train)

    def _pointwise(self, branch: str, part: int, features: int, x: jax.Array, train: bool):
        x = self.layers.conv(f"{branch}__{part}", features, 1)(x)
        return nn.relu(self.layers.norm(f"{branch}__{part + 1}")(x, train))


class ShuffleNetV2(nn.Module):
    """Stem of stride 2, 3x3 max-pooling of stride 2, stages, 1x1 convolution, global pool, linear.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
    """

    layers: Layers
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32."""
        x = max_pool(conv_norm(self.layers, "conv1", 24, 3, 2)(x, train, nn.relu))
        for stage, (features, count) in enumerate(_STAGES, 2):
            for index in range(count):
                stride = 1 if index else 2
                name = f"stage{stage}__{index}"
                block = self.layers.block(ShuffleUnit)
                x = block(self.layers, features, stride, name=name)(x, train)
        x = conv_norm(self.layers, "conv5", 1024, 1)(x, train, nn.relu)
        return self.layers.linear("fc", self.num_classes)(global_average_pool(x))


def shufflenet_v2(layers: Layers, num_classes: int) -> Architecture:
    """ShuffleNetV2 x1.0 (see the module's docstring)."""
    return Architecture(ShuffleNetV2(layers, num_classes), 32, normalization="imagenet")
