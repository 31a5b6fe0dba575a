"""BatchNorm as constants of an exported network, on its own or folded into convolutions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ard_jax.models import ModelBundle
from ard_jax.models.bundle import check_fit
from ard_jax.models.inference import Affine, inference_apply, norm_sources


class Folded(NamedTuple):
    """A network without BatchNorm.

    Attributes:
      predict: images float32 [B, H, W, C] in [0, 1] -> logits float32 [B, K]; the weights are constants.
      folded: paths of the BatchNorms that went into the convolution before them.
      left: paths of those that no convolution feeds directly (at the start of a pre-activation block,
        behind a shortcut); they remain as a product and a sum.
    """

    predict: Callable[[jax.Array], jax.Array]
    folded: tuple[str, ...]
    left: tuple[str, ...]


def inference(bundle: ModelBundle, variables: Any) -> Callable[[jax.Array], jax.Array]:
    """The network as a function of images alone, each BatchNorm one product and one sum.

    Args:
      bundle: the network.
      variables: {"params", "batch_stats"} of arrays.

    Returns:
      images float32 [B, H, W, C] in [0, 1] -> logits float32 [B, K]. Equals `bundle.apply` up to rounding.

    Raises:
      ValueError: no network, or variables that are not its own.
    """
    check_fit(bundle, variables)
    variables = jax.tree.map(np.asarray, variables)
    norms = {path: _affine(variables, path, n.epsilon) for path, n in norm_sources(bundle).items()}
    return lambda images: inference_apply(bundle, variables, norms, images)


def fold_batchnorm(bundle: ModelBundle, variables: Any) -> Folded:
    """Scales each convolution that a BatchNorm follows by the BatchNorm's factor; its shift is the bias.

    Args:
      bundle: the network.
      variables: {"params", "batch_stats"} of arrays; not changed.

    Returns:
      A Folded. Its logits equal those of the network up to rounding.

    Raises:
      ValueError: no network, or variables that are not its own.
    """
    check_fit(bundle, variables)
    sources = norm_sources(bundle)
    kernels, norms = {}, {}
    variables = jax.tree.map(np.asarray, variables)
    for path, (epsilon, conv) in sources.items():
        factor, shift = norms[path] = _affine(variables, path, epsilon)
        if conv is not None:
            kernels[conv] = factor  # [kh, kw, in, out] * [out]
            norms[path] = Affine(None, shift)

    def scale(path: tuple, leaf: np.ndarray):
        names = [entry.key for entry in path]
        conv = "/".join(names[1:-1])
        return leaf * kernels[conv] if names[0] == "params" and conv in kernels else leaf

    scaled = jax.tree_util.tree_map_with_path(scale, variables)
    return Folded(
        lambda images: inference_apply(bundle, scaled, norms, images),
        tuple(path for path, norm in sources.items() if norm.source is not None),
        tuple(path for path, norm in sources.items() if norm.source is None),
    )


def _affine(variables: Any, path: str, epsilon: float):
    """Factor and shift of a BatchNorm in evaluation, computed in float64."""
    params, stats = variables["params"], variables["batch_stats"]
    for name in path.split("/"):
        params, stats = params[name], stats[name]
    scale, bias = np.float64(params["scale"]), np.float64(params["bias"])
    factor = scale / np.sqrt(np.float64(stats["var"]) + epsilon)
    shift = bias - np.float64(stats["mean"]) * factor
    return Affine(factor.astype(np.float32), shift.astype(np.float32))
