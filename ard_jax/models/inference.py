"""A network reduced to what it computes once its variables are fixed, for export."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ard_jax.models.bundle import ModelBundle
from ard_jax.models.norm import BatchNorm


class Affine(NamedTuple):
    """What a BatchNorm becomes: x * factor + shift, float32 [C] each; factor None stands for 1."""

    factor: np.ndarray | None
    shift: np.ndarray


class Norm(NamedTuple):
    """A BatchNorm's epsilon, and the path of the convolution whose output it alone reads, or None."""

    epsilon: float
    source: str | None


def norm_sources(bundle: ModelBundle) -> dict[str, Norm]:
    """Path of every BatchNorm -> its Norm.

    Found by running the network on shapes. A pair is a convolution and a BatchNorm of the same block,
    connected directly; in our blocks nothing else reads such a convolution. A convolution without a
    block in common (the stem of a pre-activation network) may feed a shortcut too and is no pair.
    """
    outputs, sources = [], {}  # outputs holds the arrays themselves, so that identity is safe

    def look(call: Callable, args: tuple, kwargs: dict[str, Any], context: Any):
        module, path = context.module, context.module.path
        if isinstance(module, BatchNorm) and context.method_name == "__call__":
            found = [conv for conv, out in outputs if out is args[0] and conv[:-1] == path[:-1]]
            source = "/".join(found[0]) if found else None
            sources["/".join(path)] = Norm(module.epsilon, source)
        result = call(*args, **kwargs)
        if (
            isinstance(module, nn.Conv)
            and context.method_name == "__call__"
            and not module.use_bias
        ):
            outputs.append((path, result))
        return result

    shapes = jax.eval_shape(bundle.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, *bundle.image_shape), jnp.float32)
    with nn.intercept_methods(look):
        jax.eval_shape(lambda v, x: bundle.apply(v, x, False)[0], shapes, images)
    return sources


def inference_apply(
    bundle: ModelBundle, variables: Any, norms: Mapping[str, Affine], images: jax.Array
) -> jax.Array:
    """Logits [B, K] of images [B, H, W, C] in [0, 1], with the BatchNorms replaced.

    Args:
      bundle: the network.
      variables: its variables; statistics and parameters of the replaced BatchNorms are not read.
      norms: path of BatchNorm -> what it becomes. One that is missing here is left as it is.
      images: float32.
    """

    def replace(call: Callable, args: tuple, kwargs: dict[str, Any], context: Any):
        path = "/".join(context.module.path)
        if not isinstance(context.module, BatchNorm) or path not in norms:
            return call(*args, **kwargs)
        factor, shift = norms[path]
        x = args[0].astype(jnp.float32)
        y = x + shift if factor is None else x * factor + shift
        return y.astype(context.module.dtype)

    with nn.intercept_methods(replace):
        return bundle.apply(variables, images, False)[0]
