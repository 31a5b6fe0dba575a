"""What the rest of the library sees of a network: a record of pure functions."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError

from ard_jax.convolutions.canonical_conv import exported_convolutions
from ard_jax.losses import checks

# Channel means and standard deviations for pixels in [0, 1]. The CIFAR values are those of DeepMind's
# networks (RobustBench, dm_wide_resnet.py); the ImageNet values those of torchvision.
NORMALIZATIONS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


_AS_INIT = ", which are {'params': ..., 'batch_stats': ...} as init makes them"


class Architecture(NamedTuple):
    """A network and what it demands of its input.

    Attributes:
      module: called as module(x, train) with normalised images x; returns logits.
      min_size: smallest image height and width (its total stride).
      multiple_of: height and width must be a multiple of this.
      normalization: what `normalization=None` means for it.
    """

    module: nn.Module
    min_size: int
    multiple_of: int = 1
    normalization: str = "none"


@dataclasses.dataclass(frozen=True, eq=False)  # compared and hashed by identity
class ModelBundle:
    """A network as pure functions. Works under jit, grad (reverse mode), vmap and lax.scan.

    Attributes:
      name: name in `ard_jax.models.names()`, or "wrn_{depth}_{width}", "dm_wrn_{depth}_{width}".
      num_classes: number of logits K.
      image_shape: (H, W, C).
      normalization: what is done to the pixels inside `apply`: "none", a name in `NORMALIZATIONS`, or
        {"mean": (...), "std": (...)}.
      init: typed key, or seed -> {"params": ..., "batch_stats": ...}; both nested dicts of float32 arrays,
        batch_stats is {} for a network without BatchNorm.
      apply: (variables, images, train) -> (logits, batch_stats). images [B, H, W, C] float in [0, 1];
        logits [B, K] float32; train is a python bool. False: running statistics, batch_stats comes back
        unchanged. True: statistics of the batch, batch_stats are the updated running statistics.
        Raises ValueError when images, train or variables are not of that form.
      at: side in pixels -> the same network for such images, where its parameters allow; None: unknown.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    normalization: Any
    init: Callable[[jax.Array], dict[str, Any]]
    apply: Callable[[dict[str, Any], jax.Array, bool], tuple[jax.Array, dict[str, Any]]]
    at: Callable[[int], "ModelBundle"] | None = None


def normalization_constants(
    normalization: Any, channels: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """The (mean, std) that a normalisation stands for.

    Args:
      normalization: "none", a name in `NORMALIZATIONS`, or a mapping with exactly "mean" and "std", each
        of one number per channel.
      channels: channels of the images.

    Returns:
      None for "none"; else float32 arrays mean [C] and std [C].

    Raises:
      ValueError: unknown name, other keys, wrong number of values, a std that is not positive.
    """
    if isinstance(normalization, str):
        if normalization == "none":
            return None
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization={normalization!r} is unknown; choose one of "
                f"{['none', *NORMALIZATIONS]} or give {{'mean': [...], 'std': [...]}}"
            )
        mean, std = NORMALIZATIONS[normalization]
    else:
        try:
            given = dict(normalization)
        except (TypeError, ValueError):
            given = {}
        if set(given) != {"mean", "std"}:
            raise ValueError(
                f"normalization={normalization!r} must be a name or a mapping with exactly the keys "
                "'mean' and 'std'"
            )
        mean, std = given["mean"], given["std"]
    try:
        mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"normalization={normalization!r}: mean and std must be numbers"
        ) from error
    if mean.shape != (channels,) or std.shape != (channels,):
        raise ValueError(
            f"normalization={normalization!r} has mean of shape {mean.shape} and std of shape "
            f"{std.shape}, but the images have {channels} channel(s); give one value per channel, or "
            "normalization='none'"
        )
    if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(std)) and np.all(std > 0)):
        raise ValueError(f"normalization={normalization!r}: values must be finite and std positive")
    if np.max(np.abs(mean)) > 2 or np.max(std) > 2:
        raise ValueError(
            f"normalization={normalization!r}: pixels are in [0, 1] here; divide mean and std by 255"
        )
    return mean, std


def check_image_shape(
    name: str, architecture: Architecture, image_shape: Any
) -> tuple[int, int, int]:
    """Returns image_shape as a tuple of ints (H, W, C).

    Raises:
      ValueError: not three positive ints, or a size that the architecture cannot take.
    """
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else ()
    whole = [isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0 for n in shape]
    if len(shape) != 3 or not all(whole):
        raise ValueError(f"image_shape={image_shape!r} must be three positive ints (H, W, C)")
    height, width, channels = (int(n) for n in shape)
    if checks.channels_first((height, width, channels)):
        raise ValueError(
            f"image_shape={shape} is channels first; give (H, W, C): ({width}, {channels}, {height})"
        )
    if min(height, width) < architecture.min_size:
        raise ValueError(
            f"{name} divides the image size by {architecture.min_size} and needs images of at least "
            f"{architecture.min_size}x{architecture.min_size}, but image_shape is {shape}; "
            "use larger images or a network with fewer stages (small_cnn, small_resnet)"
        )
    if height % architecture.multiple_of or width % architecture.multiple_of:
        raise ValueError(
            f"{name} needs an image height and width that are multiples of "
            f"{architecture.multiple_of}, but image_shape is {shape}; crop or pad the images"
        )
    return height, width, channels


