import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax.models.norm import BatchNorm


def random_variables(channels):
    rng = np.random.default_rng(0)
    scale, var = rng.uniform(0.5, 2.0, (2, channels)).astype(np.float32)
    bias, mean = rng.normal(size=(2, channels)).astype(np.float32)
    return {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}


def train(x, **options):
    """(output, variables, updated statistics) of one batch in training mode."""
    variables = random_variables(x.shape[-1])
    y, updated = BatchNorm(**options).apply(variables, x, True, mutable=["batch_stats"])
    return y, variables, updated["batch_stats"]


def affine(x, mean, var, params):
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def test_training_normalises_by_the_biased_and_stores_the_unbiased_variance():
    x = np.random.default_rng(1).normal(3.0, 2.0, (2, 3, 2, 5)).astype(np.float32)
    y, variables, new = train(x)
    mean, var, count = x.mean((0, 1, 2)), x.var((0, 1, 2)), 12
    np.testing.assert_allclose(y, affine(x, mean, var, variables["params"]), atol=2e-5)
    old = variables["batch_stats"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-5)
    unbiased = 0.9 * old["var"] + 0.1 * var * count / (count - 1)
    np.testing.assert_allclose(new["var"], unbiased, rtol=1e-5)
    # The difference that matters: 1/11 of the new variance.
    assert not np.allclose(new["var"], 0.9 * old["var"] + 0.1 * var, rtol=1e-3)


def test_evaluation_uses_running_statistics():
    x = np.random.default_rng(1).normal(size=(2, 3, 2, 5)).astype(np.float32)
    variables = random_variables(5)
    y = BatchNorm().apply(variables, x, False)
    stats = variables["batch_stats"]
    expected = affine(x, stats["mean"], stats["var"], variables["params"])
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_variance_survives_a_large_mean():
    # E[x^2] - E[x]^2 in float32 would lose every digit here.
    x = 10_000.0 + np.random.default_rng(1).normal(size=(64, 4, 4, 1)).astype(np.float32)
    expected = x.astype(np.float64).var(ddof=1)
    np.testing.assert_allclose(train(x, momentum=0.0)[2]["var"], [expected], rtol=1e-3)


def test_statistics_of_bfloat16_inputs_are_float32():
    x = np.random.default_rng(1).normal(size=(8, 4, 4, 3)).astype(jnp.bfloat16)
    y, variables, new = train(x, dtype=jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    assert new["mean"].dtype == new["var"].dtype == jnp.float32
    exact = x.astype(np.float32).mean((0, 1, 2))
    expected = 0.9 * variables["batch_stats"]["mean"] + 0.1 * exact
    np.testing.assert_allclose(new["mean"], expected, rtol=1e-5, atol=1e-7)


def test_no_gradient_flows_into_the_running_statistics():
    def running(x):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(train(x)[2]))

    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2, 2, 3)), jnp.float32)
    np.testing.assert_array_equal(jax.grad(running)(x), np.zeros_like(x))


def test_one_value_per_channel_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 1, 1, 3\).*at least 2 images"):
        train(np.ones((1, 1, 1, 3), np.float32))
