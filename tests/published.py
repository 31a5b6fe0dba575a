"""A small network as somebody might publish it: trained on the digits, an .npz of PyTorch names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ard_jax import data, models
from ard_jax.cli import import_network
from ard_jax.interop import torch_names

NORMALIZATION = {"mean": [0.3], "std": [0.1]}  # not among those that the import tries by itself


@functools.cache
def network():
    """(bundle, variables): small_cnn, well above 80 % right on the digits; 60 steps on 500 images."""
    train = data.load("digits").train.subset(np.arange(500))
    images, labels = jnp.asarray(train.images, jnp.float32) / 255, jnp.asarray(train.labels)
    bundle = models.create("small_cnn", 10, (8, 8, 1), normalization=NORMALIZATION)
    variables = bundle.init(jax.random.key(0))
    optimiser = optax.adam(0.05)

    @jax.jit
    def step(carry, _):
        variables, state = carry

        def loss(params):
            logits, stats = bundle.apply(variables | {"params": params}, images, True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats

        gradient, stats = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimiser.update(gradient, state)
        params = optax.apply_updates(variables["params"], updates)
        return ({"params": params, "batch_stats": stats}, state), None

    carry = (variables, optimiser.init(variables["params"]))
    (variables, _), _ = jax.lax.scan(step, carry, length=60)
    return bundle, jax.device_get(variables)


def write(path, bundle, variables):
    """Writes the file; returns its path."""
    np.savez(path, **torch_names.to_torch(bundle, variables))
    return path


def run(file, tmp_path, **kwargs):
    """Imports it into tmp_path/imported, unless kwargs say otherwise."""
    kwargs = {"out": str(tmp_path / "imported"), "model": "small_cnn"} | kwargs
    return import_network.run(file=str(file), **kwargs)
