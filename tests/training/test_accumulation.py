"""Updates from parts of a batch, and optimisers whose state is split over the devices."""

import dataclasses

import compiled_steps
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import data, methods, optim
from ard_jax.cli import plan, plan_hardware
from ard_jax.config import build, parse
from ard_jax.configs import digits
from ard_jax.data import batching
from ard_jax.methods import base
from ard_jax.models.bundle import ModelBundle
from ard_jax.runtime import sharding
from ard_jax.state import NetState
from ard_jax.training import train_step

BATCH = 16
ADAM = optim.OptimConfig(optimizer="adamw", lr=0.01, clip_norm=1.0, schedule="cosine")
CYCLIC = optim.OptimConfig(lr=0.1, schedule="cyclic")


def mlp():
    """A network without BatchNorm: the loss of a batch is the mean of those of its images."""

    def init(key):
        keys = jax.random.split(jax.random.key(key) if isinstance(key, int) else key)
        weights = [
            jax.random.normal(k, s) / 8 for k, s in zip(keys, ((64, 32), (32, 10)), strict=True)
        ]
        return {"params": {"w": weights, "b": jnp.zeros(10)}, "batch_stats": {}}

    def apply(variables, images, train):
        (first, last), bias = variables["params"]["w"], variables["params"]["b"]
        return jax.nn.relu(images.reshape(len(images), -1) @ first) @ last + bias, {}

    return ModelBundle("mlp", 10, compiled_steps.SHAPE, "none", init, apply)


def plain(config, parts=1):
    """Natural training of `mlp`."""
    optimizer = optim.make(config, 10, 5)
    optimizer = optim.accumulating(optimizer, parts) if parts > 1 else optimizer
    fields = methods.Parts(student=mlp(), student_optim=optimizer, epochs=10, steps_per_epoch=5)
    return methods.create("natural", fields), fields


def run(make, devices=1, count=3, **config):
    """(state, the metrics of every step) after `count` steps."""
    mesh = sharding.make_mesh(devices)
    method, parts = make
    config = train_step.StepConfig(seed=0, steps_per_epoch=5, augment="none", **config)
    start = compiled_steps.initial(method, parts)
    placed = train_step.placement(config, mesh, start)
    state = jax.device_put(jax.tree.map(jnp.copy, start), placed)
    step, metrics = train_step.build(method, config, mesh), []
    for i in range(count):
        state, values = step(state, compiled_steps.digits_batch(mesh, i, BATCH))
        metrics.append(jax.device_get(values))
    return state, metrics


def agree(one, other, atol=1e-5):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol)


@pytest.mark.parametrize("config", [ADAM, CYCLIC], ids=["adamw", "cyclic sgd"])
def test_parts_make_the_update_of_the_batch(config):
    """Adam divides by the gradient's size, so that rounding of small ones shows in its state alone."""
    whole, expected = run(plain(config))
    parted, metrics = run(plain(config, 4), accumulate=4)
    assert jax.tree.structure(whole) == jax.tree.structure(parted)
    agree(metrics, expected, 1e-4)
    agree(parted.student.opt_state, whole.student.opt_state)
    change = jax.tree.map(
        jnp.subtract, whole.student.params, compiled_steps.initial(*plain(config)).student.params
    )
    assert max(float(jnp.abs(c).max()) for c in jax.tree.leaves(change)) > 1e-3


def accumulating_ciard(parts):
    """CIARD, whose robust teacher learns too, with optimisers that wait."""
    _, fields = compiled_steps.ciard()
    waits = {
        "student_optim": optim.accumulating(fields.student_optim, parts),
        "teacher_optims": {
            role: optim.accumulating(one, parts) for role, one in fields.teacher_optims.items()
        },
    }
    fields = dataclasses.replace(fields, **waits)
    return methods.create("ciard", fields, itt_start=1), fields


@pytest.fixture(scope="module")
def ciard_in_parts():
    return run(accumulating_ciard(2), accumulate=2)


