"""Random augmentation on device: pure functions of a key, uint8 in, float32 in [0,1] out.

Normalisation is no part of it: it lies inside the networks, so that attacks work in pixel space.
"""

import functools

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
        keys = jax.random.split(key, len(images))
        images = jax.vmap(lambda k, image: _crop(k, image, kind, pad))(keys, images)
    return to_float(images)


def _crop(key: jax.Array, image: jax.Array, kind: str, pad: int) -> jax.Array:
    crop_key, flip_key = jax.random.split(key)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
    image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    if kind != "crop_flip":
        return image
    return jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
