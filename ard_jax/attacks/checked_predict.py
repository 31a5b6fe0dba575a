"""A user's function from images to logits, looked at before an attack runs on it."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax.attacks import threat_model
from ard_jax.attacks.auto_attack import diagnostics
from ard_jax.convolutions.rewrite import fast_on_cpu
from ard_jax.losses import checks


def checked(predict: Any, images: Any, *rest: Any) -> Callable[..., Any]:
    """Returns predict, on a CPU with convolutions that are fast in a loop.

    Warns, where the images can be read, of outputs that an attack can make nothing of.

    Args:
      predict: images [B,...] -> logits [B,K].
      images: [B,...] float.
      *rest: its further arguments.

    Raises:
      ValueError: no function, not one of JAX, or one that does not return logits [B,K].
    """
    shape = traced_shape(predict, images, *rest)
    threat_model.check_logits(shape, images)
    logits = predict(images, *rest) if checks.is_concrete(images) else None
    if checks.is_concrete(logits):  # and no weights are traced
        found = diagnostics.output_warnings(np.asarray(logits), ())
        for text in [*found, *changing_constants(predict, images, *rest)]:
            warnings.warn(text, stacklevel=2)
    return fast_on_cpu(predict, images, *rest)


def traced_shape(predict: Any, *arguments: Any) -> Any:
    """Returns what predict would return, as shapes, without running it.

    Raises:
      ValueError: no function, or one that needs the values of its arguments, as NumPy does.
    """
    if not callable(predict):
        bundle = "; of a network of ard_jax.models: lambda x: net.apply(variables, x, False)[0]"
        raise ValueError(
            f"predict is {type(predict).__name__}; give a function from images to logits"
            + (bundle if hasattr(predict, "apply") else "")
        )
    try:
        return jax.eval_shape(predict, *arguments)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise ValueError(
            "predict reads the values of its images (NumPy, float(), if ...), so that no gradient can be "
            f"taken; write it with jax.numpy: {str(error).splitlines()[0]}"
        ) from error


def changing_constants(predict: Callable, *arguments: Any) -> list[str]:
    """Returns a warning if two traces of predict hold different constants: random numbers drawn by Python."""
    first, second = (
        [
            np.asarray(c)
            for c in jax.make_jaxpr(lambda *a: predict(*a))(*arguments).consts
            if _plain(c)
        ]
        for _ in range(2)
    )
    same = len(first) == len(second) and all(map(np.array_equal, first, second))
    return [] if same else [
        "predict is another function each time it is traced (random numbers drawn by NumPy or Python?): "
        "the attacks saw one draw, the result holds for no other"
    ]  # fmt: skip


def _plain(value: Any) -> bool:
    return not jnp.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.prng_key)
