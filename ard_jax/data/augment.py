"""Random augmentation on device: pure functions of a key, uint8 in, float32 in [0,1] out.

Normalisation is no part of it: it lies inside the networks, so that attacks work in pixel space.

Of the stronger kinds "cropshift", "idbh_weak" and "idbh_strong" are those of Li and Spratling (2023, ICLR,
arXiv 2301.09879; CIFAR-10's tables), and "autoaugment" is Cubuk et al.'s CIFAR-10 policy (2019, CVPR, arXiv
1805.09501) with torchvision's magnitudes, nearest pixels and black fill, after crop and flip. What mixes two
images is in `mixing`.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax.data import image_operations
from ard_jax.losses import checks

PLAIN = ("none", "crop_flip", "crop")
ON_HOST = "resized_crop"  # images come as random crops, see `geometry`
STRONG = ("cropshift", "idbh_weak", "idbh_strong", "autoaugment")
KINDS = (*PLAIN, ON_HOST, *STRONG)
PADDED = ("crop_flip", "crop", "autoaugment")  # kinds that begin with a random crop
# Largest shift of CropShift as a part of the side: 10 of CIFAR's 32 pixels.
_SHIFT = 10 / 32
# IDBH: operation, smallest and largest value, whether its sign is random; each is as likely as the others. A
# shear is along either axis, from the top or the left.
_IDBH = (
    ("color", 0.1, 1.9, False),
    ("brightness", 0.5, 1.9, False),
    ("contrast", 0.5, 1.9, False),
    ("sharpness", 0.1, 1.9, False),
    ("autocontrast", 0.0, 0.0, False),
    ("equalize", 0.0, 0.0, False),
    ("shear_x", math.tan(0.05), math.tan(0.15), True),
    ("rotate", 1.0, 10.0, True),
)
_ERASED = {"idbh_weak": 0.5, "idbh_strong": 1.0}  # probability of RandomErasing
_MOST_DRAWS = 40
_ERASED_AREA, _ERASED_RATIO, _ERASE_TRIES = (0.02, 0.33), (0.3, 3.3), 10
# AutoAugment's CIFAR-10 policy: pairs of (operation, probability, magnitude 0 ... 9).
_POLICY = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
)

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

    Raises:
      ValueError: they are not uint8.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"images are {images.dtype}; give uint8, which alone is divided by 255")
    values = images.astype(jnp.float32)
    return values * jnp.float32(_HIGH) + values * jnp.float32(_LOW)


def augment(
    key: Any, images: jax.Array, kind: str = "crop_flip", pad: int = 4, flip: bool = True
) -> jax.Array:
    """Augments a batch; every example by a key of its own, so the result is one of no device count.

    Args:
      key: PRNG key or seed; the same gives the same result.
      images: uint8 [B,H,W,C].
      kind: "none": only converted. "crop": padded by `pad` zeros on each side, then a crop of the
        old size at a random place (right for digits, which have no mirror images). "crop_flip":
        also mirrored left to right with probability 1/2: torchvision's RandomCrop(H, padding=pad)
        and RandomHorizontalFlip, as all CIFAR recipes of the papers. "cropshift": a crop smaller by r pixels,
        split between height and width, at a random place of a black image of the old size, r uniform in 0
        ... 10/32 of the side. "resized_crop": only converted, as images are cropped when they are read.
        "idbh_weak": also one of eight colour and shape operations, and with
        probability 1/2 a black rectangle; "idbh_strong": always one. "autoaugment": a crop, then a random
        one of 25 pairs of operations.
      pad: zeros on each side, in pixels, at least 0 and less than a side; of kinds that begin with a crop.
      flip: whether kinds after "crop" mirror too, which "crop_flip" always does and "crop" never.

    Returns:
      float32 [B,H,W,C] in [0,1], values exactly those of float32(images) / 255.

    Raises:
      ValueError: unknown kind, a bad pad or flip, or images that are not uint8 [B,H,W,C].
    """
    if kind not in KINDS:
        raise ValueError(f"augmentation kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    images = checks.array(images, "images")
    if images.ndim != 4 or images.dtype != jnp.uint8:
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; give uint8 [B, H, W, C]"
        )
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise ValueError(
            f"images have shape {images.shape}: channels come last here; give transpose(0, 2, 3, 1) of them"
        )
    most = min(images.shape[1:3]) - 1 if kind in PADDED else math.inf
    checks.count(pad, "pad", 0, most)
    checks.flag(flip, "flip")
    return _augment(checks.random_key(key), images, kind, pad, flip)


@functools.partial(jax.jit, static_argnames=("kind", "pad", "flip"))
def _augment(key: jax.Array, images: jax.Array, kind: str, pad: int, flip: bool) -> jax.Array:
    if kind not in ("none", ON_HOST):
        keys = jax.random.split(key, len(images))
        one = _crop if kind in PLAIN else _strong
        images = jax.vmap(lambda k, image: one(k, image, plain(kind, flip), pad, kind))(
            keys, images
        )
    return to_float(images)


def plain(kind: str, flip: bool) -> str:
    """The plain kind, of `PLAIN`, that a stronger one is built on; a plain one is its own."""
    if kind not in STRONG:
        return kind
    return "crop_flip" if flip else "crop"


def _crop(key: jax.Array, image: jax.Array, base: str, pad: int, _: str = "") -> jax.Array:
    crop_key, flip_key = jax.random.split(key)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
    image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    if base != "crop_flip":
        return image
    return jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)


def _strong(key: jax.Array, image: jax.Array, base: str, pad: int, kind: str) -> jax.Array:
    """One image under a kind of `STRONG`."""
    crop_key, key = jax.random.split(key)
    draws = _Draws(key)
    if kind == "autoaugment":
        return _autoaugmented(draws, _crop(crop_key, image, base, pad))
    mirrored = draws.below(1.0) < 0.5
    image = jnp.where(mirrored, image[:, ::-1], image) if base == "crop_flip" else image
    image = _crop_shifted(draws, image)
    if kind == "cropshift":
        return image
    return _erased(draws, _recoloured(draws, image), _ERASED[kind])


class _Draws:
    """Uniform random numbers of one image, all from one call, which compiles faster than many."""

    def __init__(self, key: jax.Array):
        """Of `key`."""
        self._left = iter(jax.random.uniform(key, (_MOST_DRAWS,)))

    def below(self, end: jax.Array | float) -> jax.Array:
        """A number in [0, end)."""
        return next(self._left) * end

    def integer(self, count: jax.Array | int) -> jax.Array:
        """One of 0 ... count - 1."""
        return jnp.floor(self.below(count)).astype(jnp.int32)

    def several(self, count: int, low: float, high: float) -> jax.Array:
        """[count] numbers in [low, high)."""
        return low + (high - low) * jnp.stack([next(self._left) for _ in range(count)])


def _crop_shifted(draws: _Draws, image: jax.Array) -> jax.Array:
    total = draws.integer(1 + round(_SHIFT * min(image.shape[:2])))
    across = draws.integer(total + 1)

    def along(length: int, less: jax.Array):
        """(where each pixel comes from, whether it does) along one axis that loses `less` pixels."""
        source, target = draws.integer(less + 1), draws.integer(less + 1)
        at = jnp.arange(length) - target
        return jnp.clip(at + source, 0, length - 1), (at >= 0) & (at < length - less)

    height, width, _ = image.shape
    rows, row_there = along(height, total - across)
    columns, column_there = along(width, across)
    there = row_there[:, None] & column_there
    return jnp.where(there[..., None], image[rows[:, None], columns], 0).astype(jnp.uint8)


def _recoloured(draws: _Draws, image: jax.Array) -> jax.Array:
    """One operation of `_IDBH`; a shear is along either axis."""
    which, shear = draws.integer(len(_IDBH)), image_operations.NUMBERS["shear_x"]
    names, low, high, signed = zip(*_IDBH, strict=True)
    operation = jnp.array([image_operations.NUMBERS[name] for name in names])[which]
    upright = (operation == shear) & (draws.below(1.0) < 0.5)
    operation = jnp.where(upright, image_operations.NUMBERS["shear_y"], operation)
    low, high = jnp.array(low)[which], jnp.array(high)[which]
    value = low + draws.below(high - low)
    negative = jnp.array(signed)[which] & (draws.below(1.0) < 0.5)
    return image_operations.apply(image, operation, jnp.where(negative, -value, value))


def _erased(draws: _Draws, image: jax.Array, probability: float) -> jax.Array:
    """The RandomErasing of torchvision with its defaults and value 0, but for the probability."""
    height, width, _ = image.shape
    wanted = draws.below(1.0) < probability
    area = height * width * draws.several(_ERASE_TRIES, *_ERASED_AREA)
    ratio = jnp.exp(draws.several(_ERASE_TRIES, *(math.log(r) for r in _ERASED_RATIO)))
    sizes = jnp.round(jnp.stack([jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)]))
    fits = (sizes[0] < height) & (sizes[1] < width)
    size = sizes[:, jnp.argmax(fits)].astype(jnp.int32)  # of the first try that fits
    inside = []
    for length, part in zip((height, width), size, strict=True):
        at = jnp.arange(length) - draws.integer(length - part + 1)
        inside.append((at >= 0) & (at < part))
    gone = inside[0][:, None] & inside[1] & wanted & jnp.any(fits)
    return jnp.where(gone[..., None], 0, image).astype(jnp.uint8)


def _policy_values(height: int, width: int) -> tuple[np.ndarray, ...]:
    """(operation, probability, value at either sign) of `_POLICY`, each [25,2]."""

    def values(name: str, magnitude: int) -> tuple[float, float]:
        part = magnitude / 9
        if name == "posterize":
            return 8.0 - round(4 * part), 8.0 - round(4 * part)
        if name == "solarize":
            return 255 * (1 - part), 255 * (1 - part)
        if name in ("brightness", "contrast", "color", "sharpness"):
            return 1 + 0.9 * part, 1 - 0.9 * part
        side = {"translate_x": width, "translate_y": height}.get(name)
        size = (
            float(int(150 / 331 * side * part))
            if side
            else part * (30 if name == "rotate" else 0.3)
        )
        return size, -size

    numbers = image_operations.NUMBERS
    flat = [(numbers[n], p, *values(n, m)) for pair in _POLICY for n, p, m in pair]
    return tuple(np.array(column).reshape(-1, 2) for column in zip(*flat, strict=True))


def _autoaugmented(draws: _Draws, image: jax.Array) -> jax.Array:
    which = draws.integer(len(_POLICY))
    columns = (jnp.array(column) for column in _policy_values(*image.shape[:2]))
    operation, probability, plus, minus = (column[which] for column in columns)
    for i in range(2):
        done = draws.below(1.0) < probability[i]
        value = jnp.where(draws.below(1.0) < 0.5, plus[i], minus[i])
        image = image_operations.apply(image, jnp.where(done, operation[i], 0), value)
    return image
