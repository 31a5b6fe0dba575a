"""Colour and shape operations on one uint8 image, on the device; each computes what Pillow's does.

Which operation is a traced number, so that every image of a batch can have its own under `vmap`. Three things
are then computed for each image whatever its operation, and most are idle: an affine map with the nearest
pixel, a table of 256 values for each channel, and a blend with another image.

Rounding: what Pillow computes in integers (shears, translations, posterize, solarize, invert, equalize) is
met exactly. Where it cuts off a floating-point value to an integer (autocontrast, brightness, contrast,
color, sharpness) the two may be one grey level apart where that value is an integer but for rounding. Of a
rotation a pixel whose source lies on the border of two pixels, but for rounding, may have either.
"""

import jax
import jax.numpy as jnp

# Operation -> what its value is.
OPERATIONS = {
    "identity": "not looked at",
    "shear_x": "pixels to the left for each row down, from the top",
    "shear_y": "pixels up for each column to the right, from the left",
    "translate_x": "pixels to the right, whole ones",
    "translate_y": "pixels down, whole ones",
    "rotate": "degrees, counterclockwise about the centre",
    "brightness": "factor: 0 is black, 1 leaves the image",
    "contrast": "factor: 0 is gray, the mean of the gray image",
    "color": "factor: 0 is the gray image",
    "sharpness": "factor: 0 is the smoothed image",
    "posterize": "number of high bits that are kept",
    "solarize": "first grey level that is inverted",
    "autocontrast": "not looked at",
    "equalize": "not looked at",
    "invert": "not looked at",
}
NUMBERS = {name: number for number, name in enumerate(OPERATIONS)}
_FIXED = 65536  # Pillow's affine maps are in 16.16 fixed point


def apply(image: jax.Array, operation: jax.Array | int, value: jax.Array | float) -> jax.Array:
    """Applies one operation.

    Args:
      image: uint8 [H,W,C], C = 1 or 3.
      operation: one of `NUMBERS`; may be traced.
      value: see `OPERATIONS`; may be traced.

    Returns:
      uint8 [H,W,C]. Pixels from outside are 0.
    """
    value = jnp.asarray(value, jnp.float32)
    # XLA would merge each part into the next, and compute it anew for every pixel that reads it.
    image = jax.lax.optimization_barrier(image)
    image = jax.lax.optimization_barrier(_moved(image, operation, value))
    table = jax.lax.optimization_barrier(_table(image, operation, value))
    image = table[jnp.arange(image.shape[-1]), image.astype(jnp.int32)]
    image = jax.lax.optimization_barrier(image)
    return jax.lax.optimization_barrier(_blended(image, operation, value))


def gray(image: jax.Array) -> jax.Array:
    """Luminance of a uint8 image [H,W,C] as Pillow's mode L, int32 [H,W]."""
    values = image.astype(jnp.int32)
    if image.shape[-1] == 1:
        return values[..., 0]
    return (values @ jnp.array([19595, 38470, 7471]) + 0x8000) >> 16


def smoothed(image: jax.Array) -> jax.Array:
    """Pillow's filter SMOOTH of a uint8 image: a 3x3 mean in which the centre counts 5 of 13, int32 [H,W,C].

    The outermost pixels stay.
    """
    values = image.astype(jnp.int32)
    height, width = values.shape[0] - 2, values.shape[1] - 2
    if height < 1 or width < 1:
        return values
    total = sum(values[i : i + height, j : j + width] for i in range(3) for j in range(3))
    inner = (2 * (total + 4 * values[1:-1, 1:-1]) + 13) // 26
    return values.at[1:-1, 1:-1].set(inner)


def _is(operation: jax.Array | int, *names: str) -> jax.Array:
    return jnp.isin(operation, jnp.array([NUMBERS[name] for name in names]))


def _moved(image: jax.Array, operation: jax.Array | int, value: jax.Array) -> jax.Array:
    """The image under its affine map, by the nearest pixel."""
    height, width, _ = image.shape

    def of(name: str) -> jax.Array:
        return jnp.where(_is(operation, name), value, 0.0)

    angle = jnp.deg2rad(of("rotate"))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b, c = cos, of("shear_x") - sin, -of("translate_x")
    d, e, f = of("shear_y") + sin, cos, -of("translate_y")
    middle_x, middle_y = width / 2, height / 2
    c += middle_x - cos * middle_x + sin * middle_y
    f += middle_y - sin * middle_x - cos * middle_y
    # The centre of the first pixel, then equal steps: a and e lie at or under 1, so that int32 holds it.
    a, b, c, d, e, f = (
        jnp.floor(v * _FIXED + 0.5).astype(jnp.int32)
        for v in (a, b, c + a / 2 + b / 2, d, e, f + d / 2 + e / 2)
    )
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    x, y = (a * columns + b * rows + c) >> 16, (d * columns + e * rows + f) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = image[jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)]
    return jnp.where(inside[..., None], found, 0).astype(jnp.uint8)


def _table(image: jax.Array, operation: jax.Array | int, value: jax.Array) -> jax.Array:
    """What becomes of each grey level, uint8 [C,256]."""
    level, channels = jnp.arange(256), image.shape[-1]
    counts = jnp.zeros((channels, 256), jnp.int32)
    counts = counts.at[jnp.arange(channels), image.astype(jnp.int32)].add(1)
    mean = jnp.floor(jnp.mean(gray(image).astype(jnp.float32)) + 0.5)
    drop = 8 - jnp.clip(value, 0, 8).astype(jnp.int32)
    tables = {
        "brightness": _between(0.0, level, value),
        "contrast": _between(mean, level, value),
        "posterize": (level >> drop) << drop,
        "solarize": jnp.where(level < value, level, 255 - level),
        "autocontrast": jax.vmap(_stretched)(counts),
        "equalize": jax.vmap(_equalized)(counts),
        "invert": 255 - level,
    }
    table = jnp.broadcast_to(level, (channels, 256))
    for name, one in tables.items():
        table = jnp.where(_is(operation, name), one, table)
    return table.astype(jnp.uint8)


def _blended(image: jax.Array, operation: jax.Array | int, value: jax.Array) -> jax.Array:
    """The image, or for color and sharpness its blend with the gray or smoothed one."""
    values = image.astype(jnp.int32)
    other = jnp.where(_is(operation, "color"), gray(image)[..., None], smoothed(image))
    mixed = _between(other, values, value)
    return jnp.where(_is(operation, "color", "sharpness"), mixed, values).astype(jnp.uint8)


def _between(zero: jax.Array | float, one: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's blend: `zero` at factor 0, `one` at 1, beyond it further; cut off to 0 ... 255. int32."""
    mixed = zero + factor * (one - zero)
    return jnp.clip(mixed, 0, 255).astype(jnp.int32)


def _stretched(counts: jax.Array) -> jax.Array:
    """Table that maps the lowest level there is to 0 and the highest to 255."""
    level, there = jnp.arange(256), counts > 0
    low, high = jnp.argmax(there), 255 - jnp.argmax(there[::-1])
    spread = jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(255 * (level - low) // spread, 0, 255), level)


def _equalized(counts: jax.Array) -> jax.Array:
    """Table that spreads the levels evenly."""
    level, there = jnp.arange(256), counts > 0
    last = counts[255 - jnp.argmax(there[::-1])]
    step = (jnp.sum(counts) - last) // 255
    before = jnp.cumsum(counts) - counts
    table = jnp.minimum((before + step // 2) // jnp.maximum(step, 1), 255)
    return jnp.where((jnp.sum(there) > 1) & (step > 0), table, level)
