"""Threat model: what an attack may do to an image, and where it starts.

Images are float32 [B,H,W,C] in [clip_min, clip_max], normally [0,1]; eps is in the same unit (8/255
means 8 grey levels). For "linf" the ball is per pixel and channel, for "l2" per image.
"""

import dataclasses
import functools
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import rng
from ard_jax.losses import checks

NORMS = ("linf", "l2")
STARTS = ("none", "uniform", "gauss")
# When the perturbation is cut back to the ball and the image to its range, after every step:
#   ball_then_range  TRADES, torchattacks, the training attacks of the ARD family
#   range_then_ball  CIARD's and MTARD's evaluation PGD (after Madry et al.)
#   range_at_end     CIARD's CW: the ball after every step, the range once after the last
#   range_only       N-FGSM: no ball; eps is the unit of start and step
ORDERS = ("ball_then_range", "range_then_ball", "range_at_end", "range_only")
LEAST_EPS = 0.1 / 255  # in [0,1] pixels; below it 8/255 was rather divided by 255 once more
_SLACK = 1e-4  # of the range, what rounding may leave outside of ball and range


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """What an attack may do to an image.

    Attributes:
      eps: radius in pixel units; may be traced.
      norm: "linf" or "l2".
      clip_min: lowest pixel value.
      clip_max: highest pixel value.
      order: in which an iterate is cut back, one of `ORDERS`.

    Raises:
      ValueError: on construction, for a bad value; the message names it and the fix.
    """

    eps: float | jax.Array
    norm: str = "linf"
    clip_min: float = 0.0
    clip_max: float = 1.0
    order: str = "ball_then_range"

    def __post_init__(self):
        """Checks every field; a traced eps passes."""
        checks.choice(self.norm, "norm", NORMS)
        checks.choice(self.order, "order", ORDERS)
        low, high = self.clip_min, self.clip_max
        checks.number(low, "clip_min", -math.inf)
        checks.number(high, "clip_max", -math.inf)
        if not low < high:
            raise ValueError(f"clip_min={low}, clip_max={high}: the range is empty")
        self.check_length(self.eps, "eps")

    def check_length(self, value: Any, name: str) -> None:
        """Raises ValueError unless a readable radius or step size is one of this range of pixels."""
        fix = f"; {name} is in pixel units of the image, so write 8/255 for 8 grey levels of [0,1]"
        longest = self.clip_max - self.clip_min if self.norm == "linf" else math.inf
        checks.number(value, name, 0.0, longest, fix)

    def check_reach(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError where a readable L2 radius is beyond any two images [H,W,C] of the range."""
        if self.norm == "l2":
            widest = (self.clip_max - self.clip_min) * math.sqrt(math.prod(shape))
            fix = (
                f"; no two images of shape {tuple(shape)} are further apart in L2, in pixel units of the "
                "image (128/255 = 0.502)"
            )
            checks.number(self.eps, "eps", 0.0, widest, fix)

    def astype(self, dtype: Any) -> Self:
        """Returns the same with eps as an array of this type."""
        return dataclasses.replace(self, eps=jnp.asarray(self.eps, dtype))

    def clip(self, x: jax.Array) -> jax.Array:
        """Cuts images to the pixel range."""
        return jnp.clip(x, self.clip_min, self.clip_max)

    def cut(self, x: jax.Array, center: jax.Array) -> jax.Array:
        """Cuts iterates back to the ball around `center` and to the range, in this order."""
        if self.order == "range_then_ball":
            return project(self.clip(x), center, self.eps, self.norm)
        if self.order != "range_only":
            x = project(x, center, self.eps, self.norm)
        return x if self.order == "range_at_end" else self.clip(x)


def check_static(value: Any, name: str) -> None:
    """Raises ValueError for an array of JAX, traced or not, where a program is made for a number."""
    if isinstance(value, jax.Array):
        raise ValueError(
            f"{name} is a JAX array; give a Python number, such as float(eps), or pass it to the attack's "
            "run() or function, which take traced ones"
        )


def per_image(value: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes [B] to [B,1,1,...], to broadcast against `like`."""
    return value.reshape(value.shape + (1,) * (like.ndim - 1))


def l2_norm(x: jax.Array) -> jax.Array:
    """Euclidean norm of each image, [B,...] -> [B]; safe for very small and very large entries."""
    flat = x.reshape(x.shape[0], -1)
    largest = jnp.max(jnp.abs(flat), axis=1)
    unit = jnp.where(largest > 0, largest, 1.0)
    return unit * jnp.sqrt(jnp.sum(jnp.square(flat / unit[:, None]), axis=1))


def size(x: jax.Array, norm: str) -> jax.Array:
    """Length ("l2") or largest |entry| ("linf") of each image, [B,...] -> [B]."""
    return l2_norm(x) if norm == "l2" else jnp.max(jnp.abs(x.reshape(x.shape[0], -1)), axis=1)


def image_noise(key: jax.Array, images: jax.Array, norm: str) -> jax.Array:
    """Noise U(-1, 1) ("linf") or N(0, 1) ("l2"), of one key or of [B] keys: each image has its own."""
    draw = jax.random.normal
    if norm == "linf":
        draw = functools.partial(jax.random.uniform, minval=-1.0)
    keys = rng.of_rows(key, jnp.arange(images.shape[0]))
    return jax.vmap(lambda k: draw(k, images.shape[1:], images.dtype))(keys)


def project(x: jax.Array, center: jax.Array, eps: float | jax.Array, norm: str) -> jax.Array:
    """Returns the nearest points of the eps-balls around `center`, [B,...]."""
    if norm == "linf":
        return jnp.clip(x, center - eps, center + eps)
    delta = x - center
    length = l2_norm(delta)
    factor = jnp.where(length > eps, eps / jnp.where(length > 0, length, 1.0), 1.0)
    return center + delta * per_image(factor, delta)


def ascent_direction(gradient: jax.Array, norm: str) -> jax.Array:
    """Steepest ascent of unit size: the sign for "linf", the normalised gradient for "l2".

    An image whose gradient is exactly 0 gets the direction 0.
    """
    if norm == "linf":
        return jnp.sign(gradient)
    largest = jnp.max(jnp.abs(gradient.reshape(gradient.shape[0], -1)), axis=1)
    scaled = gradient / per_image(jnp.where(largest > 0, largest, 1.0), gradient)
    length = l2_norm(scaled)
    return scaled / per_image(jnp.where(length > 0, length, 1.0), gradient)


def random_start(
    kind: str,
    key: jax.Array | None,
    images: jax.Array,
    eps: float | jax.Array,
    *,
    norm: str = "linf",
    sigma: float = 0.001,
    clip: tuple[float, float] | None = None,
) -> jax.Array:
    """First iterate of an attack.

    Args:
      kind: "none": the images themselves. "uniform": Linf: x + U(-eps, eps) per pixel; L2: a
        direction that is uniform on the sphere and a length U(0, eps), as Rice et al. and
        torchattacks do (so NOT uniform in volume, where nearly all points lie on the surface).
        "gauss": x + sigma N(0, I) in either norm, as TRADES and the ARD family.
      key: typed PRNG key, or keys [B] of the single images; may be None for "none".
      images: [B,...] float32.
      eps: radius; may be traced.
      norm: "linf" or "l2".
      sigma: standard deviation of "gauss", in pixel units.
      clip: (lowest, highest) pixel value to cut the start to, or None to leave it (TRADES, CIARD).

    Returns:
      [B,...] float32.

    Raises:
      ValueError: unknown kind, or no key for a random one.
    """
    checks.choice(kind, "start", STARTS)
    if kind == "none":
        return images
    if key is None:
        raise ValueError(
            f"start={kind!r} draws random numbers but key is None; pass a jax PRNG key"
        )

    def uniform(key: jax.Array, shape: tuple[int, ...], low: float = 0.0) -> jax.Array:
        return jax.random.uniform(key, shape, images.dtype, low, 1.0)

    def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.normal(key, shape, images.dtype)

    shape = images.shape
    if kind == "gauss":
        noise = sigma * rng.draw(normal, key, shape)
    elif norm == "linf":
        noise = eps * rng.draw(functools.partial(uniform, low=-1.0), key, shape)
    else:
        keys = jax.vmap(jax.random.split)(key).T if key.ndim else jax.random.split(key)
        direction = rng.draw(normal, keys[0], shape)
        length = eps * rng.draw(uniform, keys[1], shape[:1])
        noise = ascent_direction(direction, "l2") * per_image(length, images)
    start = images + noise
    return start if clip is None else jnp.clip(start, *clip)


def check_like(found: Any, images: Any, attack: str) -> None:
    """Raises ValueError unless what an attack returned is floats of the images' shape."""
    if not isinstance(found, jax.Array | np.ndarray):
        raise ValueError(
            f"attack {attack!r} returned {type(found).__name__}; its run must return the images [B,H,W,C]"
        )
    if found.shape != images.shape or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(
            f"attack {attack!r} returned {found.dtype}{list(found.shape)} for images "
            f"{images.dtype}{list(images.shape)}; its run must return floats of the same shape"
        )


def excess(found: Any, images: Any, threat: ThreatModel) -> jax.Array:
    """How far each image is from what the threat model cuts it to, in pixel units, [B]; NaN of no number."""
    return size(found - threat.clip(threat.cut(found, images)), threat.norm)


def check_excess(beyond: np.ndarray, threat: ThreatModel, attack: str) -> None:
    """Raises ValueError where the `excess` of an attack's images is more than rounding, or NaN."""
    missing = int((~np.isfinite(beyond)).sum())
    if missing:
        raise ValueError(
            f"attack {attack!r} returned NaN or infinite values in {missing} of {len(beyond)} images; look "
            "for NaN in its steps and in the gradients of predict (a square root or logarithm at 0?)"
        )
    far = beyond > _SLACK * (threat.clip_max - threat.clip_min)
    if far.any():
        raise ValueError(
            f"attack {attack!r} returned {far.sum()} of {len(beyond)} images outside of what it declares, by "
            f"up to {beyond.max():.4g}: eps={threat.eps:.4g} ({threat.norm}) in [{threat.clip_min:g}, "
            f"{threat.clip_max:g}]; cut them back, or give its true eps and norm"
        )


def check_logits(logits: Any, images: Any, *labels: jax.Array) -> None:
    """Raises ValueError unless these are logits [B,K], K >= 2, and readable labels (and targets) classes."""
    if not hasattr(logits, "ndim"):
        kind = type(logits).__name__
        raise ValueError(f"predict returned {kind}; it must return logits [B,K] alone")
    if logits.ndim != 2 or logits.shape[0] != images.shape[0] or logits.shape[1] < 2:
        raise ValueError(
            f"predict returned shape {logits.shape} for {images.shape[0]} images; it must return "
            "logits [B,K], K >= 2"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"predict returned {logits.dtype}; logits are floating point")
    for name, classes in zip(("labels", "targets"), labels, strict=False):
        checks.labels_in_range(classes, logits.shape[1], name)


def check_batch(
    images: Any,
    labels: Any,
    key: Any,
    threat: ThreatModel,
    labelled: bool = False,
) -> tuple[Any, Any, Any]:
    """Returns images, labels (None stays None unless `labelled`) and key: what every attack does first.

    Raises:
      ValueError: images that are not float32 [B,...] (or float64) in the pixel range, labels that are not
        integers [B], a key that is neither one nor one for each image, or a radius beyond any image. Values
        are looked at where they can be read, outside of jit.
    """
    highest = threat.clip_max
    images = checks.pixels(images, threat.clip_min, highest)
    if highest > 2 and checks.is_concrete(images) and checks.extremes(images)[1] <= 1:
        raise ValueError(
            f"images are within [0, 1], but clip_max={highest:g}; give the range of the images, in "
            "whose unit eps is too"
        )
    if threat.clip_min < 0 and checks.is_concrete(images) and checks.extremes(images)[0] >= 0:
        raise ValueError(
            f"images are at least 0, but clip_min={threat.clip_min:g}; give the range of the images, which "
            "an attack may use whole"
        )
    threat.check_reach(images.shape[1:])
    if labelled and labels is None:
        raise ValueError("labels are None; give class numbers [B]")
    labels = None if labels is None else checks.integer_labels(labels, images.shape[0])
    key = checks.random_key(key)
    if key is not None and key.shape not in ((), images.shape[:1]):
        raise ValueError(
            f"key of shape {key.shape} for {images.shape[0]} images; give one, or one for each image"
        )
    return jnp.asarray(images), labels, key
