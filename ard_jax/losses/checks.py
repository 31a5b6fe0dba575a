"""Checks of arrays that callers hand to losses, attacks and evaluation.

Shapes and dtypes are always checked, values where they can be read: those of concrete arrays, not of what jit
traces. So a train step pays nothing.
"""

import difflib
import math
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_ROUNDING = 1e-5  # that a change of units may leave beyond the range
MOST_SEED = 2**32 - 1


def is_concrete(value: Any) -> bool:
    """Whether the values of an array can be read here, on this process."""
    if isinstance(value, jax.Array):
        return not isinstance(value, Tracer) and value.is_fully_addressable
    return isinstance(value, np.ndarray | np.generic)


def extremes(value: Any) -> tuple[float, float]:
    """Returns the least and the largest number of a concrete array that is not empty."""
    found = np.asarray(value)  # not by jnp, which would trace it inside of jit
    return float(found.min()), float(found.max())


def array(value: Any, name: str) -> Any:
    """Returns an array; lists and tuples of numbers become one.

    Raises:
      ValueError: it is no array of numbers, or one with a mask.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(
            f"{name} is a masked array, whose mask would be lost; give its .filled(...)"
        )
    if isinstance(value, jax.Array | np.ndarray):
        found = value
    else:
        try:
            found = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(value).__name__
            why = "" if hasattr(value, "_fields") else f": {error}"
            raise ValueError(f"{name} is {kind}, which is no array{why}") from error
        if found.dtype == np.float64 or found.dtype == np.int64:
            found = jnp.asarray(found)  # JAX's default width
    if jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{name} is a PRNG key; are the arguments in another order?")
    if found.dtype.kind in "OUSmM":
        shown = repr(value)[:60]
        raise ValueError(f"{name} must be an array of numbers, not {type(value).__name__} {shown}")
    return found


def integer_labels(labels: Any, count: int, name: str = "labels") -> jax.Array:
    """Returns labels as an integer array [B].

    Raises:
      ValueError: another shape or dtype.
    """
    if labels is None:
        raise ValueError(f"{name} are None; give class numbers [B]")
    labels = array(labels, name)
    if labels.ndim == 2 and labels.shape[0] == count:
        raise ValueError(
            f"{name} of shape {labels.shape} for a batch of {count}: give class numbers [{count}], not "
            f"one-hot or soft labels: {name}{'[:, 0]' if labels.shape[1] == 1 else '.argmax(-1)'}"
        )
    if labels.shape != (count,):
        alone = "; a single image needs a batch axis: [1,H,W,C]" if labels.size == 1 else ""
        raise ValueError(
            f"{name} of shape {labels.shape} for a batch of {count}: give [{count}]{alone}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name} are {labels.dtype}; give integers, such as {name}.astype(int)")
    return jnp.asarray(labels)


def labels_in_range(labels: Any, num_classes: int, name: str = "labels") -> None:
    """Raises ValueError when a readable label is not one of 0 ... num_classes - 1."""
    if is_concrete(labels) and labels.size:
        low, high = map(int, extremes(labels))
        if low < 0 or high >= num_classes:
            hint = "; do they count from 1?" if low == 1 and high == num_classes else ""
            raise ValueError(
                f"{name} are from {low} to {high}, but there are {num_classes} classes, 0 to "
                f"{num_classes - 1}{hint}"
            )


def check_targets(targets: Any, labels: Any) -> None:
    """Raises ValueError unless targets are integers [B], none of which, where readable, is the label."""
    integer_labels(targets, len(labels), "targets")
    if is_concrete(targets) and is_concrete(labels):
        same = np.flatnonzero(np.asarray(targets) == np.asarray(labels))
        if same.size:
            raise ValueError(
                f"targets[{same[0]}] is the image's own label ({same.size} such targets); give other classes"
            )


def float_images(images: Any) -> Any:
    """Returns images as an array of floats [B,...]; their values are not looked at.

    Raises:
      ValueError: empty, not floating point, without a batch axis, or channels first.
    """
    images = array(images, "images")
    if images.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"images are {images.dtype}; give float32 in [0,1] (divide uint8 by 255; bfloat16 cannot hold a "
            "perturbation of 2/255, so cast inside the network)"
        )
    if images.ndim < 2:
        raise ValueError(f"images have shape {images.shape}; add a batch axis: [B,H,W,C]")
    if images.size == 0:
        raise ValueError(f"images have shape {images.shape}: there is nothing in them")
    if images.ndim == 4 and channels_first(images.shape[1:]):
        raise ValueError(
            f"images have shape {images.shape}, channels first; give [B,H,W,C]: images.transpose(0, 2, 3, 1)"
        )
    return images


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether (H, W, C) can hardly be meant by a shape, as its first size is that of channels."""
    return shape[0] in (1, 3) and shape[1] == shape[2] > 4


