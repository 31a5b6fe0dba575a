"""Which part of an image becomes the square of a data set: centred for evaluation, random for training."""

import bisect
import dataclasses
import math
from typing import Any

import numpy as np

_TRIES = 10  # of a random box, before the centred one
_DRAWS = 4 * _TRIES + 1
_RATIOS = (3 / 4, 4 / 3)
_VIEWS = 2  # of an image in an epoch, at most
_STREAM = 0x63726F70  # a word of Philox's counter that the orders of epochs do not have


def fit(image: Any, size: int, resize: int = 0) -> Any:
    """The centred square of an image, scaled to `size`.

    Args:
      image: PIL's.
      size: side in pixels.
      resize: 0: the largest square, by PIL's bicubic filter with antialiasing; an image that is size x size
        stays as it is. Otherwise torchvision's Resize(resize) and CenterCrop(size): the shorter side is
        scaled to `resize` by the bilinear filter, then the centre is cut out.
    """
    from PIL import Image, ImageOps

    if not resize:
        if image.size == (size, size):
            return image
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    width, height = image.size
    if (short := min(width, height)) != resize:
        width, height = (resize if n == short else resize * n // short for n in (width, height))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (round((n - size) / 2) for n in (width, height))
    return image.crop((left, top, left + size, top + size))


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """One random part of an image, scaled and perhaps mirrored: RandomResizedCrop of torchvision.

    Attributes:
      draws: float64 [41] in [0, 1): of ten boxes, and of the mirror image.
      area: least and largest part of the image's area.
      size: side in pixels that it is scaled to; 0: that of the data set.
    """

    draws: np.ndarray
    area: tuple[float, float]
    size: int = 0

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels.

        The first of ten boxes of a uniform area and a log-uniform ratio of 3/4 to 4/3 that fits; else the
        largest centred one of such a ratio.
        """
        least, largest = self.area
        low, high = (math.log(r) for r in _RATIOS)
        for share, shape, x, y in self.draws[:-1].reshape(_TRIES, 4):
            area = width * height * (least + share * (largest - least))
            ratio = math.exp(low + shape * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
                return left, top, left + w, top + h
        ratio = min(max(width / height, _RATIOS[0]), _RATIOS[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def apply(self, image: Any, size: int) -> Any:
        """The part of PIL's `image`, by the bilinear filter; mirrored in half of the cases.

        It is `self.size` x `self.size` pixels, or `size` x `size` of the data set.
        """
        from PIL import Image, ImageOps

        size, box = self.size or size, self.box(*image.size)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        return ImageOps.mirror(image) if self.draws[-1] < 0.5 else image


def shape_of(whole: tuple[int, int, int], crop: RandomCrop | None) -> tuple[int, int, int]:
    """(H, W, C) of an image of a data set of shape `whole`, or of a part of it."""
    return (crop.size, crop.size, whole[2]) if crop is not None and crop.size else whole


@dataclasses.dataclass(frozen=True)
class RandomCrops:
    """The random crops of a training: a function of (seed, epoch, image, view), whatever reads them.

    Attributes:
      seed: of the run.
      area: see `RandomCrop`.
      views: 1, or 2 where a method wants another augmentation of the same images.
      sizes: sides in pixels, one after the other; () for that of the data set.
      boundaries: first epochs, from 1, of the second size and of those after it.
    """

    seed: int
    area: tuple[float, float]
    views: int = 1
    sizes: tuple[int, ...] = ()
    boundaries: tuple[int, ...] = ()

    def size(self, epoch: int) -> int:
        """Side in pixels in `epoch`, counted from 0; 0: that of the data set."""
        return self.sizes[bisect.bisect_right(self.boundaries, epoch + 1)] if self.sizes else 0

    def of(self, epoch: int, row: int, view: int = 0) -> RandomCrop:
        """That of image number `row` in `epoch`, both counted from 0."""
        key = np.array([self.seed, _VIEWS * epoch + view], np.uint64)
        counter = np.array([0, row, _STREAM, 0], np.uint64)
        raw = np.random.Philox(key=key, counter=counter).random_raw(_DRAWS)
        return RandomCrop((raw >> np.uint64(11)) * 2.0**-53, self.area, self.size(epoch))
