"""Running statistics of a weight average by a pass over the training images (`average_bn` "recomputed").

The average's weights have no statistics of their own, and the means of the student's are not theirs. As
PyTorch's update_bn does with the training loader: statistics begin anew, one train-mode pass over the
images of an epoch, augmented and not attacked, and the mean over its batches, each counting the same (SAAD,
KD+SWA and IDBH evaluate their averages so). The epoch is the one that just ended, its batches are the same,
and its augmentation on the device has a random stream of its own: the statistics are a function of the
average, the seed and the step.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from ard_jax.methods import batch_statistics
from ard_jax.models.bundle import ModelBundle
from ard_jax.runtime.sharding import put_replicated, replicated, split_batch
from ard_jax.training.train_step import StepConfig, augmented


def merged(bundle: ModelBundle, variables: Any, images: jax.Array, before: Any, count: Any) -> Any:
    """The mean statistics of count + 1 batches.

    Args:
      bundle: the network.
      variables: its parameters, with statistics that are not looked at.
      images: float32 [B,H,W,C], the next batch.
      before: mean statistics of the batches before; not looked at where there are none.
      count: how many these are.
    """
    found = batch_statistics.of_batch(bundle, variables, images)
    return jax.tree.map(lambda b, f: jnp.where(count, b + (f - b) / (count + 1), f), before, found)


def build(bundle: ModelBundle, config: StepConfig, mesh: Any) -> Callable[..., Any]:
    """(variables of the average, iterable of (step, batch)) -> their statistics; compiles when called."""
    same, split = replicated(mesh), split_batch(mesh)
    root = put_replicated(mesh, jax.random.key(config.seed))

    def add(variables: Any, stats: Any, images: jax.Array, number: Any, step: Any, root: jax.Array):
        images = augmented(config, root, "augment average", step, images)
        return merged(bundle, variables, images, stats, number)

    add = jax.jit(add, in_shardings=(same, same, split, same, same, same), out_shardings=same)

    def run(variables: Any, batches: Iterable[tuple[int, dict[str, jax.Array]]]) -> Any:
        stats = variables["batch_stats"]
        for number, (step, batch) in enumerate(batches):
            stats = add(variables, stats, batch["image"], number, step, root)
        return stats

    return run
