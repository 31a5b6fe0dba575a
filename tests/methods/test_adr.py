"""ADR: rectified labels by hand, its average and schedules, the passes of its TRADES form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation_setup import parts, run, start
from small_networks import batch

from ard_jax import losses, methods
from ard_jax.methods import adr, base

KEEPS = {"attack_bn": "train", "attack_bn_stats": "keep"}


def test_labels_by_hand():
    """Where the average is right its lead is 0; where another class leads, the share falls by the lead."""
    q = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.05, 0.9, 0.05]])
    soft, shares = adr.rectified_labels(jnp.log(q), jnp.array([0, 0, 0]), 1.0, 0.8)
    want = [0.8, 0.8 - 0.5, 0.0]  # 0.8 - 0.85 is cut at 0
    np.testing.assert_allclose(shares, want, atol=1e-6)
    onehot = np.eye(3)[[0, 0, 0]]
    expected = np.array(want)[:, None] * q + (1 - np.array(want))[:, None] * onehot
    np.testing.assert_allclose(soft, expected, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(soft, -1), 1.0, rtol=1e-6)


def test_temperature_flattens_the_prediction():
    logits = jnp.array([[4.0, 0.0, 0.0]])
    sharp, flat = (adr.rectified_labels(logits, jnp.array([0]), t, 1.0)[0] for t in (1.0, 4.0))
    assert sharp[0, 0] > flat[0, 0] > 1 / 3


def test_cosine_begins_at_the_first_value_and_does_not_reach_the_last():
    values = np.asarray(adr.cosine(2.5, 2.0, jnp.arange(10), 10))
    assert values[0] == 2.5 and 2.0 < values[-1] < 2.02
    np.testing.assert_allclose(values[5], 2.25, rtol=1e-6)


def test_labels_as_logits_are_finite_and_come_back():
    soft = jnp.array([[1.0, 0.0, 0.0], [0.5, 0.3, 0.2]])
    logits = losses.as_logits(soft)
    assert bool(jnp.all(jnp.isfinite(logits)))
    np.testing.assert_allclose(jax.nn.softmax(logits), soft, atol=1e-7)


def test_average_moves_from_the_first_update_and_labels_use_it_before():
    states, metrics = run("adr", 3, decay=0.9)
    for before, after in zip(states, states[1:], strict=False):
        expected = jax.tree.map(
            lambda e, s: 0.9 * e + 0.1 * s, before.method["average"], after.student.variables
        )
        for ours, theirs in zip(
            *map(jax.tree.leaves, (after.method["average"], expected)), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert metrics[0]["label_temperature"] == 2.5 > metrics[2]["label_temperature"] > 2.0
    assert metrics[0]["label_share"] == pytest.approx(0.7)
    other = states[0].replace(method={"average": states[3].method["average"]})
    _, (changed,) = run("adr", 1, state=other, decay=0.9)
    assert changed["loss"] != metrics[0]["loss"]


def test_a_share_of_zero_is_plain_adversarial_training():
    p = parts("adr")
    sat = dataclasses.replace(p, attack=dataclasses.replace(p.attack, loss="cross_entropy"))
    plain = methods.create("sat", sat)
    state = start(plain, sat)
    new, metrics = jax.jit(plain.step)(state, batch(), jax.random.key(0))
    states, (ours,) = run("adr", 1, share_first=0.0, share_last=0.0)
    assert ours["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-5)
    pairs = (states[1].student.params, new.student.params)
    for one, other in zip(*map(jax.tree.leaves, pairs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@functools.cache
def trades_step(variant="paper", **fields):
    p = dataclasses.replace(parts("adr_trades"), **fields)
    method = methods.create("adr_trades", p, variant=variant)
    state = start(method, p)
    new, _ = jax.jit(method.step)(state, batch(), jax.random.key(0))
    return p, state, new


def test_statistics_of_the_trades_form():
    """S(x), one pass for each step of the attack, and one of x and x' together."""
    p, state, new = trades_step(**KEEPS)

    def forward(images, stats):
        variables = {"params": state.student.params, "batch_stats": stats}
        return p.student.apply(variables, images, True)[1]

    @jax.jit
    def written_out():
        stats = forward(batch()["image"], state.student.batch_stats)
        attacked = base.attack(p, state, batch(), jax.random.key(0), batch_stats=stats)
        return forward(jnp.concatenate([batch()["image"], attacked.images]), attacked.batch_stats)

    pairs = zip(*map(jax.tree.leaves, (new.student.batch_stats, written_out())), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    others = trades_step()[2].student.batch_stats
    assert all(
        float(jnp.max(jnp.abs(a - b))) > 1e-4
        for a, b in zip(*map(jax.tree.leaves, (others, new.student.batch_stats)), strict=True)
    )


def test_released_start_is_one_sided():
    """With no step of the attack, x' is its start."""
    p = parts("adr_trades")
    seen = []

    def apply(variables, images, train):
        if images.shape[0] == 2 * batch()["image"].shape[0]:
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), images)
        return p.student.apply(variables, images, train)

    still = dataclasses.replace(p.attack)
    object.__setattr__(still, "steps", 0)  # which no user can have
    spied = dataclasses.replace(
        p, student=dataclasses.replace(p.student, apply=apply), attack=still
    )
    for variant, sides in (("released", 1), ("paper", 2)):
        method = methods.create("adr_trades", spied, variant=variant)
        seen.clear()
        jax.block_until_ready(method.step(start(method, spied), batch(), jax.random.key(0)))
        jax.effects_barrier()
        pairs = seen[0].reshape(-1, 2, *batch()["image"].shape[1:])
        noise = pairs[:, 1] - pairs[:, 0]
        assert noise.max() > 0 and (noise.min() < -1e-4) == (sides == 2)
        assert noise.max() < (0.0011 if sides == 1 else 0.01)


@pytest.mark.parametrize("name", ["adr", "adr_trades"])
def test_the_length_of_the_run_must_be_known(name):
    p = dataclasses.replace(parts(name), steps_per_epoch=0)
    with pytest.raises(ValueError, match=f"{name}.*Parts.steps_per_epoch=0 must be at least 1"):
        methods.create(name, p)


def test_an_attack_may_take_the_labels_but_no_network():
    assert methods.attack_problems("adr", parts("mtard").attack) == []
    for attack, fits in (("adr", True), ("absld", True), ("adaad", False), ("saad", False)):
        problems = methods.attack_problems("adr", parts(attack).attack)
        assert (problems == []) == fits, attack
    assert methods.attack_problems("sat", parts("adr").attack)