def make_bundle(
    name: str, architecture: Architecture, num_classes: int, image_shape: Any, normalization: Any
):
    """Wraps a network into a ModelBundle.

    Args:
      name: name of the network, for messages.
      architecture: the network.
      num_classes: number of logits.
      image_shape: (H, W, C).
      normalization: None for the architecture's own, or see `normalization_constants`.

    Returns:
      A ModelBundle.

    Raises:
      ValueError: see `check_image_shape` and `normalization_constants`.
    """
    module = architecture.module
    image_shape = check_image_shape(name, architecture, image_shape)
    if normalization is None:
        normalization = architecture.normalization
    constants = normalization_constants(normalization, image_shape[-1])

    def init(key: jax.Array):
        # lazy_init runs the initialisers only, not the convolutions.
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        key = checks.random_key(key)
        if key is None or key.shape:
            shown = "None" if key is None else f"{len(key)} keys"
            raise ValueError(f"key is {shown}; give one jax.random.key(seed), or the seed")
        with exported_convolutions("stock"):  # the form that is traced fastest
            variables = module.lazy_init(key, image, train=False)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def apply(variables: Any, images: jax.Array, train: bool) -> Any:
        check_variables(name, variables)
        images = checks.array(images, "images")
        _check_call(name, image_shape, images, train)
        x = jnp.asarray(images, jnp.float32)
        if constants is not None:
            x = (x - constants[0]) / constants[1]
        try:
            if not train:
                return module.apply(variables, x, train=False), variables["batch_stats"]
            logits, updated = module.apply(variables, x, train=True, mutable=["batch_stats"])
        except FlaxError as error:
            raise ValueError(f"variables are not those of {name}{_AS_INIT}: {error}") from error
        return logits, updated.get("batch_stats", {})

    if not isinstance(normalization, str):
        normalization = {"mean": tuple(normalization["mean"]), "std": tuple(normalization["std"])}

    def at(side: int) -> ModelBundle:
        shape = (side, side, image_shape[-1])
        return make_bundle(name, architecture, num_classes, shape, normalization)

    return ModelBundle(name, num_classes, image_shape, normalization, init, apply, at)


def check_variables(name: str, variables: Any) -> None:
    """Raises ValueError unless these are params and batch_stats of floats; `name` is of their network."""
    given = dict(variables) if isinstance(variables, Mapping) else {"": variables}
    groups = {key: type(value).__name__ for key, value in given.items()}
    if not all(isinstance(given.get(key), Mapping) for key in ("params", "batch_stats")):
        raise ValueError(f"variables are not those of {name}{_AS_INIT}, but {groups}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"variables of {name}: {where} is {kind}; give arrays of floats, as init does"
            )


def _check_call(name: str, image_shape: tuple[int, ...], images: Any, train: Any):
    if not isinstance(train, bool):
        raise ValueError(f"{name}: train={train!r} must be True or False (a python bool)")
    if np.ndim(images) != 4 or np.shape(images)[1:] != image_shape:
        given, fix = np.shape(images), "create it with the image_shape of the data"
        if given == image_shape:
            fix = "a single image needs a batch axis: images[None]"
        elif len(given) == 4 and given[1:] == (image_shape[2], *image_shape[:2]):
            fix = "these are channels first: images.transpose(0, 2, 3, 1)"
        raise ValueError(
            f"{name} was created for images of shape [B, {', '.join(map(str, image_shape))}], but got "
            f"{list(given)}; {fix}"
        )
    if not jnp.issubdtype(jnp.result_type(images), jnp.floating):
        raise ValueError(
            f"{name} takes floating point images in [0, 1], but got {jnp.result_type(images)}; "
            "divide uint8 images by 255"
        )
    if checks.is_concrete(images) and np.size(images):
        low, top = checks.extremes(images)
        if top > 2 or low < -0.5:  # an attack's iterates may leave the range a little
            fix = (
                "divide by 255"
                if low >= 0
                else "are they normalised? Its own normalization does that"
            )
            raise ValueError(
                f"{name} takes images in [0, 1], but these go up to {top:g} and down to {low:g}; {fix}"
            )


def num_params(bundle: ModelBundle) -> int:
    """Number of trainable parameters, from shapes alone: nothing is allocated.

    Raises:
      ValueError: no network.
    """
    check_network(bundle)
    params = jax.eval_shape(lambda: bundle.init(jax.random.key(0)))["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def check_network(bundle: Any) -> None:
    """Raises ValueError unless it is a network."""
    if not isinstance(bundle, ModelBundle):
        shown = repr(bundle) if isinstance(bundle, str) else type(bundle).__name__
        raise ValueError(f"{shown} is no network; give one of models.create(...)")


def check_fit(bundle: Any, variables: Any, name: str = "") -> None:
    """Raises ValueError unless these are variables of this network, which messages call `name`."""
    check_network(bundle)
    name = name or bundle.name
    check_variables(name, variables)
    wanted = named_shapes(jax.eval_shape(bundle.init, jax.random.key(0)))
    found = named_shapes({group: variables[group] for group in ("params", "batch_stats")})
    if problems := differences(found, wanted):
        raise ValueError(f"variables are not those of {name}: {summary(problems)}")


def differences(given: Mapping[str, tuple], layout: Mapping[str, tuple]) -> list[str]:
    """What keeps tensors of these names and shapes from being a network of this layout, in words."""
    kinds = (
        [
            f"{name} is {given[name]} but must be {shape}"
            for name, shape in layout.items()
            if name in given and given[name] != shape
        ],
        [f"not part of it {name} {shape}" for name, shape in given.items() if name not in layout],
        [f"missing {name} {shape}" for name, shape in layout.items() if name not in given],
    )
    # In turns, so that the first few show every kind.
    return [text for row in itertools.zip_longest(*kinds) for text in row if text]


def summary(problems: list[str], shown: int = 8) -> str:
    """The first few problems and how many more there are."""
    more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
    return "; ".join(problems[:shown]) + more


def named_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Flat name ("params/fc/kernel") -> shape of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
        for path, leaf in leaves
    }
