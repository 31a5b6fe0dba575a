"""The training attacks of FGSM-RS and N-FGSM, by hand on a linear network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import tiny

from ard_jax import attacks
from ard_jax.config import parse
from ard_jax.evaluate import evaluate

EPS = 0.1
X = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 4, 4, 1)), jnp.float32)
Y = jnp.array([0, 1, 0])
SLOPE = jnp.asarray(np.random.default_rng(1).normal(size=(16, 2)), jnp.float32)
# Of the gradient of CE, anywhere.
SIGN = jnp.sign((SLOPE[:, 1 - Y] - SLOPE[:, Y]).T.reshape(X.shape))


def predict(images):
    return images.reshape(len(images), -1) @ SLOPE


def start_of(spec):
    return spec.own_start(X, jax.random.key(0))


def test_n_fgsm_steps_from_twice_the_radius_and_leaves_the_ball():
    spec = attacks.make("n_fgsm_train", eps=EPS)
    start = start_of(spec)
    assert EPS < float(jnp.max(jnp.abs(start - X))) <= 2 * EPS + 1e-6
    x_adv = spec.run(predict, X, Y, jax.random.key(0), unroll=1)
    np.testing.assert_allclose(x_adv, jnp.clip(start + EPS * SIGN, 0, 1), atol=1e-6)
    assert 2 * EPS < float(jnp.max(jnp.abs(x_adv - X))) <= 3 * EPS + 1e-6


def test_fgsm_rs_steps_further_than_the_radius_and_stays_in_the_ball():
    spec = attacks.make("fgsm_rs_train", eps=EPS)
    start = start_of(spec)
    assert EPS / 2 < float(jnp.max(jnp.abs(start - X))) <= EPS + 1e-6
    x_adv = spec.run(predict, X, Y, jax.random.key(0), unroll=1)
    want = X + jnp.clip(start + 1.25 * EPS * SIGN - X, -EPS, EPS)
    np.testing.assert_allclose(x_adv, jnp.clip(want, 0, 1), atol=1e-6)


def test_a_larger_start_radius_draws_the_same_noise_longer():
    one, two = (start_of(attacks.make("sat_train", eps=0.02, start_radius=r)) for r in (0.25, 0.5))
    inside = (0.01 < X) & (X < 0.99)  # neither start is clipped
    np.testing.assert_allclose((two - X)[inside], 2 * (one - X)[inside], atol=1e-6)
    with pytest.raises(ValueError, match="start_radius=-1"):
        attacks.make("sat_train", start_radius=-1)


def test_an_attack_that_leaves_the_ball_trains_but_does_not_evaluate(tmp_path):
    assert "n_fgsm_train" in attacks.training_names() and "n_fgsm_train" not in attacks.names()
    images = np.rint(255 * np.asarray(X)).astype(np.uint8)
    with pytest.raises(ValueError, match="'n_fgsm_train'.*pgd_sat"):
        evaluate(predict, (images, Y), ("n_fgsm_train",), eps=EPS)
    with pytest.raises(ValueError, match="leaves the ball of radius eps.*pgd_sat"):
        evaluate(predict, (images, Y), attacks.make("n_fgsm_train", eps=EPS), eps=EPS)
    parse.to_experiment(tiny(tmp_path, "sat", attack__name="n_fgsm_train"))
    for where in ({"eval__attacks": ("n_fgsm_train",)}, {"eval__select_attack": "n_fgsm_train"}):
        with pytest.raises(parse.ConfigError, match="n_fgsm_train.*choose one of"):
            parse.to_experiment(tiny(tmp_path, "sat", **where))
