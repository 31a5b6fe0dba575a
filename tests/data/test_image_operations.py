"""Every operation against Pillow's."""

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ard_jax.data import image_operations

APPLY = jax.jit(jax.vmap(image_operations.apply))
SHAPES = ((8, 8, 1), (14, 10, 3))
VALUES = {
    "identity": (0.0,), "shear_x": (-0.27, 0.13), "shear_y": (-0.27, 0.13),
    "translate_x": (-5.0, 3.0), "translate_y": (-5.0, 3.0), "rotate": (-30.0, 7.3, 10.0),
    "posterize": (1.0, 4.0, 8.0), "solarize": (0.0, 100.0, 255.0), "autocontrast": (0.0,),
    "equalize": (0.0,), "invert": (0.0,),
} | dict.fromkeys(("brightness", "contrast", "color", "sharpness"), (0.0, 0.1, 0.7, 1.0, 1.9))  # fmt: skip
# Pillow cuts off a float to an integer, so that rounding may make one grey level.
CUT_OFF = ("autocontrast", "brightness", "contrast", "color", "sharpness")


def images(shape):
    rng = np.random.default_rng(0)
    large = np.repeat(np.repeat(rng.integers(0, 256, shape), 3, 0), 3, 1)[: shape[0], : shape[1]]
    return np.uint8(
        [rng.integers(0, 256, shape), rng.integers(60, 140, shape), large, np.full(shape, 7)]
    )


def affine(image, numbers):
    return image.transform(image.size, Image.Transform.AFFINE, numbers, Image.Resampling.NEAREST)


PILLOW = {
    "identity": lambda image, v: image,
    "shear_x": lambda image, v: affine(image, (1, v, 0, 0, 1, 0)),
    "shear_y": lambda image, v: affine(image, (1, 0, 0, v, 1, 0)),
    "translate_x": lambda image, v: affine(image, (1, 0, -v, 0, 1, 0)),
    "translate_y": lambda image, v: affine(image, (1, 0, 0, 0, 1, -v)),
    "rotate": lambda image, v: image.rotate(v, Image.Resampling.NEAREST),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "solarize": lambda image, v: ImageOps.solarize(image, int(v)),
    "autocontrast": lambda image, v: ImageOps.autocontrast(image),
    "equalize": lambda image, v: ImageOps.equalize(image),
    "invert": lambda image, v: ImageOps.invert(image),
}


def on_a_border(shape, degrees):
    """Pixels whose source under a rotation lies within 16.16 fixed point's rounding of a border of pixels."""
    height, width, _ = shape
    y, x = np.mgrid[:height, :width] + 0.5
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y = x - width / 2, y - height / 2
    source = np.stack([cos * x - sin * y + width / 2, sin * x + cos * y + height / 2])
    return (np.abs(source - np.round(source)) < (height + width) / 65536).any(0)


@pytest.mark.parametrize("shape", SHAPES, ids=["gray", "rgb"])
@pytest.mark.parametrize("name", image_operations.OPERATIONS)
def test_operations_are_those_of_pillow(name, shape):
    given = images(shape)
    for value in VALUES[name]:
        number = np.full(len(given), image_operations.NUMBERS[name])
        found = np.asarray(APPLY(given, number, np.full(len(given), value, np.float32)))
        for image, ours in zip(given, found, strict=True):
            picture = Image.fromarray(image.squeeze())
            theirs = np.asarray(PILLOW[name](picture, value)).reshape(shape)
            gap = np.abs(theirs.astype(int) - ours)
            if name == "rotate":
                gap = gap[~on_a_border(shape, value)]
            assert gap.max(initial=0) <= (name in CUT_OFF), (name, value)


def test_a_number_that_is_traced_gives_each_image_its_own_operation():
    given, numbers = (
        images((14, 10, 3)),
        np.arange(4) + image_operations.NUMBERS["autocontrast"] - 1,
    )
    found = np.asarray(APPLY(given, numbers, np.full(4, 50.0, np.float32)))
    for image, ours, name in zip(
        given, found, ("solarize", "autocontrast", "equalize", "invert"), strict=True
    ):
        theirs = np.asarray(PILLOW[name](Image.fromarray(image), 50.0))
        assert np.abs(theirs.astype(int) - ours).max() <= (name in CUT_OFF)