@pytest.mark.multidevice
def test_parts_are_those_of_no_device_count(ciard_in_parts):
    one, expected = ciard_in_parts
    many, metrics = run(accumulating_ciard(2), devices=4, accumulate=2)
    agree(metrics, expected)
    agree(jax.device_get(many), jax.device_get(one))
    start = compiled_steps.initial(*accumulating_ciard(2)).teachers["robust"].params
    moved = jax.tree.map(jnp.subtract, one.teachers["robust"].params, start)
    assert max(float(jnp.abs(c).max()) for c in jax.tree.leaves(moved)) > 1e-5


def test_a_methods_own_arrays_are_the_mean_of_the_parts():
    def init(student, teachers):
        return base.student_state(parts, student, teachers, {"mean": jnp.zeros(())})

    parts = plain(CYCLIC, 2)[1]

    def step(state, batch, key):
        seen = {"mean": 0.5 * state.method["mean"] + jnp.mean(batch["label"].astype(jnp.float32))}
        grads = jax.tree.map(jnp.ones_like, state.student.params)
        made = parts.student_optim.update(
            grads, state.student.opt_state, state.student.params, 0.1, 0.9
        )
        student = NetState(made[0], state.student.batch_stats, made[1])
        return state.replace(student=student, method=seen), {"loss": seen["mean"]}

    method = base.Method(init, step)
    state, metrics = run((method, parts), count=2, accumulate=2)
    train, expected = data.load("digits").train, 0.0
    for i, values in enumerate(metrics):
        rows = batching.batch_indices(len(train), BATCH, seed=0, step=i)
        expected = 0.5 * expected + train.labels[rows].mean()
        assert float(values["loss"]) == pytest.approx(expected)
    assert float(state.method["mean"]) == pytest.approx(expected)


@pytest.mark.multidevice
@pytest.mark.parametrize("parts", [1, 2])
def test_a_split_optimiser_makes_the_same_updates(parts):
    def make():
        return plain(ADAM, parts)

    expected, values = run(make(), devices=4, accumulate=parts)
    state, metrics = run(make(), devices=4, accumulate=parts, shard_optimizer=True)
    agree(metrics, values)
    agree(jax.device_get(state.student.opt_state), jax.device_get(expected.student.opt_state))
    kernels = [a for a in jax.tree.leaves(state.student.opt_state) if a.ndim > 1]
    divisible = [a for a in kernels if any(size % 4 == 0 for size in a.shape)]
    assert divisible and all(4 * a.addressable_shards[0].data.size == a.size for a in divisible)
    assert all(a.sharding.is_fully_replicated for a in jax.tree.leaves(state.student.params))


def test_the_loss_of_a_part_is_not_that_of_the_batch_for_batch_norm(ciard_in_parts):
    """What the parts share with the batch is the network, not its statistics."""
    _, expected = run(compiled_steps.ciard(), count=1)
    _, metrics = ciard_in_parts
    assert float(metrics[0]["loss"]) != pytest.approx(float(expected[0]["loss"]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_every_method_takes_parts_or_says_why_not(name):
    """Traced, on the networks of configs/digits.py."""
    config = digits.get_config(name)
    config.accumulate = 2
    if name in ("adr", "adr_trades", "free"):
        with pytest.raises(parse.ConfigError, match="more in a step than one update"):
            parse.to_experiment(config)
        return
    experiment = parse.to_experiment(config)
    traced = plan.Traced(experiment, "student", data.load("digits"), plan_hardware.parse("cpu-2"))
    new = traced.trace(sharding.make_mesh(1)).out_info[0]
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, traced.state)


@pytest.mark.multidevice
def test_the_cores_that_are_chosen_divide_every_part(monkeypatch):
    monkeypatch.setattr(sharding, "has_cores", lambda: True)
    config = digits.get_config("sat")
    config.accumulate, config.data.last_batch, config.data.holdout = 2, "keep", 146.0
    splits = build.load_data(parse.to_experiment(config).data)
    count, chosen = len(splits.train), set()
    # The last batch has 2, 4, 6 ... images to spare: its halves are odd or even.
    for size in [n for n in range(64, 400, 2) if count % n % 2 == 0 and count % n >= 64]:
        config.batch_size = size
        mesh = build.make_mesh(parse.to_experiment(config), splits)
        chosen.add(sharding.num_devices(mesh))
        batching.check_sharding(count, size, 2 * sharding.num_devices(mesh), "keep")
    assert len(chosen) > 1
