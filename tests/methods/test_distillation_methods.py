"""MTARD, B-MTARD, AdaAD and AdaIAD: weights, temperatures, variants; and that every loss falls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation_setup import ATTACKS, compiled, parts, run, start
from small_networks import CLASSES, batch

from ard_jax import attacks, losses, methods
from ard_jax.methods import base


def differ(a, b):
    return any(bool(jnp.any(x != y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize("name", ATTACKS)
def test_loss_falls_on_one_batch(name):
    # Of an untrained student nearly the uniform distribution: labels of it leave little to learn.
    less = {"share_first": 0.1, "share_last": 0.1} if name.startswith("adr") else {}
    _, metrics = run(name, 24, **less)
    values = [m["loss"] for m in metrics]
    assert np.all(np.isfinite(values)) and np.mean(values[-4:]) < 0.8 * np.mean(values[:4])


# MTARD and B-MTARD


@pytest.mark.parametrize("name", ["mtard", "b_mtard"])
def test_weights_follow_the_rule(name):
    """Recomputed in plain Python from the losses of each step."""
    _, metrics = run(name, 5)
    w_adv = w_nat = 0.5
    first = metrics[0]
    for m in metrics:
        r_adv = m["loss_robust"] / first["loss_robust"]
        r_nat = m["loss_clean"] / first["loss_clean"]
        w_nat -= 0.025 * (w_nat - r_nat / (r_adv + r_nat))
        w_adv -= 0.025 * (w_adv - r_adv / (r_adv + r_nat))
        if name == "mtard":
            w_adv = 1 - w_nat
        else:
            w_adv, w_nat = w_adv / (w_adv + w_nat), w_nat / (w_adv + w_nat)
        assert m["w_adv"] == pytest.approx(w_adv, rel=1e-5)
        assert m["loss"] == pytest.approx(
            w_adv * m["loss_robust"] + w_nat * m["loss_clean"], rel=1e-5
        )
    assert metrics[0]["w_adv"] == 0.5 and metrics[-1]["w_adv"] != 0.5


def test_rates_decay_after_their_epochs():
    for epoch, factor in ((215, 1.0), (216, 0.1), (260, 0.1), (261, 0.01), (286, 0.001)):
        passed = [jnp.asarray(epoch) > e for e in (215, 260, 285)]
        assert float(base.decayed(0.025, passed)) == pytest.approx(0.025 * factor, rel=1e-6)
    assert float(base.decayed(0.025, [])) == pytest.approx(0.025)


def test_temperatures_move_by_their_rate_and_take_effect_one_step_later():
    states, metrics = run("b_mtard", 3, epochs=[1, 215, 216])
    moved = [abs(m["temp_adv"] - 1) + abs(m["temp_nat"] - 1) for m in metrics]
    # One of the two leaves 1 upwards; the other would leave it downwards and is cut.
    assert moved[:2] == pytest.approx([1e-3, 2e-3], rel=1e-3)
    assert abs(moved[2] - moved[1]) == pytest.approx(1e-4, rel=1e-2)
    hotter = dict(states[0].method, temp_nat=jnp.asarray(3.0))
    _, with_heat = run("b_mtard", 1, state=states[0].replace(method=hotter))
    assert with_heat[0]["loss_clean"] != metrics[0]["loss_clean"]
    assert with_heat[0]["entropy_nat"] < metrics[0]["entropy_nat"]
    assert with_heat[0]["loss_robust"] == metrics[0]["loss_robust"]


def test_temperatures_can_be_switched_off():
    _, metrics = run("b_mtard", 2, balance_temperatures=False)
    assert all(m["temp_adv"] == m["temp_nat"] == 1.0 for m in metrics)


# AdaAD and AdaIAD


def test_adaad_alpha_and_reduction():
    _, (one,) = run("adaad", 1)
    assert one["loss"] == one["loss_robust"] != one["loss_clean"]
    _, (none,) = run("adaad", 1, alpha=0.0)
    assert none["loss"] == none["loss_clean"] == one["loss_clean"]
    _, (batchmean,) = run("adaad", 1, kl_reduction="batchmean")
    assert batchmean["loss"] == pytest.approx(CLASSES * one["loss"], rel=1e-5)


def test_adaad_attack_drives_student_and_teacher_apart():
    """Further than random signs, and than RSLAD's attack on the teacher's fixed labels."""
    p = parts("adaad", attack_steps=5)
    state, b = start(methods.create("adaad", p), p), batch()
    fixed = dataclasses.replace(p, attack=attacks.make("rslad_train", eps=0.1, steps=5))

    def divergence(images):
        z = p.student.apply(state.student.variables, images, False)[0]
        soft = p.teachers["robust"].apply(state.teachers["robust"].variables, images, False)[0]
        return float(jnp.mean(losses.trades_kl(soft, z)))

    signs = jnp.sign(jax.random.normal(jax.random.key(1), b["image"].shape))
    found, on_fixed = (base.attack(q, state, b, jax.random.key(0)).images for q in (p, fixed))
    clean = divergence(b["image"])
    gain = divergence(found) - clean
    assert gain > 2 * abs(divergence(jnp.clip(b["image"] + 0.1 * signs, 0, 1)) - clean)
    assert gain > divergence(on_fixed) - clean


def test_reliability_begins_after_its_epoch_and_separates_the_variants():
    results = {}
    for variant in ("paper", "released"):
        for epoch in (60, 61):
            states, (m,) = run("adaiad", 1, epochs=[epoch], variant=variant)
            results[variant, epoch] = states[1].student.params, m
    assert results["paper", 60][1]["reliability"] == 1.0
    assert results["paper", 60][1]["loss_own"] == 0.0
    assert results["paper", 60][1]["loss"] == results["released", 60][1]["loss"]
    a = results["paper", 61][1]["reliability"]
    assert 0 < a < 1
    assert results["paper", 61][1]["loss_own"] > 0
    assert results["paper", 61][1]["loss_distill"] < results["released", 61][1]["loss_distill"]
    assert differ(results["paper", 61][0], results["released", 61][0])


@pytest.mark.parametrize(
    ("variant", "epoch", "order"),
    [("paper", 60, "x z"), ("paper", 61, "x z"), ("released", 60, "x z x"),
     ("released", 61, "x z x x")],
)  # fmt: skip
def test_adaiad_statistics_are_those_of_the_passes(variant, epoch, order):
    """`order` of train-mode passes: x clean, z adversarial."""
    p = compiled("adaiad", variant=variant)[0]
    states, _ = run("adaiad", 1, epochs=[epoch], variant=variant)
    student, b = states[0].student, batch()
    adversarial = base.attack(p, states[0], b, jax.random.key(0)).images
    stats = student.batch_stats
    for name in order.split():
        images = b["image"] if name == "x" else adversarial
        _, stats = p.student.apply({"params": student.params, "batch_stats": stats}, images, True)
    pairs = zip(*map(jax.tree.leaves, (states[1].student.batch_stats, stats)), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
