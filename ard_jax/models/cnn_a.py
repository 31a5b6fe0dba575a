"""cnn_a of alpha-beta-CROWN: two convolutions and two linear layers, all with bias, no normalisation layer.

Verified-Intelligence/alpha-beta-CROWN, a network of the certified-training literature small enough to be
verified. 214,918 parameters for 10 classes and 32x32 images. The features are flattened channel-first, as
PyTorch lays them out, so that the linear layer's kernel is that of the original; hence the number of
parameters depends on the image size.
"""

import flax.linen as nn
import jax.numpy as jnp

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers


def flatten_channel_first(x):
    """[B, H, W, C] -> [B, C * H * W], in the order in which PyTorch flattens [B, C, H, W]."""
    return jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)


class CnnA(nn.Module):
    """conv4x4(16, stride 2)-ReLU, conv4x4(32, stride 2)-ReLU, flatten, linear(100)-ReLU, linear.

    The layers are called by their places in the original's nn.Sequential.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
    """

    layers: Layers
    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32."""
        for name, features in (("0", 16), ("2", 32)):
            conv = self.layers.conv(name, features, 4, 2, padding=(1, 1), bias_inputs=x.shape[-1])
            x = nn.relu(conv(x))
        x = nn.relu(self.layers.linear("5", 100)(flatten_channel_first(x)))
        return self.layers.linear("7", self.num_classes)(x)


def cnn_a(layers: Layers, num_classes: int) -> Architecture:
    """cnn_a (see the module's docstring)."""
    return Architecture(CnnA(layers, num_classes), min_size=4)
