"""ConvNeXt (Liu et al. 2022) as timm has it, also with the convolutional stem of Singh et al. 2023.

ConvNeXt-T: 28,589,128 parameters for 1,000 classes. The stem is a 4x4 convolution of stride 4, or 3x3
convolutions of stride 2 with LayerNorm and GELU (ConvStem), which makes robust training work better. There
are no BatchNorms, so that training and evaluation mode agree. Deviation: no stochastic depth.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers, global_average_pool

gelu = functools.partial(nn.gelu, approximate=False)


class Size(NamedTuple):
    """Blocks and channels of each stage, and (channels, stride) of the ConvStem's convolutions."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    conv_stem: tuple[tuple[int, int], ...]


_SMALL_STEM = ((48, 2), (96, 2))
TINY = Size((3, 3, 9, 3), (96, 192, 384, 768), _SMALL_STEM)
SMALL = Size((3, 3, 27, 3), (96, 192, 384, 768), _SMALL_STEM)
BASE = Size((3, 3, 27, 3), (128, 256, 512, 1024), ((64, 2), (96, 2), (128, 1)))
LARGE = Size((3, 3, 27, 3), (192, 384, 768, 1536), ((96, 2), (144, 2), (192, 1)))
# stem -> default normalisation; RobustBench's ViT-S alone has ImageNet's in front of the ConvStem.
STEMS = {"patch": "imagenet", "conv": "none"}


def conv_stem(layers: Layers, name: str, sizes: tuple[tuple[int, int], ...], x: jax.Array):
    """3x3 convolutions of (channels, stride), each with LayerNorm and GELU; [B, H, W, C] -> [B, h, w, F]."""
    for index, (channels, stride) in enumerate(sizes):
        x = layers.conv(f"{name}__{3 * index}", channels, stride=stride, bias=True)(x)
        x = gelu(layers.layer_norm(f"{name}__{3 * index + 1}")(x))
    return x


class ConvNeXtBlock(nn.Module):
    """x + gamma * (depthwise 7x7, LayerNorm, linear of four times the channels, GELU, linear).

    Attributes:
      layers: makes the layers.
    """

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array):
        """[B, H, W, C] -> [B, H, W, C]."""
        channels = x.shape[-1]
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (channels,), jnp.float32)
        y = self.layers.conv("conv_dw", channels, 7, groups=channels, bias=True)(x)
        y = self.layers.layer_norm("norm")(y)
        y = gelu(self.layers.dense("mlp__fc1", 4 * channels)(y))
        return x + gamma.astype(x.dtype) * self.layers.dense("mlp__fc2", channels)(y)


class ConvNeXt(nn.Module):
    """Stem, four stages of ConvNeXtBlocks with a LayerNorm and a 2x2 convolution between them, pool, linear.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
      size: TINY, SMALL, BASE or LARGE.
      stem: "patch" or "conv".
    """

    layers: Layers
    num_classes: int
    size: Size
    stem: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32, whatever `train`."""
        blocks, widths, stem = self.size
        layers, none = self.layers, (0, 0)
        if self.stem == "conv":
            x = conv_stem(layers, "stem__stem", stem, x)
        else:
            x = layers.conv("stem__0", widths[0], 4, 4, padding=none, bias=True)(x)
            x = layers.layer_norm("stem__1")(x)
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            if stage:
                x = layers.layer_norm(f"stages__{stage}__downsample__0")(x)
                name = f"stages__{stage}__downsample__1"
                x = layers.conv(name, width, 2, 2, padding=none, bias=True)(x)
            for index in range(count):
                x = layers.block(ConvNeXtBlock)(layers, name=f"stages__{stage}__blocks__{index}")(x)
        x = layers.layer_norm("head__norm")(global_average_pool(x))
        return layers.linear("head__fc", self.num_classes)(x)


def convnext(layers: Layers, num_classes: int, *, size: Size, stem: str = "patch") -> Architecture:
    """ConvNeXt-T, S, B or L for images whose sides are multiples of 32.

    Args:
      layers: makes the layers.
      num_classes: number of logits.
      size: TINY, SMALL, BASE or LARGE.
      stem: "patch", a 4x4 convolution of stride 4, or "conv", the ConvStem.

    Returns:
      The architecture.

    Raises:
      ValueError: unknown stem.
    """
    check_stem(stem)
    layers = dataclasses.replace(layers, normal=True)
    module = ConvNeXt(layers, num_classes, size, stem)
    return Architecture(module, 32, multiple_of=32, normalization=STEMS[stem])


def check_stem(stem: str) -> None:
    """Raises ValueError unless it is "patch" or "conv"."""
    if stem not in STEMS:
        raise ValueError(f"stem={stem!r} is unknown; choose one of {tuple(STEMS)}")
