"""Images per second of the two loaders, without training: python benchmarks/loaders.py [--images 8192].

Makes folders of smooth random images (they compress about as photographs do) in a temporary directory,
then reads training batches of each with every setting. Images per second of wall time and, as a machine
may be busy with other things, per second of processor time (of the process and its workers). The memory
loader's time to decode the folder at the start is given beside its speed, and the peak memory of the
process that read the batches. `crop` is the grain loader with random resized crops, `plain` a grain pipeline
of a few lines that does the same to each image and checks nothing.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import grain
import numpy as np
from PIL import Image

from ard_jax import data
from ard_jax.data import geometry
from ard_jax.data.train_batches import TrainBatches

BATCH = 128
CASES = [  # folder, loader, image_size, workers
    ("64.png", "memory", 0, 0),
    ("64.png", "grain", 0, 0),
    ("64.png", "grain", 0, 1),
    ("64.png", "grain", 0, 2),
    ("64.jpeg", "memory", 0, 0),
    ("64.jpeg", "grain", 0, 0),
    ("64.jpeg", "grain", 0, 2),
    ("500.jpeg", "grain", 64, 0),
    ("500.jpeg", "grain", 64, 2),
    ("500.jpeg", "grain", 224, 0),
    ("500.jpeg", "grain", 224, 2),
    ("500.jpeg", "crop", 224, 0),
    ("500.jpeg", "plain", 224, 0),
    ("500.jpeg", "crop", 224, 2),
]


def make(root: Path, size: int, suffix: str, count: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        part = "train" if i >= 64 else "test"
        folder = root / part / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (size // 4, size // 4, 3), np.uint8)
        shape = (size, size * 3 // 4) if size > 64 else (size, size)
        Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC).save(
            folder / f"{i}.{suffix}"
        )


def measure(root: str, loader: str, image_size: int, workers: int, queue) -> None:
    started = time.perf_counter()
    if loader == "plain":
        files = sorted(Path(root, "train").glob("*/*"))
        steps, close = 2 * len(files) // BATCH, lambda: None
        batches = plain_pipeline(files, image_size)
    else:
        reading = data.Reading("memory" if loader == "memory" else "grain", image_size, workers)
        train = data.load("folder", root, reading=reading).train
        steps = 2 * len(train) // BATCH
        crops = geometry.RandomCrops(0, (0.08, 1.0)) if loader == "crop" else None
        source = TrainBatches(
            train, batch_size=BATCH, seed=0, last_batch="drop", total=steps, crops=crops
        )
        batches, close = map(source.next, range(steps)), source.close
    opened = time.perf_counter() - started
    next(batches)
    began, spent = time.perf_counter(), processor_seconds()
    for _ in range(1, steps):
        next(batches)
    seconds = time.perf_counter() - began
    close()
    spent = processor_seconds() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    count = (steps - 1) * BATCH
    rates = {"images_per_s": count / seconds, "images_per_cpu_s": count / max(spent, 1e-9)}
    queue.put({"open_s": opened, "peak_mb": peak} | rates)


class PlainCrop(grain.transforms.RandomMap):
    """A random part of an image file, scaled, and mirrored in half of the cases."""

    def __init__(self, size: int):
        """Takes the side in pixels."""
        self.size = size

    def random_map(self, element: Path, rng: np.random.Generator) -> np.ndarray:
        """uint8 [size,size,3] of a path."""
        with Image.open(element) as image:
            box = geometry.RandomCrop(rng.random(41), (0.08, 1.0)).box(*image.size)
            part = image.convert("RGB").resize((self.size,) * 2, Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(part)
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def plain_pipeline(files: list[Path], size: int):
    """Batches of random crops, again and again; as many threads as this machine has cores."""
    source = grain.MapDataset.source(files).seed(0).shuffle().random_map(PlainCrop(size))
    options = grain.ReadOptions(num_threads=multiprocessing.cpu_count(), prefetch_buffer_size=512)
    batches = source.repeat().to_iter_dataset(options).batch(BATCH)
    return iter(batches)


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--only", default="", help="loaders, such as crop,plain; all if empty")
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as top:
        for name, count in (
            ("64.png", args.images),
            ("64.jpeg", args.images),
            ("500.jpeg", args.images // 4),
        ):
            size, suffix = name.split(".")
            make(Path(top) / name, int(size), suffix, count)
        print("folder    loader   size workers  start s  images/s  per cpu s  peak MB")
        wanted = set(filter(None, args.only.split(",")))
        for name, loader, size, workers in CASES:
            if wanted and loader not in wanted:
                continue
            queue = spawn.Queue()
            one = spawn.Process(
                target=measure, args=(str(Path(top) / name), loader, size, workers, queue)
            )
            one.start()
            got = queue.get()
            one.join()
            print(
                f"{name:10}{loader:8}{size:5}{workers:8}{got['open_s']:9.2f}{got['images_per_s']:10.0f}"
                f"{got['images_per_cpu_s']:11.0f}{got['peak_mb']:9.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
