"""Networks for the tests of export: every architecture, with statistics that a trained one could have."""

import jax
import numpy as np
import pytest

from ard_jax import models

# Of a logit, relative to the largest one: what an export may lose.
TOLERANCE = 1e-4
SIZE = {"image_shape": (8, 8, 3)}
FAST = [
    ("small_cnn", {"widths": (4, 6), **SIZE}),
    ("small_resnet", {"widths": (4, 6), **SIZE}),
    ("dm_wrn_10_1", SIZE),
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
    ("resnet18", {"form": "imagenet"}),
    ("resnet50", {}),
    ("mobilenet_v3_small", {}),
    ("mobilenet_v3_large", {}),
    ("efficientnet_b0", {}),
    ("shufflenet_v2", {}),
    ("convnext_tiny", {}),
    ("convnext_tiny", {"stem": "conv"}),
    ("vit_tiny", {"patch": 4}),
    ("vit_tiny", {"stem": "conv"}),
]
ALL = [
    pytest.param(
        *net,
        id=" ".join([net[0], *(v for v in net[1].values() if isinstance(v, str))]),
        marks=marks,
    )
    for nets, marks in ((FAST, ()), (SLOW, pytest.mark.slow))
    for net in nets
]


def make(name, **kwargs):
    """(bundle, numpy variables) with random scales, biases and statistics, so that each one matters."""
    bundle = models.create(name, **kwargs)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return (rng.normal(size=leaf.shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        if kind in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.2, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(bundle.init, jax.random.key(0))
    return bundle, jax.tree_util.tree_map_with_path(fill, shapes)


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
