"""Residual networks with post-activation blocks: ResNet-18, 34, 50 and WRN-50-2 in two forms.

cifar: kuangliu/pytorch-cifar (eminentgu/CIARD, cifar10_models/resnet.py): 3x3 stem of stride 1 without
  max-pooling, stages 64/128/256/512, strides 1/2/2/2. ResNet-18: 11,173,962 parameters for 10 classes.
  Deviation: the average pool of size 4 is a global one, which is the same at 32x32 and lets larger images
  through.
imagenet: torchvision.models.resnet (also the `robustness` library and RobustBench): 7x7 stem of stride 2,
  3x3 max-pooling of stride 2, and the stride of a bottleneck in its 3x3 convolution ("v1.5"). ResNet-50:
  25,557,032 parameters for 1,000 classes. Its pixels are normalised by ImageNet's mean and std by default.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers, global_average_pool, max_pool


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


class Bottleneck(nn.Module):
    """conv1x1-BN-ReLU-conv3x3(stride)-BN-ReLU-conv1x1-BN of four times the features, plus shortcut, ReLU.

    Attributes:
      layers: makes the layers.
      features: a quarter of the output channels.
      stride: stride of the 3x3 convolution and of the shortcut.
      shortcut: name of the shortcut's 1x1 convolution and BN.
      widening: channels of the 3x3 convolution, in `features`.
    """

    layers: Layers
    features: int
    stride: int = 1
    shortcut: str = "shortcut"
    widening: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """[B, H, W, C] -> [B, H', W', 4 features]."""
        inner, outputs = self.widening * self.features, 4 * self.features
        y = self.layers.conv("conv1", inner, 1)(x)
        y = nn.relu(self.layers.norm("bn1")(y, train))
        y = self.layers.conv("conv2", inner, stride=self.stride)(y)
        y = nn.relu(self.layers.norm("bn2")(y, train))
        y = self.layers.norm("bn3")(self.layers.conv("conv3", outputs, 1)(y), train)
        if self.stride != 1 or x.shape[-1] != outputs:
            conv = self.layers.conv(f"{self.shortcut}__0", outputs, 1, self.stride)
            x = self.layers.norm(f"{self.shortcut}__1")(conv(x), train)
        return nn.relu(y + x)


class ResNet(nn.Module):
    """Stem, stages of blocks (all but the first stage halve the image), global pool, linear.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
      widths: channels of each stage (a quarter of them with bottlenecks); the stem has those of the first.
      blocks: blocks of each stage.
      shortcut: see BasicBlock.
      head: name of the linear layer.
      stem_stride: stride of the 3x3 stem; 2 makes a network of a quarter of the cost.
      pooled_stem: a 7x7 convolution and a 3x3 max-pooling, both of stride 2, instead of the 3x3 stem.
      widening: 0 for BasicBlocks; else that of Bottlenecks.
    """

    layers: Layers
    num_classes: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    shortcut: str | None = "shortcut"
    head: str = "linear"
    stem_stride: int = 1
    pooled_stem: bool = False
    widening: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32."""
        kernel, stride = (7, 2) if self.pooled_stem else (3, self.stem_stride)
        x = self.layers.conv("conv1", self.widths[0], kernel, stride)(x)
        x = nn.relu(self.layers.norm("bn1")(x, train))
        if self.pooled_stem:
            x = max_pool(x)
        for stage, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                x = self._block(f"layer{stage + 1}__{i}", width, stride)(x, train)
        return self.layers.linear(self.head, self.num_classes)(global_average_pool(x))

    def _block(self, name: str, width: int, stride: int) -> nn.Module:
        if not self.widening:
            block = self.layers.block(BasicBlock)
            return block(self.layers, width, stride, self.shortcut, name=name)
        block = self.layers.block(Bottleneck)
        return block(self.layers, width, stride, str(self.shortcut), self.widening, name=name)


class Depth(NamedTuple):
    """Blocks of each stage, and the widening of their bottlenecks (0: BasicBlocks)."""

    blocks: tuple[int, int, int, int]
    widening: int = 0


RESNET18 = Depth((2, 2, 2, 2))
RESNET34 = Depth((3, 4, 6, 3))
RESNET50 = Depth((3, 4, 6, 3), 1)
WIDE_RESNET50_2 = Depth((3, 4, 6, 3), 2)

# form -> names of shortcut and linear layer, whether the stem pools, smallest image, normalisation
_FORMS = {
    "cifar": ("shortcut", "linear", False, 8, "none"),
    "imagenet": ("downsample", "fc", True, 32, "imagenet"),
}


def resnet(layers: Layers, num_classes: int, *, form: str, depth: Depth) -> Architecture:
    """A ResNet of four stages.

    Args:
      layers: makes the layers.
      num_classes: number of logits.
      form: "cifar" or "imagenet", see the module's docstring.
      depth: blocks of the stages.

    Returns:
      The architecture.

    Raises:
      ValueError: unknown form.
    """
    if form not in _FORMS:
        raise ValueError(f"form={form!r} is unknown; choose one of {tuple(_FORMS)}")
    shortcut, head, pooled, size, normalization = _FORMS[form]
    module = ResNet(
        layers, num_classes, (64, 128, 256, 512), depth.blocks, shortcut, head,
        pooled_stem=pooled, widening=depth.widening,
    )  # fmt: skip
    return Architecture(module, size, normalization=normalization)
