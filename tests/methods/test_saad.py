"""SAAD: entropies and weights by hand, the linear teacher of its attack, the terms of its step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation_setup import run
from small_networks import CLASSES, batch

from ard_jax.attacks import objectives
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
