"""Mixup and CutMix: two images of a batch in one, with labels in proportion.

Mixup is Zhang et al.'s (2018, ICLR, arXiv 1710.09412), CutMix Yun et al.'s (2019, ICCV, arXiv 1905.04899),
which Rebuffi et al. (2021, arXiv 2103.01946) train with. Deviation: every image draws its own share, kind and
partner; timm, which Singh et al. (2023) use, draws one share and kind for a batch.
"""

import functools

import jax
import jax.numpy as jnp

from ard_jax.losses import checks


def mix(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    probability: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Mixes every image with another one of the batch, and their labels.

    Args:
      key: PRNG key or seed.
      images: float32 [B,H,W,C] in [0,1].
      labels: float32 [B,K], a distribution for each image.
      mixup: alpha of Mixup, w x_i + (1 - w) x_j with w ~ Beta(alpha, alpha); 0: none.
      cutmix: alpha of CutMix: a window of the share ~ Beta(alpha, alpha) of the area, before it is cut at the
        border, with its centre anywhere, is that of another image; a label counts as much as the pixels that
        are its image's. 0: none. With both each image gets either with probability 1/2.
      probability: with which an image is mixed.

    Returns:
      (images, labels) of the same shapes, images in [0,1].

    Raises:
      ValueError: labels that are no distributions, such as class numbers, a negative alpha, neither, or a
        probability outside [0, 1].
    """
    key, count = checks.random_key(key), len(images)
    if labels.ndim != 2 or len(labels) != count:
        raise ValueError(
            f"labels have shape {labels.shape}; give distributions [{count},K], as jax.nn.one_hot does"
        )
    for name, value in {"mixup": mixup, "cutmix": cutmix}.items():
        checks.number(value, name, 0.0)
    checks.number(probability, "probability", 0.0, 1.0)
    if not (mixup or cutmix):
        raise ValueError("mixup=0 and cutmix=0: give an alpha above 0 to one of them")
    *keys, order_key, chance_key, kind_key = jax.random.split(key, 5)
    order = jax.random.permutation(order_key, count)
    mixed = jax.random.uniform(chance_key, (count,)) < probability
    kinds = [
        functools.partial(make, alpha)
        for make, alpha in ((_mixup, mixup), (_cutmix, cutmix))
        if alpha
    ]
    found = [make(k, images, images[order]) for make, k in zip(kinds, keys, strict=False)]
    pixels, kept = found[0]
    if len(found) == 2:
        first = jax.random.bernoulli(kind_key, 0.5, (count,))
        pixels = jnp.where(first[:, None, None, None], pixels, found[1][0])
        kept = jnp.where(first, kept, found[1][1])
    pixels = jnp.where(mixed[:, None, None, None], pixels, images)
    kept = jnp.where(mixed, kept, 1.0)[:, None]
    return pixels, kept * labels + (1 - kept) * labels[order]


def _share(key: jax.Array, alpha: float, count: int) -> jax.Array:
    """[count] draws of Beta(alpha, alpha)."""
    if alpha == 1:
        return jax.random.uniform(key, (count,))
    return jax.random.beta(key, alpha, alpha, (count,))


def _mixup(alpha: float, key: jax.Array, images: jax.Array, others: jax.Array):
    """(images, the share [B] that is an image's own)."""
    kept = _share(key, alpha, len(images))
    weight = kept[:, None, None, None]
    # w + (1 - w) is not 1 for every float.
    return jnp.clip(weight * images + (1 - weight) * others, 0.0, 1.0), kept


def _cutmix(alpha: float, key: jax.Array, images: jax.Array, others: jax.Array):
    """(images, the share [B] that is an image's own)."""
    count, height, width, _ = images.shape
    area_key, place_key = jax.random.split(key)
    side = jnp.sqrt(_share(area_key, alpha, count))[:, None]
    place = jax.random.uniform(place_key, (2, count, 1))

    def within(length: int, centre: jax.Array) -> jax.Array:
        size, middle = jnp.floor(side * length), jnp.floor(centre * length)
        first, at = middle - jnp.floor(size / 2), jnp.arange(length)
        return (at >= first) & (at < first + size)

    window = within(height, place[0])[:, :, None] & within(width, place[1])[:, None, :]
    kept = 1 - jnp.mean(window.astype(jnp.float32), (1, 2))
    return jnp.where(window[..., None], others, images), kept
