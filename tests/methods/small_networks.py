"""Small networks with one normalised layer, which compile quickly, and a batch for them."""

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax.models.bundle import ModelBundle

SHAPE, CLASSES = (4, 4, 1), 10


def network(width=8):
    """Two dense layers with batch normalisation of momentum 0.9 between them."""
    size = int(np.prod(SHAPE))

    def init(key):
        first, second = jax.random.split(key)
        kernels = {
            "hidden": {"kernel": jax.random.normal(first, (size, width)) / size**0.5},
            "fc": {"kernel": jax.random.normal(second, (width, CLASSES)) / width**0.5},
        }
        return {
            "params": kernels | {"norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)}},
            "batch_stats": {"mean": jnp.zeros(width), "var": jnp.ones(width)},
        }

    def apply(variables, images, train):
        params, stats = variables["params"], variables["batch_stats"]
        hidden = images.reshape(len(images), -1) @ params["hidden"]["kernel"]
        moments = stats
        if train:
            moments = {"mean": hidden.mean(0), "var": hidden.var(0)}
            stats = jax.tree.map(lambda r, m: 0.9 * r + 0.1 * m, stats, moments)
        hidden = (hidden - moments["mean"]) / jnp.sqrt(moments["var"] + 1e-5)
        hidden = jax.nn.relu(hidden * params["norm"]["scale"] + params["norm"]["bias"])
        return hidden @ params["fc"]["kernel"], jax.lax.stop_gradient(stats)

    return ModelBundle(f"dense{width}", CLASSES, SHAPE, "none", init, apply)


def networks():
    """Student, robust and clean teacher, of different widths."""
    return [network(width) for width in (8, 12, 10)]


def batch(epoch=1, size=20):
    """Images whose brightness tells their class."""
    labels = jnp.arange(size, dtype=jnp.int32) % CLASSES
    noise = 0.3 * jax.random.uniform(jax.random.key(3), (size, *SHAPE))
    image = noise + 0.07 * labels[:, None, None, None]
    return {"image": image, "label": labels, "epoch": jnp.asarray(epoch, jnp.int32)}
