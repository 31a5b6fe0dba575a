"""ard_jax.main, which also writes down its training batches and says where it is, for the tests."""

import atexit
import os
import sys
import time
from pathlib import Path

import numpy as np
from absl import app

from ard_jax import main
from ard_jax.cli import command_line


def mark(text):
    """Appends a line to the file that `run_processes.wait_for` reads; at the mark to stop at, waits there."""
    marks = Path(os.environ["ARD_TEST_MARKS"])
    with open(marks, "a") as file:
        file.write(text + "\n")
    stop, times = os.environ["ARD_TEST_HOLD"].rsplit(":", 1)
    if text == stop and marks.read_text().split("\n").count(text) == int(times):
        while not marks.with_name("go").exists():
            time.sleep(0.02)


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
    from ard_jax.attacks.auto_attack.cascade import Cascade
    from ard_jax.checkpoints.manager import Checkpoints
    from ard_jax.data.train_batches import TrainBatches
    from ard_jax.evaluation import evaluator
    from ard_jax.training import loop, train_step

    seen = {"index": [], "label": [], "image_sum": []}
    evaluated, attacked = [np.zeros(0, int)], [np.zeros(0, int)]

    def record(batch):
        if "student" not in building:
            return
        seen["index"].append(batch["index"])
        seen["label"].append(batch["label"])
        seen["image_sum"].append(batch["image"].astype(np.int64).sum((1, 2, 3)))

    building = []
    wrap(loop.batching, "get_batch", after=record)
    # Of data that is on the device only the indices are asked for.
    indices = TrainBatches.indices
    TrainBatches.indices = lambda self, step: loop.batching.get_batch(
        self._load.dataset, indices(self, step)
    )["index"]
    wrap(loop._Loop, "run", before=lambda self, state: began(self.training.title))
    wrap(
        loop._Loop,
        "boundary",
        before=lambda self, step, *_, **__: mark(f"{building[-1]} step {step}"),
    )
    for name in ("build", "build_indexed"):
        wrap(train_step, name, before=lambda *_: mark(f"{building[-1]} compile"))
    wrap(
        Checkpoints,
        "save",
        before=lambda self, step, *_, **__: mark(f"save {self.folder.name} {step}"),
    )
    wrap(evaluator.Evaluator, "run", before=lambda *_, **__: mark("evaluation"))
    wrap(Cascade, "_apply", before=lambda *_: mark("autoattack batch"))

    def batches_of(original):
        def wrapped(*args):
            for batch in original(*args):
                evaluated.append(batch["index"][batch["mask"]])
                yield batch

        return wrapped

    def place(mesh, local):
        # AutoAttack's; Square's later queries come with what the earlier ones left, and an
        # evaluator's batches have "image".
        if "index" in local and not {"margin", "image"} & set(local):
            attacked.append(local["index"][local["index"] >= 0])

    evaluator.batching.eval_batches = batches_of(evaluator.batching.eval_batches)
    wrap(evaluator.sharding, "put_batch", before=place)

    def began(title):
        building.append(title.split()[0])

    def save():
        if seen["index"]:
            np.savez(os.environ["ARD_TEST_BATCHES"], **{k: np.stack(v) for k, v in seen.items()})
        rows = {"evaluated": np.concatenate(evaluated), "attacked": np.concatenate(attacked)}
        np.savez(os.environ["ARD_TEST_EXAMPLES"], **rows)

    atexit.register(save)


def run(argv):
    watch()
    return main.main(argv)


if __name__ == "__main__":
    sys.argv[0] = "ard_jax.main"
    app.run(run, flags_parser=command_line.parse)
