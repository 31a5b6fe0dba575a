"""Residual networks with post-activation blocks, and the CIFAR ResNet-18 among them.

Layout of ResNet-18 (eminentgu/CIARD, cifar10_models/resnet.py): 3x3 stem of stride 1 without max-pooling,
stages 64/128/256/512 of two blocks, strides 1/2/2/2. 11,173,962 parameters for 10 classes. Deviation: the
average pool of size 4 is a global one, which is the same at 32x32 and lets larger images through.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers, global_average_pool


def pad_shortcut(x: jax.Array, features: int, stride: int):
    """Parameter-free shortcut ("option A"): every stride-th pixel, zeros as extra channels.

    As in akamaster/pytorch_resnet_cifar10: half of the zeros before the channels, half after.

    Args:
      x: [B, H, W, C].
      features: channels of the result, at least C.
      stride: 1 or 2.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), features], dtype of x.
    """
    extra = features - x.shape[-1]
    before = extra // 2
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (before, extra - before)))


class BasicBlock(nn.Module):
    """conv3x3(stride)-BN-ReLU-conv3x3-BN, plus shortcut, ReLU.

    The shortcut is the identity where shapes agree.

    Attributes:
      layers: makes the layers.
      features: output channels.
      stride: stride of the first convolution and of the shortcut.
      shortcut: name of the shortcut's 1x1 convolution and BN ("shortcut" or "downsample"); None: the
        parameter-free `pad_shortcut`.
    """

    layers: Layers
    features: int
    stride: int = 1
    shortcut: str | None = "shortcut"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """[B, H, W, C] -> [B, H', W', features]."""
        y = self.layers.conv("conv1", self.features, stride=self.stride)(x)
        y = nn.relu(self.layers.norm("bn1")(y, train))
        y = self.layers.conv("conv2", self.features)(y)
        y = self.layers.norm("bn2")(y, train)
        if self.stride != 1 or x.shape[-1] != self.features:
            if self.shortcut is None:
                x = pad_shortcut(x, self.features, self.stride)
            else:
                conv = self.layers.conv(f"{self.shortcut}__0", self.features, 1, self.stride)
                x = self.layers.norm(f"{self.shortcut}__1")(conv(x), train)
        return nn.relu(y + x)


class ResNet(nn.Module):
    """3x3 stem, stages of BasicBlocks (all but the first stage halve the image), global pool, linear.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
      widths: channels of each stage; the stem has those of the first.
      blocks: blocks of each stage.
      shortcut: see BasicBlock.
      head: name of the linear layer.
      stem_stride: stride of the stem; 2 makes a network of a quarter of the cost.
    """

    layers: Layers
    num_classes: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    shortcut: str | None = "shortcut"
    head: str = "linear"
    stem_stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32."""
        x = self.layers.conv("conv1", self.widths[0], stride=self.stem_stride)(x)
        x = nn.relu(self.layers.norm("bn1")(x, train))
        for stage, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"layer{stage + 1}__{i}"
                x = BasicBlock(self.layers, width, stride, self.shortcut, name=name)(x, train)
        return self.layers.linear(self.head, self.num_classes)(global_average_pool(x))


def resnet18(layers: Layers, num_classes: int) -> Architecture:
    """The CIFAR ResNet-18 (see the module's docstring)."""
    module = ResNet(layers, num_classes, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2))
    return Architecture(module, min_size=8)
