"""What the devices say to each other in a CIARD step, read in the compiled program."""

import re

import compiled_steps
import jax
import jax.numpy as jnp
import pytest
from compiled_steps import collectives, elements, numbers

from ard_jax.methods import base
from ard_jax.runtime import sharding

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def step(optimised_programs):
    return compiled_steps.compiled(8)


def trained(state, what="params"):
    """(numbers that the student has, the robust teacher), the two networks that are trained."""
    return elements(state.student, what), elements(state.teachers["robust"], what)


def entry(text):
    return re.search(r"^ENTRY %?([\w.\-]+) ", text, re.MULTILINE)[1]


def branches(text):
    """The computations that a conditional outside of all loops chooses between."""
    _, lines = text.split("\nENTRY ", 1)
    found = re.findall(r" conditional\(.*?(?:branch|true)_computations?=([^\n]*)", lines)
    return {name for line in found for name in re.findall(r"%([\w.\-]+)", line)}


def test_sums_are_all_that_travels(step):
    # No all-gather or exchange: no device ever sees another one's images or activations.
    text, _, _ = step
    assert {c.kind for c in collectives(text)} == {"all-reduce"}


def test_what_is_summed_are_gradients_and_batch_statistics(step):
    """Nothing may be missing or come on top.

    Gradients: the robust teacher's, and the student's for each of its two passes. (XLA adds the two before
    it sums them over devices on TPU; XLA:CPU does not.) BatchNorm, for each of the channels and each of the
    three passes: mean and variance forward, and backward the mean's gradient; the other two sums that the
    backward pass needs are the gradients of scale and bias.
    """
    text, state, _ = step
    student, robust = trained(state)
    student_stats, robust_stats = trained(state, "batch_stats")
    channels = (2 * student_stats + robust_stats) // 2
    assert numbers(collectives(text)) == 2 * student + robust + 3 * channels


def test_no_more_scalars_are_summed_than_metrics(step):
    text, _, metrics = step
    assert sum(not shape for c in collectives(text) for shape in c.shapes) <= len(metrics)


def test_gradients_are_summed_together_and_over_all_devices(step):
    text, _, _ = step
    kernels = [c for c in collectives(text) if any(len(shape) > 1 for shape in c.shapes)]
    # One for each backward pass; a network has 8 kernels.
    assert 1 <= len(kernels) <= 3
    groups = {re.search(r"replica_groups=(.*?), use_global", c.line)[1] for c in kernels}
    assert len(groups) == 1 and "'axis_0'=8" in groups.pop()


def test_nothing_travels_inside_a_loop(step):
    # The attack in evaluation mode is work on single images; so are augmentation and start noise. (The
    # robust teacher's gradient is summed only in the epochs that train it.)
    text, _, _ = step
    assert re.search(r"f32\[4,8,8,1\].* while\(", text)  # the attack, on the 4 images of a device
    where = {c.computation for c in collectives(text)}
    assert entry(text) in where and where <= {entry(text)} | branches(text)


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_an_attack_travels_only_where_it_normalises_by_the_batch(bn):
    method, parts = compiled_steps.ciard(attack_bn=bn)
    mesh = sharding.make_mesh(4)
    same, split = sharding.replicated(mesh), sharding.split_batch(mesh)
    state = jax.eval_shape(lambda: compiled_steps.initial(method, parts))
    batch = {
        "image": jax.ShapeDtypeStruct((8, *compiled_steps.SHAPE), jnp.float32),
        "label": jax.ShapeDtypeStruct((8,), jnp.int32),
    }
    program = jax.jit(
        lambda s, b, k: base.attack(parts, s, b, k).images,
        in_shardings=(same, split, same),
        out_shardings=split,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    text = program.lower(state, batch, key).compile().as_text()
    where = {c.computation for c in collectives(text)}
    # In every iteration of the loop, which is what the tests above would see.
    assert where - {entry(text)} if bn == "train" else not where


def test_local_statistics_wait_for_nobody(optimised_programs):
    text, state, _ = compiled_steps.compiled(4, bn_groups=4)
    found = collectives(text)
    assert {c.kind for c in found} == {"all-reduce"}
    # Gradients and what the first device's statistics become for all; a few sums instead of dozens.
    (student, robust), running = trained(state), trained(state, "batch_stats")
    assert numbers(found) == 2 * student + robust + 2 * running[0] + running[1]
    assert len(found) <= 5
