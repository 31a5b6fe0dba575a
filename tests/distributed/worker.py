"""ard_jax.main, which also writes down its training batches and says where it is, for the tests."""

import atexit
import os
import sys
import time

import numpy as np
from absl import app

from ard_jax import main


def mark(text):
    """Appends a line to the file that `run_processes.wait_for` reads."""
    with open(os.environ["ARD_TEST_MARKS"], "a") as file:
        file.write(text + "\n")
    time.sleep(float(os.environ["ARD_TEST_SLOW"]))


def wrap(owner, name, before=None, after=None):
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        if before:
            before(*args, **kwargs)
        result = original(*args, **kwargs)
        if after:
            after(result)
        return result

    setattr(owner, name, wrapped)


def watch():
    """Hooks into the loop."""
    from ard_jax import evaluate, loop, steps
    from ard_jax.attacks.autoattack_run import Cascade
    from ard_jax.checkpoint import Checkpoints
    from ard_jax.data.batches import TrainBatches

    seen = {"index": [], "label": [], "image_sum": []}

    def record(batch):
        if "student" not in building:
            return
        seen["index"].append(batch["index"])
        seen["label"].append(batch["label"])
        seen["image_sum"].append(batch["image"].astype(np.int64).sum((1, 2, 3)))

    building = []
    wrap(loop.pipeline, "get_batch", after=record)
    # Of data that is on the device only the indices are asked for.
    indices = TrainBatches.indices
    TrainBatches.indices = lambda self, step: loop.pipeline.get_batch(
        self._load.dataset, indices(self, step)
    )["index"]
    wrap(loop._Loop, "run", before=lambda self, state: began(self.phase.title))
    wrap(
        loop._Loop,
        "boundary",
        before=lambda self, step, *_, **__: mark(f"{building[-1]} step {step}"),
    )
    for name in ("build", "build_indexed"):
        wrap(steps, name, before=lambda *_: mark(f"{building[-1]} compile"))
    wrap(
        Checkpoints,
        "save",
        before=lambda self, step, *_, **__: mark(f"save {self.folder.name} {step}"),
    )
    wrap(evaluate.Evaluator, "run", before=lambda *_, **__: mark("evaluation"))
    wrap(Cascade, "_apply", before=lambda *_: mark("autoattack batch"))

    def began(title):
        building.append(title.split()[0])

    def save():
        if seen["index"]:
            np.savez(os.environ["ARD_TEST_BATCHES"], **{k: np.stack(v) for k, v in seen.items()})

    atexit.register(save)


def run(argv):
    watch()
    return main.main(argv)


if __name__ == "__main__":
    sys.argv[0] = "ard_jax.main"
    app.run(run)
