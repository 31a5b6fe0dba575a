"""CW margin and difference-of-logits ratios."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ard_jax import losses

Z = jnp.array([[5.0, 3.0, 1.0, 0.0, -1.0], [1.0, 2.0, 4.0, 8.0, 0.0]])
Y = jnp.array([0, 1])


def test_cw_of_hand_numbers():
    # Margins: 5 - 3 and 2 - 8.
    np.testing.assert_allclose(losses.cw_margin(Z, Y), [52.0, 44.0])
    np.testing.assert_allclose(losses.cw_margin(Z, Y, 0.0), [2.0, 0.0])


def test_cw_gradient_is_zero_where_the_margin_is_used_up():
    gradient = jax.grad(lambda z: jnp.sum(losses.cw_margin(z, Y, 0.0)))(Z)
    np.testing.assert_array_equal(gradient, [[1, -1, 0, 0, 0], [0, 0, 0, 0, 0]])


def test_cw_gradient_at_a_tie_is_finite_and_whole():
    z = jnp.array([[1.0, 2.0, 2.0]])
    gradient = jax.grad(lambda z: jnp.sum(losses.cw_margin(z, jnp.array([0]))))(z)
    np.testing.assert_array_equal(gradient, [[1, -1, 0]])


def test_dlr_of_hand_numbers():
    np.testing.assert_allclose(losses.dlr(Z, Y), [-2 / 4, 6 / 6], rtol=1e-6)


def test_dlr_does_not_change_with_scale_and_shift():
    np.testing.assert_allclose(losses.dlr(7.0 * Z + 3.0, Y), losses.dlr(Z, Y), rtol=1e-6)


def test_targeted_dlr_of_hand_numbers():
    # Denominators: 5 - (1 + 0)/2 and 8 - (2 + 1)/2.
    value = losses.targeted_dlr(Z, Y, jnp.array([2, 3]))
    np.testing.assert_allclose(value, [-4 / 4.5, 6 / 6.5], rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z: losses.cw_margin(z, Y),
        lambda z: losses.dlr(z, Y),
        lambda z: losses.targeted_dlr(z, Y, jnp.array([2, 3])),
    ],
)
def test_jit_and_gradients(loss):
    np.testing.assert_allclose(jax.jit(loss)(Z), loss(Z), rtol=1e-6)
    check_grads(lambda z: jnp.sum(loss(z)), (Z,), 1, ["rev"], eps=1e-2, atol=1e-3, rtol=1e-2)


def test_dlr_of_equal_logits_is_finite():
    value, gradient = jax.value_and_grad(lambda z: jnp.sum(losses.dlr(z, Y)))(jnp.zeros((2, 5)))
    assert value == 0.0 and np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: losses.dlr(jnp.zeros((2, 2)), Y), "2 classes.*at least 3"),
        (lambda: losses.targeted_dlr(jnp.zeros((2, 3)), Y, Y), "3 classes.*at least 4"),
        (lambda: losses.cw_margin(jnp.zeros((2, 1)), Y), "1 classes.*at least 2"),
        (lambda: losses.cw_margin(jnp.zeros((3, 5)), Y), "shape"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
