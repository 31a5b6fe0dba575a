"""Vision transformers (Dosovitskiy et al. 2021; DeiT, Touvron et al. 2021) as timm has them.

ViT-S with patches of 16 at 224 pixels: 22,050,664 parameters for 1,000 classes; DeiT's networks have the same
form. Images are cut into patches of P x P pixels by one convolution, or by the ConvStem of Singh et al. 2023
(3x3 convolutions of stride 2 with LayerNorm and GELU, then a 1x1 convolution), which makes robust training
work better. There are no BatchNorms, so that training and evaluation mode agree. Deviation: no dropout and no
stochastic depth.
"""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ard_jax.losses import checks
from ard_jax.models.bundle import Architecture
from ard_jax.models.convnext import STEMS, check_stem, conv_stem, gelu
from ard_jax.models.layers import Layers


class Size(NamedTuple):
    """Channels of a token, heads of an attention, and channels of the ConvStem's first convolution."""

    width: int
    heads: int
    stem: int


TINY, SMALL, BASE = Size(192, 3, 24), Size(384, 6, 48), Size(768, 12, 48)
_DEPTH = 12


class Block(nn.Module):
    """Pre-normalised attention and MLP, each added to the tokens.

    Attributes:
      layers: makes the layers.
      heads: of the attention.
    """

    layers: Layers
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array):
        """Tokens [B, N, D] -> [B, N, D]."""
        layers, (batch, tokens, width) = self.layers, x.shape
        y = layers.dense("attn__qkv", 3 * width)(layers.layer_norm("norm1")(x))
        queries, keys, values = jnp.moveaxis(y.reshape(batch, tokens, 3, self.heads, -1), 2, 0)
        y = jax.nn.dot_product_attention(queries, keys, values).reshape(x.shape)
        x = x + layers.dense("attn__proj", width)(y)
        y = gelu(layers.dense("mlp__fc1", 4 * width)(layers.layer_norm("norm2")(x)))
        return x + layers.dense("mlp__fc2", width)(y)


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, blocks, LayerNorm, linear layer of the class token.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
      size: TINY, SMALL or BASE.
      patch: side of a patch in pixels.
      stem: "patch" or "conv".
    """

    layers: Layers
    num_classes: int
    size: Size
    patch: int
    stem: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32, whatever `train`."""
        layers, width, patch = self.layers, self.size.width, self.patch
        if self.stem == "conv":
            halvings = round(math.log2(patch))
            sizes = tuple((2**i * self.size.stem, 2) for i in range(halvings))
            name = "patch_embed__proj__stem"
            x = conv_stem(layers, name, sizes, x)
            x = layers.conv(f"{name}__{3 * halvings}", width, 1, bias=True)(x)
        else:
            name = "patch_embed__proj"
            x = layers.conv(name, width, patch, patch, padding=(0, 0), bias=True)(x)
        x = x.reshape(x.shape[0], -1, width)
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, width), jnp.float32)
        shape = (1, x.shape[1] + 1, width)
        positions = self.param("pos_embed", nn.initializers.normal(0.02), shape, jnp.float32)
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, width))
        x = jnp.concatenate((token, x), axis=1) + positions.astype(x.dtype)
        for index in range(_DEPTH):
            x = layers.block(Block)(layers, self.size.heads, name=f"blocks__{index}")(x)
        return layers.linear("head", self.num_classes)(layers.layer_norm("norm")(x[:, 0]))


def vit(
    layers: Layers, num_classes: int, *, size: Size, patch: int = 16, stem: str = "patch"
) -> Architecture:
    """ViT-T, S or B for images whose sides are multiples of `patch`.

    Args:
      layers: makes the layers.
      num_classes: number of logits.
      size: TINY, SMALL or BASE.
      patch: side of a patch in pixels: 16 for 224 pixels, 4 for 32.
      stem: "patch", one convolution, or "conv", the ConvStem, for patches of 2, 4, 8 or 16.

    Returns:
      The architecture, with the default normalisation of `convnext.STEMS`. Its position embeddings are of
      one image size.

    Raises:
      ValueError: unknown stem, or a patch that it does not have.
    """
    check_stem(stem)
    patch = checks.count(patch, "patch", 1)
    if stem == "conv" and patch not in (2, 4, 8, 16):
        raise ValueError(f"patch={patch}: stem='conv' halves the image; choose 2, 4, 8 or 16")
    layers = dataclasses.replace(layers, normal=True)
    module = VisionTransformer(layers, num_classes, size, patch, stem)
    return Architecture(module, patch, multiple_of=patch, normalization=STEMS[stem])
