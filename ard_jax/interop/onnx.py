"""ONNX export through jax2onnx (https://github.com/enpasos/jax2onnx), and running the file.

jax2onnx, onnx and onnxruntime are the extra `export` and are imported by the functions that need them.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax.convolutions.canonical_conv import exported_convolutions
from ard_jax.interop import fold
from ard_jax.io.files import check_file_place
from ard_jax.losses import checks
from ard_jax.models import ModelBundle, num_params

NEEDS = ("jax2onnx", "onnx", "onnxruntime")
# Old enough for runtimes of 2023 on (onnxruntime 1.14, TensorRT 8.6), new enough for every operator here.
OPSET = 18
# The format's version that goes with that opset; the onnx package would write its own newest, which older
# runtimes refuse whatever the operators.
IR_VERSION = 8
_LIMIT = 2**31 - 2**20  # protobuf's limit for one file, less what is not weights


class OnnxError(ValueError):
    """A network that cannot be exported to ONNX here."""


def check_installed() -> None:
    """Raises OnnxError unless everything that export and check need is installed."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise OnnxError(
            f"ONNX export needs {', '.join(missing)}, not installed here; pip install 'ard_jax[export]'"
        )


def check_ir_version(version: int) -> None:
    """Raises OnnxError unless a file of this IR version can be written here."""
    check_installed()
    import onnx

    if not IR_VERSION <= version <= onnx.IR_VERSION:
        raise OnnxError(
            f"--onnx_ir_version={version}: from {IR_VERSION} (opset {OPSET}) to {onnx.IR_VERSION} (what the "
            "installed onnx package knows)"
        )


def export(
    bundle: ModelBundle,
    variables: Any,
    path: str | Path,
    *,
    fold_batchnorm: bool = False,
    metadata: Mapping[str, str] | None = None,
    ir_version: int = IR_VERSION,
) -> None:
    """Writes a network as one ONNX file, weights and normalisation inside.

    Input "images": float32 [B, H, W, C] in [0, 1], B symbolic. Output "logits": float32 [B, K].

    Args:
      bundle: the network.
      variables: {"params", "batch_stats"} of arrays.
      path: of the file; replaced where it exists.
      fold_batchnorm: see `fold.fold_batchnorm`.
      metadata: strings for the file's metadata_props.
      ir_version: of the file's format, 8 or later.

    Raises:
      ValueError: no network, or variables that are not its own.
      OSError: no file can stand at `path`.
      OnnxError: packages are missing, an IR version that the opset or the onnx package does not have, or the
        weights exceed the 2 GB that one file can hold.
    """
    check_ir_version(ir_version)
    check_file_place(path)
    if Path(path).suffix.lower() != ".onnx":
        raise OnnxError(f"{path}: the name of an ONNX file ends in .onnx")
    if 4 * num_params(bundle) > _LIMIT:
        raise OnnxError(
            f"{bundle.name} has {num_params(bundle):,} parameters, more than the 2 GB that one ONNX file "
            "can hold; use --format=stablehlo"
        )
    import jax2onnx
    import onnx

    if fold_batchnorm:
        predict = fold.fold_batchnorm(bundle, variables).predict
    else:
        predict = fold.inference(bundle, variables)
    with exported_convolutions("stock"):
        model = jax2onnx.to_onnx(
            predict,
            [jax.ShapeDtypeStruct(("B", *bundle.image_shape), jnp.float32)],
            model_name=bundle.name,
            opset=OPSET,
            input_names=["images"],
            output_names=["logits"],
        )
    model.ir_version = ir_version
    onnx.helper.set_model_props(model, {k: str(v) for k, v in (metadata or {}).items()})
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))


def predict(path: str | Path, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """The network of an ONNX file on the CPU, by onnxruntime.

    Args:
      path: of a file of `export`.
      threads: threads of one operator; None: onnxruntime's choice.

    Returns:
      images float32 [B, H, W, C] in [0, 1] -> logits float32 [B, K]; raises ValueError on uint8 images,
      values outside [0, 1] or another shape.

    Raises:
      OnnxError: onnxruntime is not installed, or the file is missing or damaged.
      ValueError: no number of threads.
    """
    check_installed()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about graph optimisation
    if threads is not None:
        options.intra_op_num_threads = checks.count(threads, "threads", 1)
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common public base
        raise OnnxError(f"{path} cannot be read by onnxruntime: {error}") from error
    shape = session.get_inputs()[0].shape[1:]

    def run(images: np.ndarray) -> np.ndarray:
        images = np.asarray(checks.pixels(images), np.float32)
        if list(images.shape[1:]) != list(shape):
            raise OnnxError(
                f"images have shape {images.shape}; {path} takes [B, {str(shape)[1:-1]}]"
            )
        return np.asarray(session.run(["logits"], {"images": images})[0])

    return run


def operators(path: str | Path) -> dict[str, int]:
    """Operator -> how often it occurs in an ONNX file."""
    import onnx

    nodes = [node.op_type for node in onnx.load(str(path)).graph.node]
    return {name: nodes.count(name) for name in sorted(set(nodes))}
