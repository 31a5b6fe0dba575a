"""BatchNorm by groups: what PyTorch's DataParallel computes, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_steps import collectives, numbers
from experiments import tiny

from ard_jax import models
from ard_jax.config import build, parse
from ard_jax.convolutions.cpu_conv import splits_batch
from ard_jax.models.norm import BatchNorm
from ard_jax.runtime import sharding
from ard_jax.training import run

SHAPE, BATCH = (8, 8, 1), 16


def network(groups):
    return models.create("small_resnet", 10, SHAPE, widths=(4,), blocks=1, bn_groups=groups)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(network(1).init)(jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    # Brighter from image to image, so that groups differ.
    noise = jax.random.uniform(jax.random.key(1), (BATCH, *SHAPE))
    return noise * jnp.linspace(0.2, 1.0, BATCH)[:, None, None, None]


def forward_and_gradient(groups, variables, images):
    """(logits, batch_stats, gradient of the sum of squared logits to the parameters)."""

    def loss(params):
        logits, stats = network(groups).apply(variables | {"params": params}, images, True)
        return jnp.sum(logits**2), (logits, stats)

    gradient, (logits, stats) = jax.grad(loss, has_aux=True)(variables["params"])
    return logits, stats, gradient


once = jax.jit(forward_and_gradient, static_argnums=0)


def assert_close(found, expected):
    # The same sums in another order: rounding relative to the largest entry of each array.
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-5 * np.abs(e).max()),
        found,
        expected,
    )


def test_groups_are_separate_passes_and_the_first_one_moves_the_running_statistics(
    variables, images
):
    logits, stats, gradient = once(2, variables, images)
    parts = [once(1, variables, part) for part in jnp.split(images, 2)]
    np.testing.assert_allclose(logits, jnp.concatenate([z for z, _, _ in parts]), atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), stats, parts[0][1])
    assert_close(gradient, jax.tree.map(lambda *g: sum(g), *(g for _, _, g in parts)))
    # Not the same as one group, in any of these.
    whole, whole_stats, _ = once(1, variables, images)
    assert np.abs(whole - logits).max() > 1e-2
    assert np.abs(whole_stats["bn1"]["mean"] - stats["bn1"]["mean"]).max() > 1e-3


def test_evaluation_and_the_variables_know_no_groups(variables, images):
    one, four = network(1), network(4)
    assert jax.tree.structure(variables) == jax.tree.structure(
        jax.eval_shape(four.init, jax.random.key(0))
    )
    odd = images[:3]  # does not divide by 4
    predict = jax.jit(lambda b: b.apply(variables, odd, False)[0], static_argnums=0)
    np.testing.assert_array_equal(predict(four), predict(one))


def test_each_group_needs_images_and_all_the_same_number(variables, images):
    with pytest.raises(ValueError, match="bn_groups=4: a batch of 6 images does not divide"):
        network(4).apply(variables, images[:6], True)
    with pytest.raises(ValueError, match="2 group.*at least 2 images for each"):
        BatchNorm(groups=2).init(jax.random.key(0), jnp.ones((2, 1, 1, 3)), True)
    with pytest.raises(ValueError, match="bn_groups=0: must be an integer >= 1"):
        network(0)


def test_where_groups_fit_the_devices_only_gradients_and_one_groups_statistics_travel(
    variables, images
):
    mesh = sharding.make_mesh(4)
    same, split = sharding.replicated(mesh), sharding.split_batch(mesh)

    def travelling(groups):
        def on_four(variables, images):
            with splits_batch(4):  # as the train step has it
                return forward_and_gradient(groups, variables, images)[1:]

        program = jax.jit(on_four, in_shardings=(same, split), out_shardings=same)
        return collectives(program.lower(variables, images).compile().as_text())

    for groups in (4, 8):
        local = travelling(groups)
        assert {c.kind for c in local} == {"all-reduce"}
        assert numbers(local) == sum(x.size for x in jax.tree.leaves(variables))
        assert len(local) <= 2  # none waits for a layer: all go at the end
    # Layer after layer waits otherwise: mean, variance, and the gradient through both.
    assert len(travelling(1)) > 2 * 3


def test_the_result_is_the_same_on_any_number_of_devices(variables, images):
    expected = once(2, variables, images)
    for devices in (2, 8):  # also more devices than groups
        mesh = sharding.make_mesh(devices)
        placed = jax.device_put(images, sharding.split_batch(mesh))
        assert_close(once(2, sharding.put_replicated(mesh, variables), placed), expected)


def test_configuration(tmp_path):
    raw = tiny(tmp_path, bn_groups=3)
    with pytest.raises(parse.ConfigError) as error:
        parse.to_experiment(raw)
    for name in ("config.batch_size", "robust.recipe.batch_size", "clean.recipe.batch_size"):
        assert f"{name}=256 does not divide by config.bn_groups=3" in str(error.value)
    with pytest.raises(parse.ConfigError, match="bn_groups=-1"):
        parse.to_experiment(tiny(tmp_path, bn_groups=-1))
    experiment = parse.to_experiment(tiny(tmp_path, bn_groups=4, data__last_batch="keep"))
    splits = build.load_data(experiment.data)
    with pytest.raises(ValueError, match=r"last batch .*bn_groups=4; use .*last_batch=drop"):
        run.step_config(build.training_settings(experiment), splits)


def test_checkpoints_from_before_there_were_groups_still_fit(tmp_path):
    experiments = [parse.to_experiment(tiny(tmp_path, bn_groups=groups)) for groups in (1, 4)]
    splits = build.load_data(experiments[0].data)
    one, four = (build.comparable(e, {}, splits) for e in experiments)
    assert "bn_groups" not in one and four["bn_groups"] == 4
