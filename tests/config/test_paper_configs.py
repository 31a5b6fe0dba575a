"""The papers' experiments, whole steps of them, by shape: every network fits its data and the others."""

import importlib

import jax
import jax.numpy as jnp
import pytest

from ard_jax.config import build, parse
from ard_jax.data import ArrayDataset
from ard_jax.models import described

SHAPES = {"cifar10": (10, (32, 32, 3)), "cifar100": (100, (32, 32, 3)),
          "tiny_imagenet": (200, (64, 64, 3))}  # fmt: skip
# student and robust teacher parameters; ResNet-18, MobileNetV2 and WRN counts are the authors' networks'.
COUNTS = {
    ("ciard_cifar10", ""): (11_173_962, 46_160_474, 855_770),
    ("ciard_cifar10", "mobilenet_v2"): (2_296_922, 46_160_474, 855_770),
    ("ciard_cifar100", ""): (11_220_132, 266_888_756, 9_693_108),
    ("ciard_cifar100", "mobilenet_v2"): (2_412_212, 266_888_756, 9_693_108),
    ("ciard_tiny_imagenet", ""): (11_271_432, None, None),
    ("ciard_tiny_imagenet", "mobilenet_v2"): (2_540_312, None, None),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), COUNTS)
def test_a_step_of_the_experiment(name, variant):
    import numpy as np

    experiment = parse.to_experiment(
        importlib.import_module(f"ard_jax.configs.{name}").get_config(variant)
    )
    classes, shape = SHAPES[experiment.data.name]
    names = tuple(str(i) for i in range(classes))
    data = ArrayDataset(
        np.zeros((classes, *shape), np.uint8),
        np.arange(classes, dtype=np.int32),
        names,
        name,
        "train",
    )
    nets = [
        described.from_description(build.describe_network(net, experiment.precision, data))
        for net in (
            experiment.student,
            experiment.teachers.robust.net,
            experiment.teachers.clean.net,
        )
    ]
    method = build.make_method(experiment, nets[0], {"robust": nets[1], "clean": nets[2]}, 390)
    variables = [jax.eval_shape(n.init, jax.random.key(0)) for n in nets]
    counts = [sum(x.size for x in jax.tree.leaves(v["params"])) for v in variables]
    for count, expected in zip(counts, COUNTS[name, variant], strict=True):
        assert expected is None or count == expected
    batch = {
        "image": jax.ShapeDtypeStruct((experiment.batch_size, *shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((experiment.batch_size,), jnp.int32),
        "epoch": jax.ShapeDtypeStruct((), jnp.int32),
    }
    state = jax.eval_shape(lambda s, r, c: method.init(s, {"robust": r, "clean": c}), *variables)
    new, metrics = jax.eval_shape(method.step, state, batch, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert all(m.shape == () for m in metrics.values())
