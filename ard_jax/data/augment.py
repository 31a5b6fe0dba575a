"""Random augmentation on device: pure functions of a key, uint8 in, float32 in [0,1] out.

Normalisation is no part of it: it lies inside the networks, so that attacks work in pixel space.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

KINDS = ("none", "crop_flip", "crop")

# 1/255 = _HIGH + _LOW, where _HIGH has 16 significant bits: an 8-bit integer times it is exact.
_HIGH = 32896 / 2**23
_LOW = 1 / 255 - _HIGH


def to_float(images: jax.Array) -> jax.Array:
    """uint8 to float32 in [0,1]: exactly float32(v) / float32(255), also under jit.

    XLA compiles a division by 255 to a multiplication by the rounded 1/255, which is off by one bit
    for half of the values. A product in two parts of 1/255 is rounded only once in effect, so it
    gives the nearest float32 for each of the 256 values, with or without fused multiply-add.

    Args:
      images: uint8, any shape.

    Returns:
      float32, same shape.
    """
    values = images.astype(jnp.float32)
    return values * jnp.float32(_HIGH) + values * jnp.float32(_LOW)


@functools.partial(jax.jit, static_argnames=("kind", "pad"))
def augment(key: jax.Array, images: jax.Array, kind: str = "crop_flip", pad: int = 4) -> jax.Array:
    """Augments a batch; every example by a key of its own, so the result is one of no device count.

    Args:
      key: typed PRNG key; the same key gives the same result.
      images: uint8 [B,H,W,C].
      kind: "none": only converted. "crop": padded by `pad` zeros on each side, then a crop of the
        old size at a random place (right for digits, which have no mirror images). "crop_flip":
        also mirrored left to right with probability 1/2: torchvision's RandomCrop(H, padding=pad)
        and RandomHorizontalFlip, as all CIFAR recipes of the papers.
      pad: zeros on each side, in pixels, at least 0.

    Returns:
      float32 [B,H,W,C] in [0,1], values exactly those of float32(images) / 255.

    Raises:
      ValueError: unknown kind, negative pad, or images that are not uint8 [B,H,W,C].
    """
    if kind not in KINDS:
        raise ValueError(f"augmentation kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if pad < 0:
        raise ValueError(f"pad={pad}: give the number of padded pixels, 0 or more")
    if images.ndim != 4 or images.dtype != jnp.uint8:
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; give uint8 [B, H, W, C]"
        )
    if kind != "none":

        def one(key, image):
            return _cropped(_pad(image, pad), _drawn(key, kind, pad), image.shape)

        images = jax.vmap(one)(jax.random.split(key, len(images)), images)
    return to_float(images)


class Moves(NamedTuple):
    """What augmentation does to the images of a batch.

    Attributes:
      top, left: int32 [B], place of the crop in the padded image, 0 to 2 pad.
      flip: bool [B], mirrored after the crop; None where the kind of augmentation never mirrors.
    """

    top: jax.Array
    left: jax.Array
    flip: jax.Array | None


def padding(kind: str, pad: int) -> int:
    """Zeros on each side of the images before the crop, in pixels; 0 where nothing is cropped."""
    return 0 if kind == "none" else pad


def draw(keys: jax.Array, kind: str, pad: int) -> Moves:
    """The moves of keys [B], one for each image: those of `augment`, which splits its key into them."""
    return jax.vmap(lambda key: _drawn(key, kind, padding(kind, pad)))(keys)


def move(images: jax.Array, moves: Moves, pad: int) -> jax.Array:
    """Images [B,H,W,C] of any dtype, padded by zeros, cropped to [H,W] and mirrored as the moves say."""

    def one(image, m):
        return _cropped(_pad(image, pad), m, image.shape)

    return jax.vmap(one)(images, moves)


def _drawn(key: jax.Array, kind: str, pad: int) -> Moves:
    crop_key, flip_key = jax.random.split(key)
    top, left = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
    return Moves(top, left, jax.random.bernoulli(flip_key) if kind == "crop_flip" else None)


def _pad(image: jax.Array, pad: int) -> jax.Array:
    return jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))


def _cropped(frame: jax.Array, m: Moves, shape: tuple[int, ...]) -> jax.Array:
    return _mirrored(jax.lax.dynamic_slice(frame, (m.top, m.left, 0), shape), m.flip)


def _mirrored(image: jax.Array, flip: jax.Array | None) -> jax.Array:
    return image if flip is None else jnp.where(flip, image[:, ::-1], image)
