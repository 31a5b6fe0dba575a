"""MobileNetV3 (Howard et al. 2019) as torchvision has it.

Large: 5,483,032 parameters for 1,000 classes; small: 2,542,856. BatchNorm has epsilon 1e-3 and keeps 0.99 of
its running values. Deviation: no dropout before the last layer.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers, SqueezeExcitation, conv_norm, global_average_pool


class Block(NamedTuple):
    """Kernel, expanded and output channels, whether it squeezes, whether by hard swish, stride."""

    kernel: int
    expanded: int
    features: int
    squeezes: bool
    hard_swish: bool
    stride: int


class Size(NamedTuple):
    """The blocks, and the channels of the first of the two linear layers."""

    blocks: tuple[Block, ...]
    hidden: int


LARGE = Size(
    (
        Block(3, 16, 16, False, False, 1),
        Block(3, 64, 24, False, False, 2),
        Block(3, 72, 24, False, False, 1),
        Block(5, 72, 40, True, False, 2),
        Block(5, 120, 40, True, False, 1),
        Block(5, 120, 40, True, False, 1),
        Block(3, 240, 80, False, True, 2),
        Block(3, 200, 80, False, True, 1),
        Block(3, 184, 80, False, True, 1),
        Block(3, 184, 80, False, True, 1),
        Block(3, 480, 112, True, True, 1),
        Block(3, 672, 112, True, True, 1),
        Block(5, 672, 160, True, True, 2),
        Block(5, 960, 160, True, True, 1),
        Block(5, 960, 160, True, True, 1),
    ),
    1280,
)
SMALL = Size(
    (
        Block(3, 16, 16, True, False, 2),
        Block(3, 72, 24, False, False, 2),
        Block(3, 88, 24, False, False, 1),
        Block(5, 96, 40, True, True, 2),
        Block(5, 240, 40, True, True, 1),
        Block(5, 240, 40, True, True, 1),
        Block(5, 120, 48, True, True, 1),
        Block(5, 144, 48, True, True, 1),
        Block(5, 288, 96, True, True, 2),
        Block(5, 576, 96, True, True, 1),
        Block(5, 576, 96, True, True, 1),
    ),
    1024,
)


_conv_norm = functools.partial(conv_norm, momentum=0.99, epsilon=1e-3)


class InvertedResidual(nn.Module):
    """1x1-BN-act where it expands, depthwise-BN-act, squeeze and excitation, 1x1-BN; plus x if of its shape.

    Attributes:
      layers: makes the layers.
      form: its numbers.
    """

    layers: Layers
    form: Block

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """[B, H, W, C] -> [B, H', W', features]."""
        form, part = self.form, 0
        act = nn.hard_swish if form.hard_swish else nn.relu
        y = x
        if form.expanded != x.shape[-1]:
            y = _conv_norm(self.layers, "block__0", form.expanded, 1)(y, train, act)
            part = 1
        depthwise = _conv_norm(
            self.layers,
            f"block__{part}",
            form.expanded,
            form.kernel,
            form.stride,
            groups=form.expanded,
        )
        y = depthwise(y, train, act)
        if form.squeezes:
            part += 1
            squeezed = _by_eights(form.expanded / 4)
            name = f"block__{part}"
            y = SqueezeExcitation(self.layers, squeezed, nn.relu, nn.hard_sigmoid, name=name)(y)
        y = _conv_norm(self.layers, f"block__{part + 1}", form.features, 1)(y, train)
        return y + x if form.stride == 1 and x.shape[-1] == form.features else y


def _by_eights(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and at least 90 % of the channels."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


class MobileNetV3(nn.Module):
    """Stem of stride 2, blocks, 1x1 convolution, global pool, two linear layers.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
      size: LARGE or SMALL.
    """

    layers: Layers
    num_classes: int
    size: Size

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32."""
        blocks = self.size.blocks
        x = _conv_norm(self.layers, "features__0", 16, 3, 2)(x, train, nn.hard_swish)
        for index, form in enumerate(blocks, 1):
            block = self.layers.block(InvertedResidual)
            x = block(self.layers, form, name=f"features__{index}")(x, train)
        last = _conv_norm(self.layers, f"features__{len(blocks) + 1}", 6 * blocks[-1].features, 1)
        x = global_average_pool(last(x, train, nn.hard_swish))
        x = nn.hard_swish(self.layers.dense("classifier__0", self.size.hidden)(x))
        return self.layers.linear("classifier__3", self.num_classes)(x)


def mobilenet_v3(layers: Layers, num_classes: int, *, size: Size) -> Architecture:
    """MobileNetV3 LARGE or SMALL."""
    return Architecture(MobileNetV3(layers, num_classes, size), 32, normalization="imagenet")
