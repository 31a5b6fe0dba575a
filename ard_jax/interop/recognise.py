"""Which of our networks a file of tensors is, and its conversion.

`families.guess` says what names and shapes look like; here every tensor must then be where that network has
one, and no other.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ard_jax import models
from ard_jax.interop import families, haiku_names, torch_names
from ard_jax.models.bundle import differences, normalization_constants, summary

_HEADS = ("fc", "linear", "logits", "classifier.3", "classifier.1", "head.fc", "head")


@dataclasses.dataclass(frozen=True)
class Recognised:
    """A file's architecture.

    Attributes:
      model: name for `models.create`.
      kwargs: its options.
      num_classes: number of logits.
      family: whose network it is, for people.
      normalization: what the pixels went through, as `models.create` takes it: the constants stored in the
        file, else those that all publishers of the family use; None: unknown.
      ignored: what the network does not use and was left out, summarised: "sub_block1.* (45)".
    """

    model: str
    kwargs: dict[str, Any]
    num_classes: int
    family: str
    normalization: Any
    ignored: tuple[str, ...]


def recognise(
    tensors: Mapping[str, np.ndarray],
    *,
    model: str = "",
    kwargs: Mapping[str, Any] | None = None,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> Recognised:
    """Finds the architecture of a network, or checks that it is the given one.

    Args:
      tensors: name -> array, as in the file: PyTorch's names (any prefix common to all), DeepMind's Haiku
        names, or our own ("params/fc/kernel").
      model: name for `models.create`; "" to find it.
      kwargs: options of `model`; None to find them too.
      image_shape: (H, W, C) of the images.

    Returns:
      A Recognised; `convert` will not fail on names or shapes.

    Raises:
      ValueError: no network of ours, with the nearest and what differs; or not the given one.
    """
    tidied = _tidy(tensors)
    shapes = {name: np.shape(value) for name, value in tidied.tensors.items()}
    classes = _num_classes(shapes)
    guess = families.guess(shapes, classes)
    if model:
        models.check_name(model)
        same = guess if guess is not None and guess.model == model else None
        options = dict(same.kwargs if same and kwargs is None else kwargs or {})
        chosen = families.Guess(
            model, options, same.family if same else f"{model}, as said by hand",
            same.normalization if same else None,
        )  # fmt: skip
    else:
        chosen = guess
    problems = None
    if chosen is not None and classes:
        problems = _problems(chosen.model, chosen.kwargs, shapes, classes, image_shape)
    if chosen is None or problems is None or problems:
        raise ValueError(_complaint(shapes, classes, image_shape, model, chosen, problems))
    normalization = chosen.normalization
    if tidied.constants is not None:
        normalization = _named(tidied.constants, image_shape[-1])
    ignored = _summarise(tidied.ignored)
    return Recognised(chosen.model, chosen.kwargs, classes, chosen.family, normalization, ignored)


def image_side(tensors: Mapping[str, np.ndarray]) -> int:
    """Height and width of the images that a network is for, as far as its tensors tell; else 32."""
    shapes = {name: np.shape(value) for name, value in _tidy(tensors).tensors.items()}
    guess = families.guess(shapes, _num_classes(shapes))
    return guess.side if guess else 32


def convert(
    tensors: Mapping[str, np.ndarray],
    recognised: Recognised,
    *,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> dict[str, Any]:
    """The network's variables; every tensor is used exactly once.

    Args:
      tensors: as for `recognise`.
      recognised: what it returned.
      image_shape: (H, W, C) of the images.

    Returns:
      {"params": ..., "batch_stats": ...}, nested dicts of new float32 numpy arrays.

    Raises:
      ValueError: a tensor that is missing, unused, of another shape, not floating point or not finite.
    """
    bundle = models.create(
        recognised.model,
        recognised.num_classes,
        image_shape,
        normalization="none",
        **recognised.kwargs,
    )
    return torch_names.to_variables(bundle, _tidy(tensors).tensors)


def _tidy(tensors: Mapping[str, np.ndarray]):
    """The network under PyTorch's names, whatever names the file has."""
    dead = ()
    if haiku_names.is_haiku(tensors):
        tensors, dead = haiku_names.to_torch_names(tensors)
    elif any(name.startswith(("params/", "batch_stats/")) for name in tensors):
        tensors = torch_names.from_our_names(tensors)
    tidied = torch_names.tidy(tensors)
    return tidied._replace(ignored=tidied.ignored + dead)


def _summarise(names: tuple[str, ...]):
    """bn1.num_batches_tracked, bn2.num_batches_tracked -> "num_batches_tracked (2)"."""
    kinds = collections.Counter(
        "sub_block1.*" if "sub_block1." in name else re.split(r"[./]", name)[-1] for name in names
    )
    return tuple(f"{kind} ({count})" for kind, count in kinds.items())


def _named(constants: Any, channels: int):
    """Stored constants; by name where they are a well-known normalisation."""
    known = normalization_constants(constants, channels)
    assert known is not None  # it is so for "none" alone
    mean, std = known
    if not mean.any() and np.all(std == 1):
        return "none"
    for name, (known_mean, known_std) in models.NORMALIZATIONS.items():
        if channels == len(known_mean) and np.allclose(
            [mean, std], [known_mean, known_std], rtol=0, atol=1e-6
        ):
            return name
    return {"mean": tuple(mean.tolist()), "std": tuple(std.tolist())}


def _num_classes(shapes: Mapping[str, tuple[int, ...]]):
    """Rows of the last linear layer; 0 if there is none."""
    for head in _HEADS:
        shape = shapes.get(f"{head}.weight", ())
        if len(shape) == 2 and shape[0] > 1:
            return int(shape[0])
    return 0


def _problems(
    model: str,
    kwargs: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    classes: int,
    image_shape: tuple[int, int, int],
):
    """What keeps tensors of these shapes from being this network, in words."""
    try:
        layout = _layout(model, kwargs, classes, image_shape)
    except ValueError as error:
        return [str(error)]
    return differences(shapes, layout)


def _layout(model: str, kwargs: dict[str, Any], classes: int, image_shape: tuple[int, int, int]):
    bundle = models.create(model, classes, image_shape, normalization="none", **kwargs)
    return torch_names.torch_layout(bundle)


def _complaint(
    shapes: Mapping[str, tuple[int, ...]],
    classes: int,
    image_shape: tuple[int, int, int],
    model: str,
    chosen: Any,
    problems: Any,
):
    """The error: what the file is not, and what it is nearest to."""
    if not classes:
        return (
            f"the tensors have no last linear layer (one of {', '.join(_HEADS)}), so that this is no "
            f"classifier of ours; they are called {list(shapes)[:6]}"
        )
    size = f"for {classes} classes and images {tuple(image_shape)}"
    if model:
        looks = families.guess(shapes, classes)
        hint = f" It looks like {looks.model}." if looks and looks.model != model else ""
        return f"the tensors are not those of {_title(chosen)} {size}: {summary(problems)}.{hint}"
    if chosen is None:
        return f"the tensors are of no network of ours: it has no names like {list(shapes)[:6]}"
    return (
        f"the tensors are of no network of ours; the nearest is {_title(chosen)} {size}, but: "
        f"{summary(problems)}"
    )


def _title(guess: families.Guess):
    options = ", ".join(f"{key}={value!r}" for key, value in guess.kwargs.items())
    return f"{guess.model} ({options})" if options else guess.model
