"""Friendly PGD: every image ends at its first iterate that is misclassified once too often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import attacks

BATCH, SHAPE, CLASSES, EPS, STEPS = 24, (5, 5, 3), 4, 0.3, 8
_RNG = np.random.default_rng(0)
_FIRST = _RNG.normal(size=(int(np.prod(SHAPE)), 16)).astype(np.float32) / 4
_SECOND = _RNG.normal(size=(16, CLASSES)).astype(np.float32)
X = jnp.asarray(_RNG.uniform(0.2, 0.8, (BATCH, *SHAPE)).astype(np.float32))


def predict(images):
    return jnp.tanh((images.reshape(images.shape[0], -1) - 0.5) @ _FIRST) @ _SECOND


# Right at the images themselves, but for the first four.
Y = jnp.argmax(predict(X), -1).at[:4].add(1) % CLASSES


def spec(**changed):
    options = {"steps": STEPS, "step_size": 0.02, "sigma": 0.0} | changed
    return attacks.make("fat_train", eps=EPS, **options)


@jax.jit
def iterates():
    """[STEPS+1,B,...] of PGD with the same step from the images, and where each is wrong."""

    def run(steps):
        bim = attacks.make("bim", eps=EPS, steps=steps, step_size=0.02)
        return bim.run(predict, X, Y, unroll=1)

    found = jnp.stack([X, *(run(n) for n in range(1, STEPS + 1))])
    return found, jnp.argmax(jax.vmap(predict)(found), -1) != Y


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_an_image_ends_at_the_iterate_that_is_wrong_once_too_often(patience):
    path, wrong = map(np.asarray, iterates())
    often = np.cumsum(wrong, axis=0) > patience
    ends = np.where(often.any(axis=0), often.argmax(axis=0), STEPS)
    assert len(set(ends.tolist())) > 2  # images stop at different steps
    want = path[ends, np.arange(BATCH)]
    plain = spec(start="none", patience=patience).run(predict, X, Y, unroll=1)
    np.testing.assert_allclose(plain, want, atol=1e-6)
    traced = jax.jit(lambda p: spec(start="none").run(predict, X, Y, unroll=1, patience=p))
    np.testing.assert_allclose(traced(patience), want, atol=1e-6)
    if patience == 0:
        np.testing.assert_array_equal(plain[:4], X[:4])


def test_noise_moves_only_what_is_not_frozen_and_stays_in_the_ball():
    quiet, noisy = (
        spec(start="none", sigma=s).run(predict, X, Y, jax.random.key(0), unroll=1)
        for s in (0.0, 0.01)
    )
    np.testing.assert_array_equal(noisy[:4], X[:4])
    assert np.all(np.any(np.asarray(quiet != noisy)[4:], axis=(1, 2, 3)))
    wide = spec(sigma=0.5).run(predict, X, Y, jax.random.key(0), unroll=1)
    assert float(jnp.max(jnp.abs(wide - X))) <= EPS + 1e-6
    assert 0.0 <= float(wide.min()) and float(wide.max()) <= 1.0


def test_one_key_for_each_image_makes_its_result_independent_of_the_batch():
    keys = jax.random.split(jax.random.key(1), BATCH)
    whole = spec(sigma=0.01).run(predict, X, Y, keys, unroll=1)
    part = spec(sigma=0.01).run(predict, X[6:9], Y[6:9], keys[6:9], unroll=1)
    np.testing.assert_allclose(whole[6:9], part, atol=1e-6)


def test_a_state_is_threaded_through_every_step():
    x_adv, calls = spec(start="none").run(
        lambda x, n: (predict(x), n + 1), X, Y, state=jnp.zeros((), jnp.int32), unroll=1
    )
    assert calls == STEPS
    np.testing.assert_allclose(x_adv, spec(start="none").run(predict, X, Y, unroll=1), atol=1e-6)


def test_the_papers_numbers():
    made = attacks.make("fat_train", eps=0.031)
    assert (made.steps, made.start, made.sigma, made.patience) == (10, "uniform", 0.001, 0)
    np.testing.assert_allclose(made.step_size, 0.007, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: spec(patience=-1), "patience=-1"),
        (lambda: spec(sigma=-1.0), "sigma=-1.0"),
        (lambda: spec(steps=0), "steps=0"),
        (lambda: spec(start="middle"), "'middle'"),
        (lambda: spec().run(predict, X, Y), "key is None"),
        (lambda: spec(start="none", sigma=0.1).run(predict, X, Y), "sigma=0.1.*key is None"),
        (lambda: spec(start="none").run(predict, X, None), "labels are None"),
        (lambda: spec().run(predict, X, Y, start=X[:1]), "start of shape"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
