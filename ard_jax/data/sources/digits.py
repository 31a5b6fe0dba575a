"""Scikit-learn's handwritten digits: 1,797 real gray 8x8 images that come with the package.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository (its test part), through `sklearn.datasets.load_digits`.
"""

from typing import Any, cast

import numpy as np

from ard_jax.data.base import ArrayDataset, Splits
from ard_jax.data.split import hold_out_test


def load() -> Splits:
    """The digits, with a fixed test split.

    Returns:
      Splits of uint8 [N,8,8,1] images: pixel counts v in 0..16 become
      round(v * 255 / 16). Test: 20 %
      of each digit (359 images), always the same ones, whatever the user's seed. Train: the other
      1,438, in their original order. No validation split.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    raw = cast(Any, load_digits())
    images = np.round(raw.images * 255 / 16).astype(np.uint8)[..., None]
    labels = raw.target.astype(np.int32)
    whole = ArrayDataset(images, labels, tuple(str(d) for d in range(10)), "digits", "train")
    return hold_out_test(whole)
