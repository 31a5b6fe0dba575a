"""Averages of SAAD's and PeerAiD's students, with recomputed statistics (make_slice_averages.py).

Tolerances are those of the files: 5 times the spread of right float32 programs, and 3e-6 of the largest
value.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import steps_common
from shared_files import HERE

from ard_jax import models
from ard_jax.methods import Method
from ard_jax.runtime import sharding
from ard_jax.state import NetState, RunState
from ard_jax.training import averaging, train_step

pytestmark = pytest.mark.golden
CASES = [("saad", 2), ("saad", 4), ("saad", 6), ("peeraid", 3), ("peeraid", 6)]


@functools.cache
def golden(method):
    stored, ciard = np.load(HERE / "averages_slice.npz"), np.load(HERE / "ciard_slice.npz")
    own = {k.removeprefix(f"{method}/"): stored[k] for k in stored.files if k.startswith(method)}
    return own | {"images_u8": ciard["images_u8"][:6]}


def average(method, after):
    return steps_common.weights(golden(method), f"after{after}/swa")


def assert_agree(ours, theirs, method, after, key):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        spread = float(golden(method)[f"spread/after{after}/swa_{key}_max_abs"])
        scale = max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=5 * spread + 3e-6 * scale)


@pytest.mark.parametrize(("method", "after"), CASES)
def test_statistics_are_those_of_a_pass_over_the_clean_images(method, after):
    theirs = average(method, after)
    bundle = models.create("small_cnn", widths=steps_common.WIDTHS["student"])
    config = train_step.StepConfig(seed=0, steps_per_epoch=6, augment="none")
    given = theirs | {"batch_stats": jax.tree.map(jnp.ones_like, theirs["batch_stats"])}
    batches = ((n, {"image": v}) for n, v in enumerate(golden(method)["images_u8"]))
    with jax.default_matmul_precision("highest"):
        found = averaging.build(bundle, config, sharding.make_mesh(1))(given, batches)
    assert_agree(found, theirs["batch_stats"], method, after, "bn_stats")


def students(method):
    """Step -> the student that enters the average; where it is not stored, from the averages around it."""
    own = {n: steps_common.weights(golden(method), f"after{n}/student")["params"]
           for n in golden(method)["setting/swa_steps"].tolist()
           if f"after{n}/student/fc.bias" in golden(method)}  # fmt: skip
    if method == "saad":
        first, second = (average(method, n)["params"] for n in (2, 4))
        own |= {2: first, 4: jax.tree.map(lambda a, b: 2 * b - a, first, second)}
    return own


@pytest.mark.parametrize("method", ["saad", "peeraid"])
def test_the_average_counts_every_student_alike(method):
    """One epoch of the step for each student that enters, from the first."""
    own = students(method)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(own[n] for n in sorted(own)))

    def step(state, batch, key):
        params = jax.tree.map(lambda v: v[state.step], stacked)
        return state.replace(student=NetState(params, {}, None)), {}

    config = train_step.StepConfig(
        seed=0, steps_per_epoch=1, augment="none", swa_start=1, average_bn="recomputed"
    )
    mesh, start = sharding.make_mesh(1), NetState(own[min(own)], {}, None)
    state = RunState(jnp.zeros((), jnp.int32), start, {}, None, {})
    state = sharding.put_replicated(mesh, train_step.start_average(state, config))
    state = jax.tree.map(jnp.copy, state)
    update = train_step.build(Method(lambda v, t: None, step), config, mesh)
    batch = {"image": np.zeros((2, 4, 4, 1), np.uint8), "label": np.zeros(2, np.int32)}
    for after in sorted(own):
        state = update(state, batch)[0]
        assert_agree(state.ema["params"], average(method, after)["params"], method, after, "params")
