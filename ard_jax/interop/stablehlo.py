"""StableHLO export through jax.export: one file for CPU, CUDA and TPU, any batch size."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from ard_jax.convolutions.canonical_conv import exported_convolutions
from ard_jax.interop import fold, load_stablehlo
from ard_jax.io.files import check_file_place
from ard_jax.losses import checks
from ard_jax.models import ModelBundle

PLATFORMS = ("cpu", "cuda", "tpu")


class StableHloError(ValueError):
    """A StableHLO file that cannot be read, or a package is missing."""


def check_installed() -> None:
    """Raises StableHloError without flatbuffers, which `jax.export` needs and JAX does not install."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise StableHloError(
            "StableHLO export needs flatbuffers, not installed here; pip install 'ard_jax[export]'"
        )


def export(
    bundle: ModelBundle, variables: Any, path: str | Path, *, fold_batchnorm: bool = False
) -> None:
    """Writes a network as serialised StableHLO, weights and normalisation inside.

    JAX promises to read such a file for six months with newer versions of JAX.

    Args:
      bundle: the network.
      variables: {"params", "batch_stats"} of arrays.
      path: of the file; replaced where it exists.
      fold_batchnorm: see `fold.fold_batchnorm`.

    Raises:
      ValueError: no network, or variables that are not its own.
      OSError: no file can stand at `path`.
      StableHloError: flatbuffers is not installed.
    """
    check_installed()
    check_file_place(path)
    if fold_batchnorm:
        predict = fold.fold_batchnorm(bundle, variables).predict
    else:
        predict = fold.inference(bundle, variables)
    (batch,) = jax.export.symbolic_shape("B")
    images = jax.ShapeDtypeStruct((batch, *bundle.image_shape), jnp.float32)
    with exported_convolutions("by_platform"):
        exported = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(images)
    Path(path).write_bytes(exported.serialize())


def write_loader(path: str | Path) -> None:
    """Writes the ten lines that run such a file without ard_jax."""
    shutil.copyfile(load_stablehlo.__file__, path)


def load(path: str | Path) -> Callable[[jax.Array], jax.Array]:
    """The network of a file of `export`.

    Args:
      path: of the file.

    Returns:
      images float32 [B, H, W, C] in [0, 1] -> logits float32 [B, K], on JAX's default device; raises
      ValueError on uint8 images, values outside [0, 1] or another shape.

    Raises:
      StableHloError: the file is missing, damaged, or of a JAX too new or too old for this
        one; or flatbuffers is not installed.
    """
    check_installed()
    try:
        network = load_stablehlo.load(path)
    except Exception as error:  # a damaged file raises anything, from struct.error to ValueError
        raise StableHloError(
            f"{path} cannot be read as StableHLO by JAX {jax.__version__}: "
            f"{type(error).__name__}: {error}"
        ) from error

    def predict(images: jax.Array) -> jax.Array:
        images = checks.pixels(images)
        try:
            return network(images)
        except ValueError as error:  # of jax.export, which names its own argument
            raise ValueError(
                f"images of shape {images.shape} are not those of {path}: {error}"
            ) from error

    return predict
