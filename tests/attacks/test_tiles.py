"""Attacks on a few images at a time give what attacks on the whole batch give."""

import re

import compiled_steps
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_steps import collectives

from ard_jax import attacks, models
from ard_jax.attacks import cpu_tiling
from ard_jax.methods import base
from ard_jax.runtime import sharding

SHAPE, CLASSES, BATCH = (8, 8, 3), 5, 64


@pytest.fixture(scope="module")
def network():
    net = models.create("small_resnet", CLASSES, SHAPE, widths=(4, 6))
    return net, net.init(jax.random.key(0))


def problem(batch=BATCH):
    rng = np.random.default_rng(0)
    images = rng.random((batch, *SHAPE), np.float32)
    logits = rng.standard_normal((batch, CLASSES)).astype(np.float32)
    return images, rng.integers(0, CLASSES, batch).astype(np.int32), logits


def attacked(network, spec, devices=1, batch=BATCH, params=None, **options):
    """(the jitted attack by tiles, its arguments)."""
    net, variables = network
    images, labels, logits = problem(batch)
    params = variables["params"] if params is None else params
    if spec.needs_teacher == "logits":
        options["teacher_logits"] = logits

    def run(images, labels, key):
        predict = lambda x: net.apply(variables, x, False)[0]  # noqa: E731
        given = {"params": params, "devices": devices, "unroll": 1} | options
        return cpu_tiling.run(spec, predict, images, labels, key, **given)

    return jax.jit(run), (images, labels, jax.random.key(1))


def is_tiled(network, spec, **options):
    run, given = attacked(network, spec, **options)
    # Tiles of 16 images of every device.
    return re.search(r"tensor<\d+x\d+x16x8x8x3xf32>", run.lower(*given).as_text()) is not None


SPECS = {
    "pgd_sat": {},
    "ciard_train": {},
    "rslad_train": {},
    "tpgd": {},
    "bim": {"norm": "l2"},
    "dpgd_per_sample": {},
}


@pytest.mark.parametrize(("name", "devices"), [*((name, 1) for name in SPECS), ("pgd_sat", 2)])
def test_same_as_the_whole_batch(network, name, devices):
    # Steps far from the sign's jump: rounding must not turn a gradient around, so few and small ones.
    spec = attacks.make(name, eps=0.1, steps=3, **SPECS[name])
    assert is_tiled(network, spec, devices=devices)
    run, (images, labels, key) = attacked(network, spec, devices=devices)
    net, variables = network
    soft = {"teacher_logits": problem()[2]} if spec.needs_teacher else {}
    whole = jax.jit(
        lambda x, y, k: spec.run(
            lambda z: net.apply(variables, z, False)[0], x, y, k, unroll=1, **soft
        )
    )(images, labels, key)
    tiled = run(images, labels, key)
    different = np.max(np.abs(tiled - whole), (1, 2, 3)) > 1e-5
    assert different.mean() <= 0.02  # of the images; a gradient of zero may have another sign
    assert np.max(np.abs(tiled - images)) > 0.01


def test_other_radius_and_given_start(network):
    spec = attacks.make("pgd_sat", eps=0.1, steps=1)
    images, labels, _ = problem()
    net, variables = network

    def both(**options):
        predict = lambda x: net.apply(variables, x, False)[0]  # noqa: E731
        given = (spec, predict, images, labels, jax.random.key(3))
        whole = spec.run(*given[1:], unroll=1, **options)
        return whole, cpu_tiling.run(
            *given, params=variables["params"], devices=1, unroll=1, **options
        )

    for options in ({"eps": 0.02}, {"eps": 0.02, "step_size": 0.001}, {"start": images * 0.9}):
        whole, tiled = both(**options)
        np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_where_there_is_nothing_to_gain_the_batch_stays_whole(network):
    spec = attacks.make("pgd_sat", eps=0.1, steps=2)
    assert is_tiled(network, spec)
    assert not is_tiled(network, attacks.make("dpgd", eps=0.1, steps=2))  # one Dice for the batch
    assert not is_tiled(network, attacks.make("pgd_sat", eps=0.1, steps=2, restarts=2))
    assert not is_tiled(network, spec, unroll=None)
    assert not is_tiled(network, spec, batch=16)
    assert not is_tiled(network, spec, batch=62)  # only tiles of two
    large = {"w": jax.ShapeDtypeStruct((5_000_000,), jnp.float32)}
    assert not is_tiled(network, spec, params=large)


def test_needs_a_key_where_it_draws(network):
    run, (images, labels, _) = attacked(network, attacks.make("pgd_sat", eps=0.1, steps=2))
    with pytest.raises(ValueError, match="key is None"):
        run(images, labels, None)


@pytest.mark.multidevice
def test_every_device_keeps_its_images(network):
    spec, mesh = attacks.make("pgd_sat", eps=0.1, steps=2), sharding.make_mesh(2)
    run, given = attacked(network, spec, devices=2)
    same, split = sharding.replicated(mesh), sharding.split_batch(mesh)
    program = jax.jit(run, in_shardings=(split, split, same), out_shardings=split)
    text = program.lower(*given).compile().as_text()
    assert not collectives(text)
    assert "f32[16,8,8,4]" in text  # activations of a tile, on one device


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_batches_that_are_normalised_together_stay_together(bn):
    method, parts = compiled_steps.ciard(attack_bn=bn)
    state = jax.eval_shape(lambda: compiled_steps.initial(method, parts))
    batch = {
        "image": jax.ShapeDtypeStruct((64, *compiled_steps.SHAPE), jnp.float32),
        "label": jax.ShapeDtypeStruct((64,), jnp.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    program = jax.jit(lambda s, b, k: base.attack(parts, s, b, k).images)
    tiled = "tensor<4x1x16x8x8x1xf32>" in program.lower(state, batch, key).as_text()
    assert tiled == (bn == "eval")