def pixels(images: Any, lowest: float = 0.0, highest: float = 1.0) -> Any:
    """Returns `float_images`, with values in the pixel range where they can be read.

    Raises:
      ValueError: as `float_images`; NaN or infinite values, or values outside of the range.
    """
    images = float_images(images)
    if not is_concrete(images):
        return images
    low, high = extremes(images)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("images hold NaN or infinite values")
    if low < lowest - _ROUNDING or high > highest + _ROUNDING:
        hint = "give images in [0, 1]; attacks take another range by clip_min and clip_max"
        if low >= 0 and high > 1.5:
            hint = "divide by 255"
        elif low < 0:
            hint = (
                "are they normalised? Give them unnormalised, and put the normalisation into predict: "
                "eps is in pixel units"
            )
        raise ValueError(
            f"images are from {low:.4g} to {high:.4g}, outside [{lowest:g}, {highest:g}]; {hint}"
        )
    return images


def random_key(key: Any) -> Any:
    """Returns a typed PRNG key; an integer is a seed, and a raw key of uint32 becomes a typed one.

    Raises:
      ValueError: it is none of these.
    """
    if key is None or (
        isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    ):
        return key
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not 0 <= key <= MOST_SEED:
            raise ValueError(f"key={key}: a seed must be from 0 to {MOST_SEED}")
        return jax.random.key(int(key))
    shown = f"={key!r:.40}"
    if isinstance(key, jax.Array | np.ndarray):
        if (
            key.dtype == np.uint32
            and key.shape[-1:] == jax.random.key_data(jax.random.key(0)).shape
        ):
            return jax.random.wrap_key_data(jnp.asarray(key))
        shown = f" is an array {key.dtype}{list(key.shape)}"
    raise ValueError(f"key{shown}: give jax.random.key(seed), or the seed")


def logits(values: Any, name: str, least_classes: int = 2) -> Any:
    """Returns logits as an array [B,K], float32 of 16 bits; warns of what looks like probabilities.

    Raises:
      ValueError: another shape, no floats, or fewer than `least_classes` classes.
    """
    values = array(values, name)
    if values.ndim != 2:
        raise ValueError(f"{name} have shape {values.shape}; they must be [batch, classes]")
    if values.shape[-1] < least_classes:
        raise ValueError(f"{values.shape[-1]} classes; this loss needs at least {least_classes}")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{name} are {values.dtype}; logits are floating point")
    if is_concrete(values) and values.size and _are_probabilities(values, one_hot=False):
        warnings.warn(
            f"{name} look like probabilities (nonnegative, sum 1); give logits", stacklevel=4
        )
    return values.astype(jnp.float32) if values.dtype.itemsize == 2 else values


def _are_probabilities(values: Any, one_hot: bool = True) -> bool:
    found = np.asarray(values, np.float32)
    if not one_hot and np.isin(found, (0, 1)).all():
        return False
    return bool((found > -_ROUNDING).all() and (np.abs(found.sum(-1) - 1) < 1e-3).all())


def same_logits(first: Any, second: Any, names: str) -> tuple[jax.Array, jax.Array]:
    """Returns both as arrays [B,K] of one shape.

    Raises:
      ValueError: they are not.
    """
    first, second = logits(first, "logits"), logits(second, "logits")
    if first.shape != second.shape:
        raise ValueError(
            f"{names}: logits of shapes {first.shape} and {second.shape}; "
            "both must be [batch, classes]"
        )
    return jnp.asarray(first), jnp.asarray(second)


def probabilities(values: Any, name: str) -> None:
    """Raises ValueError where readable rows [B,K] are negative, or do not sum to 1."""
    if is_concrete(values) and not _are_probabilities(values):
        raise ValueError(
            f"{name} are no probabilities: give softmax({name}), rows that sum to 1; or are they the logits, "
            "in the other's place?"
        )


