"""KL, entropy, cross-entropy, TRADES' KL and the balances: hand numbers, jit, gradients, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ard_jax import losses

LOG3 = math.log(3.0)


def logits(seed, shape=(5, 4)):
    return 2.0 * jax.random.normal(jax.random.key(seed), shape)


def test_kl_of_hand_numbers():
    # Teacher (1/4, 3/4), student (1/2, 1/2).
    teacher, student = jnp.array([[0.0, LOG3]]), jnp.zeros((1, 2))
    want = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    exact = losses.kl_divergence(student, teacher, log_eps=0.0)
    np.testing.assert_allclose(exact, [want], rtol=1e-6)
    with_eps = 0.25 * (math.log(0.25 + 1e-2) - math.log(0.5)) + 0.75 * (
        math.log(0.75 + 1e-2) - math.log(0.5)
    )
    np.testing.assert_allclose(
        losses.kl_divergence(student, teacher, log_eps=1e-2), [with_eps], rtol=1e-6
    )


def test_kl_temperatures_divide_their_own_side():
    student, teacher = logits(0), logits(1)
    np.testing.assert_allclose(
        losses.kl_divergence(student, teacher, 2.0, 5.0),
        losses.kl_divergence(student / 5.0, teacher / 2.0),
        rtol=1e-6,
    )


def test_kl_of_equal_distributions_is_only_the_residual_of_the_constant():
    z = logits(2, (7, 10))
    value = losses.kl_divergence(z, z)
    assert np.all(value > 0) and np.all(value < 10 * 1.01e-5)


def test_kl_gradient_reaches_the_teacher_unless_the_caller_detaches_it():
    student, teacher = logits(3), logits(4)
    gradient = jax.grad(lambda t: jnp.sum(losses.kl_divergence(student, t)))(teacher)
    assert np.max(np.abs(gradient)) > 1e-2


@pytest.mark.parametrize("reduction, want", [("batchmean", 2.0), ("mean_classes", 0.02)])
def test_reductions(reduction, want):
    value = losses.reduce_kl(jnp.array([1.0, 3.0]), 100, reduction)
    np.testing.assert_allclose(value, want, rtol=1e-6)


def test_scaled10_equals_mean_classes_at_ten_classes_and_tenfold_at_a_hundred():
    kl = jnp.array([1.0, 3.0])
    np.testing.assert_allclose(losses.reduce_kl(kl, 10, "scaled10"), losses.reduce_kl(kl, 10))
    np.testing.assert_allclose(
        losses.reduce_kl(kl, 100, "scaled10"), 10 * losses.reduce_kl(kl, 100), rtol=1e-6
    )


def test_negative_entropy_of_hand_numbers():
    want = 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    z = jnp.array([[0.0, 2.0 * LOG3]])
    np.testing.assert_allclose(losses.negative_entropy(z, 2.0, 0.0), [want], rtol=1e-6)
    saturated = losses.negative_entropy(jnp.array([[0.0, 200.0]]))
    assert 0 < saturated[0] < 2e-5


def test_cross_entropy_of_hand_numbers():
    z = jnp.array([[0.0, LOG3], [0.0, LOG3]])
    want = [-math.log(0.25), -math.log(0.75)]
    np.testing.assert_allclose(losses.cross_entropy(z, jnp.array([0, 1])), want, rtol=1e-6)


def test_trades_kl_of_hand_numbers_and_underflow():
    nat, adv = jnp.array([[0.0, LOG3], [-300.0, 0.0]]), jnp.array([[0.0, 0.0], [0.0, 0.0]])
    want = [0.25 * math.log(0.5) + 0.75 * math.log(1.5), math.log(2.0)]
    np.testing.assert_allclose(losses.trades_kl(nat, adv), want, rtol=1e-6)
    gradients = jax.grad(lambda a, b: jnp.sum(losses.trades_kl(a, b)), (0, 1))(nat, adv)
    assert all(np.all(np.isfinite(g)) for g in gradients)
    assert np.max(np.abs(gradients[0][0])) > 0.1  # the target is not detached


PER_EXAMPLE = {
    "kl": lambda z: losses.kl_divergence(z, logits(9), 1.5, 2.0),
    "entropy": lambda z: losses.negative_entropy(z, 1.5),
    "cross_entropy": lambda z: losses.cross_entropy(z, jnp.array([0, 3, 1, 2, 0])),
    "trades_nat": lambda z: losses.trades_kl(z, logits(9)),
    "trades_adv": lambda z: losses.trades_kl(logits(9), z),
}


@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_values_jit_and_gradients(name):
    loss, z = PER_EXAMPLE[name], logits(8)
    value = loss(z)
    assert value.shape == (5,) and value.dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(loss)(z), value, rtol=1e-5, atol=1e-6)
    # float32 differences over 1e-2 are good to about 1e-4
    check_grads(lambda x: jnp.sum(loss(x)), (z,), 1, modes=["rev"], eps=1e-2, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_bfloat16_logits_are_summed_in_float32(name):
    assert PER_EXAMPLE[name](logits(8).astype(jnp.bfloat16)).dtype == jnp.float32


def test_temperatures_soften_the_sharper_teacher():
    # Entropies are negative: -0.1 is sharper than -0.2.
    adv, nat = losses.balance_temperatures(2.0, 3.0, -0.2, -0.1, 0.5)
    np.testing.assert_allclose([adv, nat], [1.5, 3.5])
    adv, nat = losses.balance_temperatures(2.0, 3.0, -0.1, -0.2, 0.5)
    np.testing.assert_allclose([adv, nat], [2.5, 2.5])


def test_temperatures_stay_in_their_range_and_stand_still_when_equal():
    assert losses.balance_temperatures(1.2, 9.8, -0.2, -0.1, 0.5) == (1.0, 10.0)
    assert losses.balance_temperatures(2.0, 3.0, -0.1, -0.1, 0.5) == (2.0, 3.0)


def test_temperatures_survive_zero_entropies():
    zero = jnp.zeros(())
    assert losses.balance_temperatures(2.0, 3.0, zero, zero, 0.5) == (2.0, 3.0)


def test_weights_of_hand_numbers():
    # Ratios 1/2 and 1/4: shares 2/3 and 1/3.
    for rule in ("ciard", "mtard"):
        adv, nat = losses.balance_weights(0.5, 0.5, 1.0, 1.0, 2.0, 4.0, 0.5, rule)
        np.testing.assert_allclose([adv, nat], [7 / 12, 5 / 12], rtol=1e-6)
    adv, nat = losses.balance_weights(0.5, 0.5, 1.0, 1.0, 2.0, 4.0, 3.0, "ciard")
    np.testing.assert_allclose([adv, nat], [1.0, 0.0], atol=1e-6)  # clipped at 0, renormalised


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: losses.kl_divergence(jnp.zeros((2, 3)), jnp.zeros((2, 4))), "(2, 3).*(2, 4)"),
        (
            lambda: losses.kl_divergence(jnp.zeros((2, 3)), jnp.zeros((2, 3)), 0.0),
            "temperature=0.0",
        ),
        (lambda: losses.reduce_kl(jnp.zeros(2), 10, "sum"), "'sum'.*mean_classes"),
        (lambda: losses.cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 3))), "no probabilities"),
        (lambda: losses.balance_weights(0.5, 0.5, 1, 1, 1, 1, 0.1, "x"), "'x'.*mtard"),
        (lambda: losses.trades_kl(jnp.zeros((2, 3)), jnp.zeros((3, 3))), "(2, 3).*(3, 3)"),
        (lambda: losses.negative_entropy(jnp.zeros((2, 3)), -1.0), "temperature=-1.0"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        call()


def test_logits_of_labels_are_finite_in_any_precision():
    for dtype in (np.float64, np.float32, np.float16):
        assert np.isfinite(losses.as_logits(np.eye(3, dtype=dtype))).all()
