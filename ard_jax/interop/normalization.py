"""Which input normalisation a network wants: measured, not guessed.

A network fed with other statistics than it was trained on still runs; it only loses accuracy, by a point
or by fifty. So the candidates are tried on training images, and one is taken when the images tell it from
the others.
"""

import dataclasses
import json
import math
from typing import Any

import jax
import numpy as np

from ard_jax.config.schema import EvalConfig
from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation.evaluator import for_network
from ard_jax.models import described
from ard_jax.models.bundle import normalization_constants
from ard_jax.runtime import sharding

IMAGES = 1000  # training images; the standard error of an accuracy is at most 1.6 points
CLEARLY = 3.0  # standard errors that the best must be ahead

# Besides the named ones: those of chenyaofo's CIFAR-10 networks and many other repositories (the mean
# over images of each image's standard deviation), and pixels moved to [-1, 1].
_UNNAMED_RGB = {
    "CIFAR-10, smaller std": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]},
}


class NormalizationError(ValueError):
    """A normalisation that is not known, or that images do not tell from others."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A normalisation to try.

    Attributes:
      title: for people.
      normalization: as `models.create` takes it.
      own: whether the source says that the network was trained with it.
    """

    title: str
    normalization: Any
    own: bool = False


def parse(text: str) -> Any:
    """A normalisation from the command line: a name, or JSON {"mean": [...], "std": [...]}.

    Raises:
      NormalizationError: an unknown name, or JSON that is no normalisation.
    """
    try:
        value = json.loads(text) if text.lstrip().startswith("{") else text
        mean = value.get("mean") if isinstance(value, dict) else None
        normalization_constants(value, len(mean) if isinstance(mean, list) else 3)
        return value
    except ValueError as error:
        raise NormalizationError(
            f"--normalization={text!r}: {error}; write it like "
            '--normalization=\'{"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}\''
        ) from error


