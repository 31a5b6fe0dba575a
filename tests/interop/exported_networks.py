"""Networks for the tests of export: every architecture, with statistics that a trained one could have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import models

# Of a logit, relative to the largest one: what an export may lose.
TOLERANCE = 1e-4
FAST = [
    ("small_cnn", {}),
    ("small_resnet", {}),
    ("dm_wrn_10_1", {}),
]
SLOW = [
    ("resnet20", {"shortcut": "A"}),
    ("wrn_10_1", {"normalization": "imagenet"}),
    ("resnet18", {}),
    ("mobilenet_v2", {}),
    ("resnet56", {"shortcut": "A"}),
    ("resnet20", {"shortcut": "B"}),
    ("preact_resnet18", {"form": "rice"}),
    ("preact_resnet18", {"form": "robustbench"}),
    ("preact_resnet18", {"form": "deepmind"}),
    ("wrn_16_4", {}),
    ("dm_wrn_16_4", {}),
]
ALL = [
    pytest.param(*net, id=" ".join([net[0], *map(str, net[1].values())]), marks=marks)
    for nets, marks in ((FAST, ()), (SLOW, pytest.mark.slow))
    for net in nets
]


def make(name, seed=0, images=None, **kwargs):
    """(bundle, numpy variables); statistics are those of a batch, scales and biases random."""
    bundle = models.create(name, **kwargs)
    rng = np.random.default_rng(seed)
    variables = bundle.init(jax.random.key(seed))

    def perturb(path, leaf):
        if path[-1].key == "scale":
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if path[-1].key == "bias":
            return rng.normal(0, 0.2, leaf.shape).astype(np.float32)
        return leaf

    params = jax.tree_util.tree_map_with_path(perturb, variables["params"])
    stats = variables["batch_stats"]
    if stats:
        if images is None:
            images = rng.random((32, *bundle.image_shape), dtype=np.float32)
        run = jax.jit(lambda v, x: bundle.apply(v, x, True)[1])
        new = run({"params": params, "batch_stats": stats}, jnp.asarray(images))
        stats = jax.tree.map(lambda n, old: (n - 0.9 * old) / 0.1, new, stats)  # momentum 0.9
    return bundle, jax.tree.map(np.asarray, {"params": params, "batch_stats": stats})


def untrained(bundle):
    """Variables of its shapes, all ones: nothing is compiled."""
    shapes = jax.eval_shape(bundle.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)


def logits(bundle, variables, images):
    """The network's own logits, as numpy."""
    return np.asarray(jax.jit(lambda v, x: bundle.apply(v, x, False)[0])(variables, images))


def relative(found, expected):
    """Largest difference, relative to the largest logit."""
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))