def logits_and_labels(
    values: Any, labels: Any, least_classes: int = 2
) -> tuple[jax.Array, jax.Array]:
    """Returns logits [B,K] and labels [B] as arrays.

    Raises:
      ValueError: other shapes or dtypes, fewer than `least_classes` classes, or a readable label that is no
        class.
    """
    values = logits(values, "logits", least_classes)
    labels = integer_labels(labels, values.shape[0])
    labels_in_range(labels, values.shape[-1])
    return jnp.asarray(values), labels


def per_example(values: Any, weights: Any, name: str) -> jax.Array:
    """Returns weights or a mask as an array [B], one for each row of the logits.

    Raises:
      ValueError: another shape.
    """
    weights = array(weights, name)
    if weights.shape != values.shape[:1]:
        raise ValueError(f"{name} has shape {weights.shape}; it must be [{values.shape[0]}]")
    return jnp.asarray(weights)


def shares(values: Any, weights: Any, name: str, highest: float = 1.0) -> jax.Array:
    """Returns weights or a mask as floats [B].

    Raises:
      ValueError: another shape, or readable ones outside [0, highest].
    """
    weights = per_example(values, weights, name)
    numbers(weights, f"{name} of a row", 0.0, highest)
    return weights.astype(jnp.float32)


def rows(values: Any, name: str) -> jax.Array:
    """Returns one value for each example as an array [B].

    Raises:
      ValueError: another shape.
    """
    values = array(values, name)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}; it must be [batch]")
    return jnp.asarray(values)


def number(
    value: Any, name: str, lowest: float = 0.0, highest: float = math.inf, fix: str = ""
) -> None:
    """Raises ValueError unless a value that can be read is a finite number in [lowest, highest]."""
    if isinstance(value, jax.Array | np.ndarray) and value.ndim:
        raise ValueError(f"{name} has shape {value.shape}: must be one number{fix}")
    if isinstance(value, jax.Array) and not is_concrete(value):
        return
    key = jnp.issubdtype(getattr(value, "dtype", float), jax.dtypes.prng_key)
    if (
        key
        or isinstance(value, bool)
        or not isinstance(value, int | float | np.number | np.ndarray | jax.Array)
    ):
        raise ValueError(f"{name}={value!r}: must be a number{fix}")
    if not lowest <= float(value) <= highest or not math.isfinite(value):
        bounds = f" in [{lowest:g}, {highest:g}]" if highest < math.inf else f" >= {lowest:g}"
        bounds = "" if lowest == -math.inf else bounds
        raise ValueError(f"{name}={value}: must be a finite number{bounds}{fix}")


def numbers(values: Any, name: str, lowest: float, highest: float) -> None:
    """Raises ValueError unless all of the values that can be read are finite numbers in [lowest, highest]."""
    if np.size(values) and (is_concrete(values) or isinstance(values, int | float)):
        for one in extremes(values):
            number(one, name, lowest, highest)


def positive(value: Any, name: str) -> None:
    """Raises ValueError unless a value that can be read is a finite number above 0."""
    number(value, name, -math.inf)
    if is_concrete(value) or isinstance(value, int | float):
        if float(value) <= 0:
            raise ValueError(f"{name}={value}: must be above 0")


def temperature(value: Any, name: str, batch: int) -> None:
    """Raises ValueError unless a temperature is positive and finite; an array [B,1] has one for each row."""
    if isinstance(value, jax.Array | np.ndarray) and value.ndim:
        if value.shape != (batch, 1):
            raise ValueError(f"{name} has shape {value.shape}: give one number, or [{batch},1]")
        if is_concrete(value):
            for one in extremes(value):
                positive(one, f"{name} of a row")
    else:
        positive(value, name)


def count(value: Any, name: str, lowest: int, highest: float = math.inf) -> int:
    """Returns an integer, static as loops have it.

    Raises:
      ValueError: it is none, less than `lowest` or more than `highest`.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not lowest <= value <= highest:
        limits = f">= {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
        raise ValueError(f"{name}={value!r}: must be an integer {limits}")
    return int(value)


def flag(value: Any, name: str) -> None:
    """Raises ValueError unless a value is True or False: a text such as "no" would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={value!r}: must be True or False")


def choice(value: Any, name: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        plain = {_plain(c): c for c in choices}
        near = [plain[n] for n in difflib.get_close_matches(_plain(str(value)), plain, 1, 0.75)]
        meant = f"did you mean {near[0]!r}? Else " if near else ""
        known = ", ".join(c or repr(c) for c in choices)
        raise ValueError(f"unknown {name} {value!r}; {meant}choose one of {known}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
