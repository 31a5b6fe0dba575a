"""SAAD: entropies and weights by hand, the linear teacher of its attack, the terms of its step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation_setup import parts, run, start
from small_networks import CLASSES, batch, network

from ard_jax import methods
from ard_jax.attacks import objectives
from ard_jax.cli import plan
from ard_jax.methods import saad


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
def test_entropy_of_known_distributions(order):
    logits = jnp.stack([jnp.zeros(4), jnp.array([60.0, 0, 0, 0]), jnp.array([30.0, 30, 0, 0])])
    found = saad.entropy(logits, order)
    np.testing.assert_allclose(found, [np.log(4), 0.0, np.log(2)], atol=2e-6)


def test_renyi_entropy_of_order_two():
    p = jnp.array([[0.5, 0.3, 0.2]])
    found = saad.entropy(jnp.log(p), 2.0)
    np.testing.assert_allclose(found, -np.log(0.25 + 0.09 + 0.04), rtol=1e-6)


def test_weights():
    w, rest = saad.weights(saad.SaadConfig(), jnp.array([0.5, 0.1, 0.3]))
    np.testing.assert_allclose(w, [2.0, 0.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(rest, [0.0, 1.0, 0.5], atol=1e-6)
    w, rest = saad.weights(saad.SaadConfig(), jnp.full(3, 0.7))
    np.testing.assert_array_equal(w, 0.0)  # all equal: nothing is learned from x'
    np.testing.assert_array_equal(rest, 1.0)


def test_weights_are_constants():
    slope = jax.grad(lambda h: jnp.sum(saad.weights(saad.SaadConfig(), h)[0]))(jnp.arange(3.0))
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("weight", [1.0, 0.7])
def test_linear_teacher_moves_the_label_alone(weight):
    """Of a linear teacher the moved logit is exact, and the others stay where they were at x."""
    kernel = jax.random.normal(jax.random.key(0), (12, 5))
    x, other = jax.random.uniform(jax.random.key(1), (2, 3, 2, 2, 3))
    labels = jnp.array([4, 0, 2])
    teacher = lambda images: images.reshape(3, -1) @ kernel  # noqa: E731
    found = objectives.linear_teacher(teacher, x, labels, weight)(other)
    clean, rows = teacher(x), jnp.arange(3)
    moved = clean[rows, labels] + weight * (teacher(other) - clean)[rows, labels]
    np.testing.assert_allclose(found, clean.at[rows, labels].set(moved), rtol=1e-5, atol=1e-5)


def test_weights_and_ramp_of_a_step():
    _, (first,) = run("saad", 1, epochs=[1])
    _, (last,) = run("saad", 1, epochs=[300])
    assert first["weight"] == last["weight"] > 0
    assert 0 < first["teacher_entropy"] < np.log(CLASSES)
    _, (without,) = run("saad", 1, epochs=[300], igdm_weight=0.0)
    assert without["loss"] < first["loss"] < last["loss"]
    assert first["loss"] - without["loss"] == pytest.approx(
        (last["loss"] - without["loss"]) / 300, rel=1e-2
    )


def test_the_clean_term():
    _, (without,) = run("saad", 1)
    _, (with_it,) = run("saad", 1, beta=0.5)
    assert "loss_clean" not in without and with_it["loss_clean"] > 0
    assert with_it["loss"] > without["loss"]


def test_the_minimum_is_over_the_batch():
    """An image whose teacher is surest of all takes its weight from every other's."""
    config = saad.SaadConfig()
    h = jnp.linspace(0.5, 1.0, batch()["label"].shape[0])
    before, after = saad.weights(config, h)[0], saad.weights(config, h.at[3].set(0.0))[0]
    np.testing.assert_allclose(jnp.delete(after - before, 3), 5 * 0.5, rtol=1e-5)


def passes(name, width=12, steps=2, **options):
    """(forward passes of the teacher in the trace of a step, FLOPs of a step)."""
    calls, net = [], network(width)

    def apply(variables, images, train):
        calls.append(train)
        return net.apply(variables, images, train)

    p = parts(name, attack_steps=steps)
    p = dataclasses.replace(p, teachers={"robust": dataclasses.replace(net, apply=apply)})
    method = methods.create(name, p, **options)
    state = start(method, p)
    calls.clear()
    traced = jax.jit(method.step).trace(state, batch(), jax.random.key(0))
    return len(calls), plan.cost(traced).flops


def test_the_attack_asks_the_teacher_once_and_not_in_every_step():
    """So that what a step of it costs does not depend on the teacher; AdaAD's does."""
    assert passes("saad")[0] == 3 and passes("saad", beta=0.5)[0] == 4

    def of_four_steps(name, width):
        return passes(name, width, steps=6)[1] - passes(name, width, steps=2)[1]

    assert of_four_steps("saad", 12) == of_four_steps("saad", 200)
    assert 2 * of_four_steps("adaad", 12) < of_four_steps("adaad", 200)
