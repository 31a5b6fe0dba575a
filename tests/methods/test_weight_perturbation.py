"""Adversarial weight perturbation against the same step written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_batch import adversarial_images, compiled, distance, one_step
from small_networks import batch

from ard_jax import losses, methods


def perturbed_sat_step(p, state, images, gamma):
    """Adversarial weight perturbation written out, tensor by tensor; first step of SGD."""

    def loss(params):
        variables = {"params": params, "batch_stats": state.student.batch_stats}
        logits, stats = p.student.apply(variables, images, True)
        return jnp.mean(losses.cross_entropy(logits, batch()["label"])), stats

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    old, tree = jax.tree.flatten(state.student.params)
    uphill = jax.tree.leaves(gradient(state.student.params)[0])
    move = [np.zeros_like(w) for w in old]
    for i, (w, g) in enumerate(zip(map(np.asarray, old), map(np.asarray, uphill), strict=True)):
        if w.ndim > 1:
            move[i] = gamma * np.sqrt(np.sum(w**2)) / np.sqrt(np.sum(g**2)) * g
    there = [w + v for w, v in zip(old, move, strict=True)]
    grads, stats = gradient(jax.tree.unflatten(tree, there))
    grads = jax.tree.leaves(grads)
    new = [w - 0.05 * (g + 2e-4 * w) - v for w, g, v in zip(there, grads, move, strict=True)]
    return jax.tree.unflatten(tree, new), stats


def test_weight_perturbation_equals_the_hand_written_step():
    p, state, _ = compiled("sat")
    new = one_step("sat", fields=(("awp", methods.Awp(gamma=0.1)),))[1].student
    params, stats = perturbed_sat_step(p, state, adversarial_images("sat"), 0.1)
    assert distance(new.params, params) < 1e-6
    assert distance(new.batch_stats, stats) < 1e-6
    assert distance(new.params, one_step("sat")[1].student.params) > 1e-4


@pytest.mark.parametrize(
    ("name", "awp"),
    [("sat", methods.Awp(0.0)), ("sat", methods.Awp(0.1, start=5)), ("trades", methods.Awp(0.0))],
)
def test_no_weight_perturbation_without_gamma_or_before_its_epoch(name, awp):
    usual = one_step(name, epoch=4)[1].student
    switched = one_step(name, epoch=4, fields=(("awp", awp),))[1].student
    assert distance(usual.variables, switched.variables) < 1e-6
