"""Every published list of names and shapes is recognised and converts completely, in both directions."""

import jax
import numpy as np
import pytest
import test_golden_models as golden

from ard_jax import interop, models
from ard_jax.interop import recognise

pytestmark = pytest.mark.golden

MANY = 3_000_000  # parameters; those above take seconds, and gigabytes


def random_state(arch):
    rng = np.random.default_rng(0)
    return {
        name: rng.random(shape, dtype=np.float32) for name, shape in golden.STATES[arch]["state"]
    }


@pytest.mark.parametrize("arch", golden.OURS)
def test_recognised(arch):
    tensors = {
        name: np.broadcast_to(np.float32(1), shape) for name, shape in golden.STATES[arch]["state"]
    }
    name, options = golden.OURS[arch]
    options = dict(options)
    classes = options.pop("num_classes", 10)
    found = recognise.recognise(tensors)
    assert (found.model, found.num_classes, found.ignored) == (name, classes, ())
    ours = models.create(name, classes, **options)
    again = models.create(found.model, found.num_classes, **found.kwargs)
    assert interop.torch_layout(ours) == interop.torch_layout(again)


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(a, marks=pytest.mark.slow if golden.STATES[a]["n_params"] > MANY else ())
        for a in golden.OURS
    ],
)
def test_both_directions_are_exact(arch):
    name, options = golden.OURS[arch]
    bundle = models.create(name, **options)
    state = random_state(arch)
    variables = interop.from_torch(name, state, **options)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == golden.STATES[arch]["n_params"]
    back = interop.to_torch(bundle, variables)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[key], state[key]) for key in state)
    again = interop.from_torch(name, back, **options)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, variables))