def constants(normalization: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std), float32 [C] each; zeros and ones for "none"."""
    found = normalization_constants(normalization, channels)
    return found or (np.zeros(channels, np.float32), np.ones(channels, np.float32))


def candidates(channels: int, own: Any = None, given: Any = None) -> list[Candidate]:
    """What is tried: the source's own (or the one given by hand) first, then the usual ones.

    Args:
      channels: of the images; CIFAR's and ImageNet's constants are for three.
      own: what the source says, None when it says nothing.
      given: what the user says, None when nothing.

    Raises:
      ValueError: `own` or `given` is no normalisation for so many channels.
    """
    usual: dict[str, Any] = {"raw pixels": "none"}
    if channels == 3:
        usual |= {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "ImageNet": "imagenet"}
        usual |= _UNNAMED_RGB
    usual["pixels in [-1, 1]"] = {"mean": [0.5] * channels, "std": [0.5] * channels}
    found = []
    if given is not None:
        found.append(Candidate("given by --normalization", given))
    if own is not None:
        title = next((t for t, n in usual.items() if _same(n, own, channels)), "stated")
        found.append(Candidate(f"{title} (the source's own)", own, own=True))
    found += [Candidate(title, normalization) for title, normalization in usual.items()]
    kept: list[Candidate] = []
    for new in found:
        if not any(_same(new.normalization, c.normalization, channels) for c in kept):
            kept.append(new)
    return kept


def _same(first: Any, second: Any, channels: int) -> bool:
    return np.allclose(constants(first, channels), constants(second, channels), rtol=0, atol=5e-4)


def _alike(first: Any, second: Any, channels: int) -> bool:
    """Whether two normalisations differ so little that robust or overfitted networks do not tell them.

    True among CIFAR's (both of CIFAR-10's) and ImageNet's constants; raw pixels are far from all.
    """
    (mean1, std1), (mean2, std2) = constants(first, channels), constants(second, channels)
    ratio = np.maximum(std1 / std2, std2 / std1)  # at most 1.3 among those named
    return bool(np.all(abs(mean1 - mean2) <= 0.05) and np.all(ratio <= 1.4))


class Tester:
    """Predictions of one network under any normalisation, through one compiled program."""

    def __init__(
        self, description: dict[str, Any], variables: Any, config: EvalConfig, devices: int = 0
    ):
        """`description` as `build.describe_network` gives it; its normalisation does not matter."""
        raw = described.from_description(description | {"normalization": "none"})
        mesh = sharding.make_mesh(devices)

        def apply(inputs: tuple, images: jax.Array):
            network, mean, std = inputs
            return raw.apply(network, (images - mean) / std, False)[0]

        bundle = dataclasses.replace(raw, apply=lambda v, x, train: (apply(v, x), {}))
        self._evaluator = for_network("imported network", bundle, config, mesh)
        self._variables = variables
        self._channels = raw.image_shape[-1]

    def correct(self, normalization: Any, dataset: ArrayDataset) -> np.ndarray:
        """Whether each image is classified rightly, bool [N]."""
        mean, std = constants(normalization, self._channels)
        return self._evaluator.run((self._variables, mean, std), dataset, {}).correct["clean"]


def sample(train: ArrayDataset) -> ArrayDataset:
    """`IMAGES` training images, evenly spaced: the same ones every time, of all classes."""
    count = min(IMAGES, len(train))
    return train.subset(np.linspace(0, len(train) - 1, count).astype(int))


def table(found: list[Candidate], correct: list[np.ndarray]) -> str:
    """The candidates and their accuracies, best first, for people."""
    count = len(correct[0])
    rows = sorted(zip(found, correct, strict=True), key=lambda row: -row[1].mean())
    lines = [f"Clean accuracy on {count} training images by input normalisation:"]
    for candidate, right in rows:
        lines.append(f"  {right.mean():7.2%}  {candidate.title:36} {candidate.normalization}")
    return "\n".join(lines)


def choose(
    found: list[Candidate], correct: list[np.ndarray], channels: int, classes: int
) -> tuple[Candidate, str]:
    """The best candidate, if the images tell it from the others.

    Two candidates are compared on the images that only one of them classifies rightly (McNemar): the
    best is ahead when it has more of those by `CLEARLY` standard errors. Where all that remain are
    alike, such as CIFAR-10's constants and ImageNet's, the source's own word decides among them.

    Args:
      found: the candidates.
      correct: bool [N] of each, on the same images.
      channels: of the images.
      classes: number of classes.

    Returns:
      (candidate, how it was decided).

    Raises:
      NormalizationError: none is better than chance, or several are as good.
    """
    count, chance = len(correct[0]), 1 / classes
    order = sorted(range(len(found)), key=lambda i: (-correct[i].sum(), not found[i].own))
    best = order[0]
    if correct[best].mean() < chance + CLEARLY * math.sqrt(chance * (1 - chance) / count):
        raise NormalizationError(
            f"{table(found, correct)}\nNone of these is better than chance ({chance:.1%}). Likely the "
            "classes are in another order than in the data, the network was trained on other data, or "
            "--model names a wrong one of several architectures with the same tensors"
        )
    rivals = [i for i in order[1:] if not _ahead(correct[best], correct[i])]
    if not rivals:
        stated = [c.title for c in found if c.own and c is not found[best]]
        against = f", against {stated[0]}" if stated else ""
        how = f"clearly the best of {len(found)} on {count} training images{against}"
        return found[best], how
    own = next((found[i] for i in [best, *rivals] if found[i].own), None)
    if own and all(
        _alike(own.normalization, found[i].normalization, channels) for i in [best, *rivals]
    ):
        how = f"the source's own; {count} training images do not tell it from"
        others = [found[i].title for i in [best, *rivals] if found[i] is not own]
        return own, f"{how} {', '.join(others)}, and rule out the others"
    titles = [found[i].title for i in [best, *rivals]]
    raise NormalizationError(
        f"{table(found, correct)}\nThe images do not tell these apart (the best is not ahead by "
        f"{CLEARLY:.0f} standard errors): {'; '.join(titles)}. Look up what the network was trained with "
        "and say it: --normalization=none, cifar10, cifar100, imagenet, or "
        '\'{"mean": [...], "std": [...]}\''
    )


def _ahead(best: np.ndarray, other: np.ndarray) -> bool:
    """Whether `best` is right more often by `CLEARLY` standard errors of the paired difference."""
    only_best, only_other = int((best & ~other).sum()), int((other & ~best).sum())
    return only_best - only_other > CLEARLY * math.sqrt(only_best + only_other)


def check_given(found: list[Candidate], correct: list[np.ndarray]) -> str:
    """A warning when another candidate is clearly better than the first, given by hand; or ""."""
    best = max(range(len(found)), key=lambda i: correct[i].sum())
    if not _ahead(correct[best], correct[0]):
        return ""
    return (
        f"WARNING: --normalization gives {correct[0].mean():.2%}, but {found[best].title} gives "
        f"{correct[best].mean():.2%}; check that yours is right."
    )
