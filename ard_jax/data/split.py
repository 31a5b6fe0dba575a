"""Random orders and stratified hold-outs that never change between machines or versions.

Orders are the argsort of raw Philox output. NumPy guarantees that the raw output of a bit generator
stays the same for ever, which it does not for `Generator.permutation`.
"""

import numbers
import zlib

import numpy as np

from ard_jax.data.base import ArrayDataset, DataError, Splits

_TEST_SEED = 0  # of the fixed test hold-outs: never the user's seed, so test sets never vary


def check_seed(seed: int) -> int:
    """The seed as an int, or ValueError if it is not an integer in [0, 2**64)."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed!r}: give an integer from 0 to 2**64 - 1")
    return int(seed)


def permutation(num: int, seed: int, counter: int) -> np.ndarray:
    """A random order of 0..num-1, int64 [num]; a pure function of its arguments.

    Args:
      num: length.
      seed: integer in [0, 2**64).
      counter: integer in [0, 2**64), for example the epoch.

    Returns:
      int64 [num], each number once.
    """
    key = np.array([check_seed(seed), counter], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(num), kind="stable")


def hold_out_test(whole: ArrayDataset) -> Splits:
    """Gives data that has no test split one: 20 % of each class, the same for every user's seed.

    Args:
      whole: all examples.

    Returns:
      Splits(train, None, test), each in the original order. Of each class the test split gets 20 %,
      rounded, and at least one image.

    Raises:
      DataError: a class has a single image, so that it cannot be in both splits.
    """
    counts = np.bincount(whole.labels)
    if (single := np.flatnonzero(counts == 1)).size:
        number = np.flatnonzero(whole.labels == single[0])[0]
        raise DataError(
            f"{whole.name}: class {whole.class_names[single[0]]!r} has a single image (number "
            f"{number}), so it cannot be both in train and in the held-out test split; add images "
            "of it or give a test split"
        )
    wanted = np.minimum(np.maximum(np.round(counts * 0.2), 1), counts).astype(np.int64)
    test = _pick(whole.labels, wanted, _TEST_SEED, "test")
    train = np.setdiff1d(np.arange(len(whole)), test)
    return Splits(whole.subset(train, "train"), None, whole.subset(test, "test"))


def validation_indices(
    labels: np.ndarray, holdout: int | float, seed: int, what: str
) -> np.ndarray:
    """Which training examples are held out as validation.

    Classes get their exact share of the number asked for, rounded by largest remainder; of no class
    all examples are taken.

    Args:
      labels: int32 [N].
      holdout: a number of images (int) or a fraction of all (float in (0, 1)); 0 is none.
      seed: chooses the examples.
      what: name of the data set, for the message.

    Returns:
      Sorted int64 indices.

    Raises:
      DataError: `holdout` is neither, or leaves no image in one of the splits.
    """
    if not np.issubdtype(np.asarray(labels).dtype, np.integer):
        raise DataError(f"{what}: labels are {np.asarray(labels).dtype}; give integers")
    total = holdout_count(holdout, len(labels), what)
    counts = np.bincount(labels)
    room = int(np.maximum(counts - 1, 0).sum())
    if total > room:
        raise DataError(
            f"{what}: holdout={holdout!r} takes {total} of {len(labels)} training images, but at "
            f"most {room} can go, as each class must keep one; ask for fewer"
        )
    exact = counts * (total / len(labels))
    wanted = np.minimum(np.floor(exact).astype(np.int64), np.maximum(counts - 1, 0))
    while (missing := total - int(wanted.sum())) > 0:  # the largest remainders get one more each
        open_ = np.flatnonzero(wanted < counts - 1)
        order = open_[np.argsort(-(exact - wanted)[open_], kind="stable")]
        wanted[order[:missing]] += 1
    return _pick(labels, wanted, seed, "holdout")


def holdout_count(holdout: int | float, num: int, what: str) -> int:
    """How many of `num` training images `holdout` (as in `validation_indices`) asks for.

    Raises:
      DataError: it is neither a number of images nor a fraction, or a fraction that gives none.
    """
    problem = None
    if isinstance(holdout, bool) or not isinstance(holdout, numbers.Real):
        problem = "is not a number"
    elif isinstance(holdout, numbers.Integral):
        problem = "is negative" if holdout < 0 else None
    elif holdout != 0 and not 0 < holdout < 1:
        problem = "is not a fraction between 0 and 1"
    elif 0 < holdout and round(holdout * num) == 0:
        problem = f"of {num} training images is none"
    if problem:
        raise DataError(
            f"{what}: holdout={holdout!r} {problem}; give a number of images (an int), a fraction "
            "in (0, 1) (a float), or 0 for no validation split"
        )
    return int(holdout) if isinstance(holdout, numbers.Integral) else round(float(holdout) * num)


def _pick(labels: np.ndarray, wanted: np.ndarray, seed: int, stream: str) -> np.ndarray:
    """`wanted[c]` random examples of each class c, sorted."""
    # Epochs use the counters from 0; these lie above 2**32, where no epoch gets.
    order = permutation(len(labels), seed, (zlib.crc32(stream.encode()) | 1) << 32)
    picked = [order[labels[order] == c][:n] for c, n in enumerate(wanted)]
    return np.sort(np.concatenate(picked))
