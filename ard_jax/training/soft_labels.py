"""Soft labels of teachers, made once for a whole training set: DARD's labels="offline".

They are kept in the order of the training set, so that a batch finds its rows by the images' indices.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np

from ard_jax import methods, rng
from ard_jax.config.build import TrainingSettings
from ard_jax.data import ArrayDataset, batching
from ard_jax.data.augment import STRONG, augment
from ard_jax.io.progress import Progress
from ard_jax.runtime import preemption, sharding
from ard_jax.runtime.distributed import everywhere, is_lead

FILE = "teacher_labels.npz"


def offline(
    settings: TrainingSettings,
    train: ArrayDataset,
    teacher: Any,
    mesh: Any,
    folder: Path,
) -> dict[str, np.ndarray]:
    """The teacher's logits at every training image and at its adversarial example against the teacher.

    Made in fixed batches of config.batch_size in dataset order, the teacher in eval mode; kept in the
    run's folder, so that a resumed run reads them back.

    Args:
      settings: gives the view (method option "offline_view"), attack, augmentation, batch size and seed.
      train: the training split, N images.
      teacher: `teachers.Teacher`.
      mesh: devices.
      folder: the run's.

    Returns:
      {"teacher_nat": float32 [N,K], "teacher_adv": float32 [N,K]}.
    """
    view = methods.make_config(settings.method, settings.options).offline_view
    kind = settings.data.augment if view == "augmented_once" else "none"
    mirrored = f" {settings.data.mirrors}" if kind in STRONG else ""
    made_by = f"{teacher.identity} {settings.attack} {kind}{mirrored} {settings.seed}"

    def make():
        program = _program(settings, teacher, mesh, kind)
        shape = (len(train), teacher.bundle.num_classes)
        found = {name: np.zeros(shape, np.float32) for name in ("teacher_nat", "teacher_adv")}
        for number, (rows, new, batch) in enumerate(_batches(settings, train, mesh)):
            local = {name: batch[name] for name in ("image", "label")}
            logits = program(teacher.variables, local, number)
            for name, values in logits.items():
                found[name][rows] = np.asarray(values)[:new]
        return found

    return _kept(Path(folder) / FILE, made_by, len(train), make)


def _batches(
    settings: TrainingSettings, train: ArrayDataset, mesh: Any
) -> Iterator[tuple[np.ndarray, int, dict[str, jax.Array]]]:
    """(rows of the training set, how many of the batch they are, batch on the devices), all in order.

    The last batch is filled up from the front: DPGD couples the images of a batch.
    """
    size = sharding.round_up(mesh, settings.batch_size)
    starts = range(0, len(train), size)
    progress = Progress(
        len(starts), description="soft labels", enabled=None if is_lead() else False
    )
    try:
        for start in starts:
            preemption.check("the making of soft labels")
            rows = np.arange(start, start + size) % len(train)
            host = batching.get_batch(train, batching.host_slice(rows, *sharding.process()))
            new = rows[: len(train) - start]
            yield new, len(new), sharding.put_batch(mesh, host)
            progress.update(1, {})
    finally:
        progress.close()


def _kept(path: Path, made_by: str, count: int, make: Callable) -> dict[str, np.ndarray]:
    """What the file holds, if it was made by the same, or what `make` makes, which is then kept there."""
    found = _read(path, made_by, count)
    if everywhere(found is not None):
        assert found is not None
        return found
    found = make()
    if is_lead():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp.npz")
        np.savez(partial, made_by=made_by, **found)
        partial.replace(path)
    return found


def _program(settings: TrainingSettings, teacher: Any, mesh: Any, kind: str):
    attack = settings.attack
    root = jax.random.key(settings.seed)

    def run(variables: Any, batch: dict[str, jax.Array], number: jax.Array):
        images = augment(
            rng.stream(root, "label view", number), batch["image"], kind, pad=settings.data.pad,
            flip=settings.data.mirrors,
        )  # fmt: skip

        def predict(x: jax.Array):
            return teacher.bundle.apply(variables, x, False)[0]

        key, clean = rng.stream(root, "label attack", number), predict(images)
        soft = {"teacher_logits": clean} if attack.needs_teacher == "logits" else {}
        adversarial = attack.run(predict, images, batch["label"], key, unroll=1, **soft)
        return {"teacher_nat": clean, "teacher_adv": predict(adversarial)}

    same, split = sharding.replicated(mesh), sharding.split_batch(mesh)
    return jax.jit(run, in_shardings=(same, split, same), out_shardings=same)


def _read(path: Path, made_by: str, count: int) -> dict[str, np.ndarray] | None:
    """The labels of an earlier start, if they are the same."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["made_by"]) != made_by:
                return None
            found = {name: file[name] for name in file.files if name != "made_by"}
            return found if all(len(values) == count for values in found.values()) else None
    except (OSError, ValueError, KeyError, BadZipFile):
        return None
