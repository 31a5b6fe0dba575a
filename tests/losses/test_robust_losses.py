"""MART's and SCORE's terms: hand numbers, gradients, bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ard_jax import losses

# p = (1/6, 1/3, 1/2) and (1/2, 1/4, 1/4).
Z = jnp.log(jnp.array([[1.0, 2.0, 3.0], [2.0, 1.0, 1.0]]))
U = jnp.zeros((2, 3))
Y = jnp.array([2, 1])


def logits(seed):
    return 2.0 * jax.random.normal(jax.random.key(seed), (5, 4))


def test_boosted_cross_entropy_of_hand_numbers():
    want = [math.log(2) - math.log(1.0001 - 1 / 3), math.log(4) - math.log(1.0001 - 1 / 2)]
    np.testing.assert_allclose(losses.boosted_cross_entropy(Z, Y), want, rtol=1e-6)


def test_boosted_cross_entropy_stays_finite_for_a_certain_mistake():
    z = jnp.array([[200.0, 0.0, 0.0]])
    loss = lambda a: losses.boosted_cross_entropy(a, jnp.array([1]))[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(z)
    np.testing.assert_allclose(value, 200 - math.log(1e-4), rtol=1e-3)  # 1.0001 - 1 in float32
    assert np.all(np.isfinite(gradient))


def test_mart_kl_of_hand_numbers():
    # Uniform p(x): KL to p, and 1 - 1/3.
    kl = [
        -sum(math.log(3 * p) for p in row) / 3 for row in ((1 / 6, 1 / 3, 1 / 2), (0.5, 0.25, 0.25))
    ]
    np.testing.assert_allclose(losses.mart_kl(U, Z, Y), np.array(kl) * 2 / 3, rtol=1e-5)


def test_mart_kl_has_gradient_through_target_and_weight():
    z_nat, z_adv = logits(0), logits(1)
    y = jnp.array([0, 3, 1, 2, 0])
    p_y = jax.nn.softmax(z_nat)[jnp.arange(5), y]
    kl = losses.trades_kl(z_nat, z_adv)
    np.testing.assert_allclose(losses.mart_kl(z_nat, z_adv, y), kl * (1 - p_y), rtol=1e-4)
    for position in (0, 1):

        def total(z, position=position):
            pair = (z, z_adv) if position == 0 else (z_nat, z)
            return jnp.sum(losses.mart_kl(*pair, y))

        start = (z_nat, z_adv)[position]
        check_grads(total, (start,), 1, ["rev"], eps=1e-2, atol=1e-3, rtol=1e-3)


def test_squared_errors_of_hand_numbers():
    first = [1 / 36 + 0 + 1 / 36, 1 / 36 + 1 / 144 + 1 / 144]
    np.testing.assert_allclose(losses.squared_error(Z, U), first, atol=1e-7)
    np.testing.assert_allclose(losses.squared_error(U, Z), first, atol=1e-7)
    label = [1 / 36 + 1 / 9 + 1 / 4, 1 / 4 + 9 / 16 + 1 / 16]
    np.testing.assert_allclose(losses.label_squared_error(Z, Y), label, rtol=1e-6)
    uniform = losses.label_squared_error(Z, Y, 0.999999)  # all of the label's mass spread out
    np.testing.assert_allclose(uniform, first, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z: losses.boosted_cross_entropy(z, jnp.array([0, 3, 1, 2, 0])),
        lambda z: losses.squared_error(z, logits(9)),
        lambda z: losses.squared_error(logits(9), z),
        lambda z: losses.label_squared_error(z, jnp.array([0, 3, 1, 2, 0]), 0.1),
    ],
)
def test_values_and_gradients(loss):
    z = logits(3)
    assert loss(z).shape == (5,) and loss(z.astype(jnp.bfloat16)).dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(loss)(z), loss(z), rtol=1e-5, atol=1e-6)
    check_grads(lambda a: jnp.sum(loss(a)), (z,), 1, ["rev"], eps=1e-2, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: losses.boosted_cross_entropy(Z, Y[:1]), "labels of shape"),
        (lambda: losses.mart_kl(Z, Z[:1], Y), "mart_kl"),
        (lambda: losses.mart_kl(Z, Z, jnp.eye(2)), "not one-hot"),
        (lambda: losses.squared_error(Z, Z[:, :2]), "squared_error"),
        (lambda: losses.label_squared_error(Z, Y[:1]), "labels of shape"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
