"""A user's function from images to logits, looked at before an attack runs on it."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core

from ard_jax.attacks import threat_model
from ard_jax.attacks.auto_attack import diagnostics
from ard_jax.convolutions.rewrite import fast_on_cpu
from ard_jax.losses import checks


def checked(predict: Any, images: Any, *rest: Any) -> Callable[..., Any]:
    """Returns predict, on a CPU with convolutions that are fast in a loop, after `look`."""
    look(predict, images, *rest)
    return fast_on_cpu(predict, images, *rest)


def look(
    predict: Any, images: Any, *rest: Any, clip: tuple[float, float] = (0.0, 1.0)
) -> tuple[np.ndarray | None, list[str]]:
    """Returns the clean logits [B,K], None where the images cannot be read, and what it warns of.

    That is, where they can, of images and outputs that an attack can make nothing of.

    Args:
      predict: images [B,...] -> logits [B,K].
      images: [B,...] float.
      *rest: its further arguments.
      clip: (lowest, highest) pixel value.

    Raises:
      ValueError: no function, not one of JAX, or one that does not return logits [B,K].
    """
    threat_model.check_logits(traced_shape(predict, images, *rest), images)
    with stateless():  # it was traced just now
        logits = predict(images, *rest) if checks.is_concrete(images) else None
    if not checks.is_concrete(logits):  # or weights are traced
        return None, []
    images, logits = np.asarray(images), np.asarray(logits)
    found = diagnostics.image_warnings(images, *clip) + diagnostics.output_warnings(logits, ())
    found += diagnostics.constant_warnings(images, logits)
    found += changing_constants(predict, images, *rest)
    if not found and not rest and len(images) > 1:  # what is given a key may draw from it
        alone = predict(jnp.asarray(np.repeat(images[:1], len(images), 0)))
        found += diagnostics.batch_warnings(logits[:1], np.asarray(alone))
    for text in found:
        warnings.warn(text, stacklevel=4)
    return logits, found


@contextlib.contextmanager
def stateless() -> Iterator[None]:
    """Turns the error of a function that keeps what it computed in a trace before into a ValueError."""
    try:
        yield
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(
            "predict keeps values from call to call, such as a random key that it splits; give it in "
            "evaluation mode, or as predict(images, key) to attacks.autoattack(..., version='rand')"
        ) from error


def check_function(predict: Any) -> None:
    """Raises ValueError unless `predict` is a function."""
    kind = type(predict).__name__
    if isinstance(predict, type) or not callable(predict) or hasattr(predict, "bind"):
        instead = ""
        if isinstance(predict, np.ndarray | jax.Array):
            instead = ", which comes first: attack(predict, images, labels, key)"
        elif hasattr(predict, "bind"):
            instead = "; of a Flax module: lambda x: module.apply(variables, x)"
        elif hasattr(predict, "apply"):
            instead = (
                "; of a network of ard_jax.models: lambda x: net.apply(variables, x, False)[0]"
            )
        raise ValueError(f"predict is {kind}; give a function from images to logits{instead}")


def traced_shape(predict: Any, *arguments: Any) -> Any:
    """Returns what predict would return, as shapes, without running it.

    Raises:
      ValueError: no function, one that needs the values of its arguments, as NumPy does, or one that fails.
    """
    check_function(predict)
    try:
        return jax.eval_shape(predict, *arguments)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise ValueError(
            "predict reads the values of its images (NumPy, float(), if ...), so that no gradient can be "
            f"taken; write it with jax.numpy: {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:  # whatever a user's function raises
        text = (str(error).splitlines() or [""])[0]
        if isinstance(error, TypeError) and "takes" in text and not all(map(_plain, arguments)):
            text += "; it is given images and a key, as a network that draws random numbers needs (eot > 1)"
        images = arguments[0]
        if isinstance(error, TypeError) and "missing" in text:
            text += (
                "; it must take images alone: of a network of ard_jax.models lambda x: net.apply(variables, "
                "x, False)[0], of one that draws random numbers attacks.autoattack(..., version='rand')"
            )
        raise ValueError(
            f"predict fails on images {images.dtype}{list(images.shape)}: {type(error).__name__}: {text}"
        ) from error


def changing_constants(predict: Callable, *arguments: Any) -> list[str]:
    """Returns a warning if two traces of predict hold different constants: random numbers drawn by Python.

    Raises:
      ValueError: what the first trace left behind stops the second.
    """
    with stateless():
        traced = [jax.make_jaxpr(lambda *a: predict(*a))(*arguments) for _ in range(2)]
    if any(isinstance(c, Tracer) for one in traced for c in one.consts):
        raise ValueError(
            "predict keeps values from call to call, such as a random key that it splits, or holds those of "
            "a jit, vmap or grad around this call; give it in evaluation mode, and call outside of them"
        )
    first, second = (
        [np.asarray(c) for c in (*one.consts, *_literals(one.jaxpr)) if _plain(c)] for one in traced
    )
    same = len(first) == len(second) and all(map(_equal, first, second))
    return [] if same else [
        "predict is another function each time it is traced (random numbers drawn by NumPy or Python?): "
        "the attacks saw one draw, the result holds for no other"
    ]  # fmt: skip


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first, second, equal_nan=first.dtype.kind in "fc")


def _literals(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """Numbers that stand in a program and in those within, such as seeds."""
    kinds = core.Jaxpr | core.ClosedJaxpr
    for equation in jaxpr.eqns:
        yield from (v.val for v in equation.invars if isinstance(v, core.Literal))
        inner = jax.tree.leaves([*equation.params.values()], is_leaf=lambda v: isinstance(v, kinds))
        for one in (v for v in inner if isinstance(v, kinds)):
            yield from _literals(getattr(one, "jaxpr", one))


def _plain(value: Any) -> bool:
    return not jnp.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.prng_key)
