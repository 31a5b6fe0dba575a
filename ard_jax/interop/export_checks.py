"""What an exported file is held against: the checkpoint's own logits, its speed, its stored attacks.

Everything here runs on the CPU, also where JAX has an accelerator: its convolutions may round to TF32 or
bfloat16, which says nothing about the file.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ard_jax import data
from ard_jax.config import build
from ard_jax.config.schema import DataConfig
from ard_jax.data import DataError, base
from ard_jax.models import ModelBundle

TOLERANCE = 1e-4  # of a logit, relative to the largest one
NUM_IMAGES = 1000
_BATCH = 100
_SECONDS, _MAX_REPEATS = 2.0, 50  # spent on one latency

Predict = Callable[
    [np.ndarray], np.ndarray
]  # images float32 [B, H, W, C] in [0, 1] -> logits [B, K]


class ExportError(ValueError):
    """A network that cannot be exported, or an export that is not the same network."""


@dataclasses.dataclass(frozen=True)
class Images:
    """What the formats are compared on.

    Attributes:
      images: float32 [N, H, W, C] in [0, 1].
      what: for people, "1000 test images of cifar10" or "256 random images (no data: ...)".
    """

    images: np.ndarray
    what: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: format.
      size: of the file in bytes; None for the checkpoint itself.
      difference: largest difference of a logit, relative to the largest logit; None: not compared.
      agreement: share of images with the same prediction; None: not compared.
      latency: batch size -> milliseconds per image; {}: not measured.
      note: why something is missing.
    """

    name: str
    size: int | None
    difference: float | None = None
    agreement: float | None = None
    latency: dict[int, float] = dataclasses.field(default_factory=dict)
    note: str = ""


def test_images(
    description: dict[str, Any], meta: dict[str, Any], config: DataConfig | None
) -> Images:
    """The first test images of the given data, or of those that the network was trained on.

    Random images when neither is there, and the text says why.

    Raises:
      ExportError: the given images do not fit the network.
      DataError: the given data cannot be loaded.
    """
    shape = tuple(description["image_shape"])
    try:
        if config is None:
            if "experiment" not in meta:
                raise DataError("an imported network names no data set; give its --config")
            source = meta["experiment"]["data"]
            name, test = source["name"], data.load(source["name"], source["dir"] or None).test
        else:
            name, test = config.name, build.load_data(config).test
    except ValueError as error:
        if config is not None:
            raise
        images = np.random.default_rng(0).random((256, *shape), dtype=np.float32)
        return Images(images, f"256 random images (no data: {str(error).splitlines()[0]})")
    if tuple(test.image_shape) != shape:
        raise ExportError(
            f"the network takes images of shape {shape}, but {test.name} has {test.image_shape}; give the "
            "--config of its data"
        )
    test = base.first(test, NUM_IMAGES)
    images = np.asarray(test.images, np.float32) / np.float32(255)
    return Images(images, f"{len(images)} test images of {name}")


def jax_predict(bundle: ModelBundle, variables: Any) -> Predict:
    """The network itself, compiled for the CPU."""
    with jax.default_device(cpu()):
        apply = jax.jit(lambda v, x: bundle.apply(v, x, False)[0])
        placed = jax.device_put(variables, cpu())
    return on_cpu(lambda images: apply(placed, images))


def on_cpu(function: Callable[[Any], jax.Array]) -> Predict:
    """A JAX function as one of numpy arrays that runs on the CPU."""

    def predict(images: np.ndarray):
        with jax.default_device(cpu()):
            return np.asarray(function(images))

    return predict


def cpu() -> jax.Device:  # pyright: ignore[reportInvalidTypeForm]  # jax types it late
    """The CPU. Raises ExportError where JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise ExportError(
            f"export needs JAX's CPU backend: {error}; add cpu to JAX_PLATFORMS"
        ) from error


def threads() -> int:
    """CPU threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def logits_of(predict: Predict, images: np.ndarray) -> np.ndarray:
    """Logits [N, K] of all images, in batches."""
    parts = [predict(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
    return np.concatenate(parts)


def compare(name: str, logits: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """(largest difference relative to the largest logit, share of equal predictions).

    Raises:
      ExportError: the difference exceeds TOLERANCE, or the shapes differ.
    """
    if logits.shape != reference.shape:
        raise ExportError(
            f"{name} gives logits of shape {logits.shape} instead of {reference.shape}"
        )
    difference = float(np.max(np.abs(logits - reference)) / np.max(np.abs(reference)))
    agreement = float(np.mean(logits.argmax(1) == reference.argmax(1)))
    if not difference <= TOLERANCE:  # also when it is NaN
        raise ExportError(
            f"{name} is not the network of the checkpoint: its logits differ by {difference:.2g} of the "
            f"largest one (allowed: {TOLERANCE:g}), {agreement:.2%} of the predictions agree; nothing was "
            "written. Please report this with the name of the architecture"
        )
    return difference, agreement


def latency(predict: Predict, images: np.ndarray) -> dict[int, float]:
    """Batch size -> milliseconds per image, the median of repeats after one that does not count."""
    found = {}
    for size in (1, 64):
        batch = np.resize(images, (size, *images.shape[1:]))
        predict(batch)
        times, stop = [], time.perf_counter() + _SECONDS
        while len(times) < 3 or (time.perf_counter() < stop and len(times) < _MAX_REPEATS):
            start = time.perf_counter()
            predict(batch)
            times.append(time.perf_counter() - start)
        found[size] = 1000 * statistics.median(times) / size
    return found


def table(rows: list[Row]) -> str:
    """The rows as text."""
    head = ("format", "file size", "logit difference", "same predictions", "batch 1", "batch 64")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        times = [f"{row.latency[b]:.3g} ms" if b in row.latency else "-" for b in (1, 64)]
        lines.append(
            (
                row.name,
                "-" if row.size is None else f"{row.size / 1e6:.2f} MB",
                "-" if row.difference is None else f"{row.difference:.1e}",
                "-" if row.agreement is None else f"{row.agreement:.2%}",
                *times,
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    notes = [f"{row.name}: {row.note}" for row in rows if row.note]
    return "\n".join([line.rstrip() for line in text] + notes)


def stored_attacks(run: Path, title: str, predict: Predict) -> list[str]:
    """Robust accuracy of an exported network on the adversarial images that its run stored.

    Args:
      run: folder with evaluation_images.npz (written with config.eval.save_images) or without.
      title: the network's name in the evaluation.
      predict: the exported network.

    Returns:
      One sentence for each attack; none where nothing is stored.
    """
    try:
        stored = np.load(run / "evaluation_images.npz")
        flags = np.load(run / "evaluation_flags.npz")
    except OSError:
        return []
    lines = []
    for key in (name for name in stored.files if name.rpartition("/")[0] == title):
        images = np.asarray(stored[key], np.float32)
        correct = logits_of(predict, images).argmax(1) == flags["labels"][: len(images)]
        ours, attack = flags[f"{key}/correct"], key.rpartition("/")[2]
        lines.append(
            f"{attack}, {len(images)} stored images: robust accuracy {ours.mean():.2%} in the evaluation, "
            f"{correct.mean():.2%} through the file"
        )
    return lines
