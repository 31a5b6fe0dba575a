"""KD, MART, ARD, IAD and SCORE: identities, variants, running statistics, bad values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_batch import (
    TRAIN,
    adversarial_images,
    compiled,
    distance,
    fresh,
    one_step,
    passes,
    train_logits,
)
from small_networks import batch

from ard_jax import losses
from ard_jax.methods import base

PLAIN = (("weight_decay", 0.0),)


@pytest.mark.parametrize(
    ("name", "options", "fields"),
    [
        ("kd", (), ()),
        ("mart", (), ()),
        ("ard", (("alpha", 0.5), ("temperature", 5.0)), TRAIN + (("attack_bn_stats", "keep"),)),
        ("iad1", (("begin_epoch", 0), ("variant", "released")), TRAIN),
        ("iad2", (("begin_epoch", 0),), ()),
        ("score", (("beta", 1.0),), TRAIN),
    ],
)
def test_loss_falls_on_one_batch(name, options, fields):
    _, state, step = compiled(name, fields, options)
    values = []
    for i in range(60):
        state, metrics = step(state, batch(), jax.random.key(i))
        values.append(float(metrics["loss"]))
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])


def test_softened_kl_gradient_is_t_times_the_difference_of_probabilities():
    teacher, student = jax.random.normal(jax.random.key(0), (2, 6, 10)) * 3
    for t in (1.0, 4.0, 30.0):
        total = lambda z, t=t: jnp.sum(losses.softened_kl(teacher, z, t))  # noqa: E731
        expected = t * (jax.nn.softmax(student / t) - jax.nn.softmax(teacher / t))
        np.testing.assert_allclose(jax.grad(total)(student), expected, atol=2e-5)
        assert float(jnp.max(jnp.abs(jax.grad(total)(teacher)))) < 2e-5


def test_kd_with_equal_logits_leaves_only_the_hard_labels(monkeypatch):
    """Then the KL has no gradient, and the update is 1 - alpha of natural training's."""

    def own_logits(parts, state, role, images):
        return jax.lax.stop_gradient(parts.student.apply(state.student.variables, images, True)[0])

    monkeypatch.setattr(base, "teacher_logits", own_logits)
    _, state, step = fresh("kd", PLAIN, {"alpha": 0.7})
    new, metrics = step(state, batch(), jax.random.key(1))
    old, natural, _ = one_step("natural", fields=PLAIN)
    moved = jax.tree.map(jnp.subtract, new.student.params, old.student.params)
    hard = jax.tree.map(lambda a, b: 0.3 * (a - b), natural.student.params, old.student.params)
    assert distance(moved, hard) < 1e-6 < distance(hard, jax.tree.map(jnp.zeros_like, hard))
    assert abs(metrics["loss_distill"]) < 1e-6


@pytest.mark.parametrize("name", ["kd", "ard", "iad1"])
def test_alpha_zero_is_natural_training(name):
    """Only CE(S(x), y) is left; in train mode the running statistics do not enter the gradient."""
    natural = one_step("natural")[1].student.params
    assert distance(one_step(name, alpha=0.0)[1].student.params, natural) < 1e-6
    assert distance(one_step(name)[1].student.params, natural) > 1e-4


def test_ard_reduction_and_scale():
    mean_classes = one_step("ard", temperature=1.0, kl_scale=10.0)[2]["loss_distill"]
    batchmean = one_step("ard", temperature=1.0, kl_reduction="batchmean")[2]["loss_distill"]
    np.testing.assert_allclose(mean_classes, batchmean, rtol=1e-5)


def test_mart_gradient_flows_through_the_target_and_the_weight(monkeypatch):
    usual = one_step("mart")[1].student.params
    kl, stop = losses.mart_kl, jax.lax.stop_gradient
    monkeypatch.setattr(losses, "mart_kl", lambda nat, adv, y: kl(stop(nat), adv, y))
    _, state, step = fresh("mart")
    detached = step(state, batch(), jax.random.key(1))[0].student.params
    assert distance(usual, detached) > 1e-4


@pytest.mark.parametrize(("name", "fields"), [("mart", ()), ("score", TRAIN)])
def test_statistics_are_the_clean_pass_and_then_the_adversarial_one(name, fields):
    old, new, _ = one_step(name, fields=fields)
    expected = passes(old, [batch()["image"], adversarial_images(name, fields)])
    assert distance(new.student.batch_stats, expected) < 1e-6


def test_reliability_is_the_teachers_probability_to_the_power_beta():
    z = jax.random.normal(jax.random.key(0), (10, 10)) * 4
    labels = jnp.arange(10, dtype=jnp.int32)
    a = base.reliability(z, labels, 0.1, jnp.asarray(True))
    expected = jax.nn.softmax(z)[jnp.arange(10), labels] ** 0.1
    np.testing.assert_allclose(a, expected, rtol=1e-5)
    assert np.all((a > 0) & (a <= 1))
    np.testing.assert_array_equal(base.reliability(z, labels, 0.1, jnp.asarray(False)), 1.0)
    np.testing.assert_array_equal(base.reliability(z, labels, 0.0, jnp.asarray(True)), 1.0)
    slope = jax.grad(lambda z: jnp.sum(base.reliability(z, labels, 0.1, jnp.asarray(True))))(z)
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.slow
def test_iad1_variants_differ_by_the_factor_on_the_teachers_term():
    p, old, _ = compiled("iad1")
    paper = one_step("iad1", epoch=61)[2]
    released = one_step("iad1", epoch=61, variant="released")[2]
    images = adversarial_images("iad1")
    soft = base.teacher_logits(p, old, "robust", batch()["image"])
    soft_adv = base.teacher_logits(p, old, "robust", images)
    a = jax.nn.softmax(soft_adv)[jnp.arange(20), batch()["label"]] ** 0.1
    kl = losses.softened_kl(soft, train_logits(old, images), 1.0)
    np.testing.assert_allclose(paper["loss_distill"], jnp.mean(a * kl), rtol=1e-4)
    np.testing.assert_allclose(released["loss_distill"], jnp.mean(kl), rtol=1e-4)
    np.testing.assert_allclose(paper["loss_own"], released["loss_own"], rtol=1e-5)
    np.testing.assert_allclose(paper["reliability"], jnp.mean(a), rtol=1e-5)
    assert paper["loss_distill"] < released["loss_distill"] - 1e-3


def test_iad1_is_ard_up_to_the_begin_epoch():
    ard = one_step("ard", temperature=1.0, kl_reduction="batchmean")[1].student
    before = one_step("iad1", epoch=60)
    assert distance(before[1].student.params, ard.params) < 1e-6
    assert before[2]["reliability"] == 1.0 and before[2]["loss_own"] == 0.0
    after = one_step("iad1", epoch=61)
    assert distance(after[1].student.params, ard.params) > 1e-5
    assert after[2]["reliability"] < 1.0


@pytest.mark.parametrize(
    ("name", "options", "before", "after"),
    [
        ("iad1", (), "an", "an"),
        ("iad1", (("variant", "released"),), "aan", "aann"),
        ("iad2", (), "a", "an"),
        ("iad2", (("reliability", "off"),), "a", "a"),
    ],
)
def test_iad_statistics(name, options, before, after):
    """Train-mode passes after the attack, a adversarial and n natural, on both sides of begin_epoch.

    One compiled step serves both sides: an executable takes no other shapes or constants.
    """
    _, state, step = compiled(name, (), options)
    images = {"a": adversarial_images(name), "n": batch()["image"]}
    last = 60 if name == "iad1" else 40
    step = step.lower(state, batch(last), jax.random.key(1)).compile()
    for epoch, order in ((last, before), (last + 1, after)):
        new, _ = step(state, batch(epoch), jax.random.key(1))
        expected = passes(state, [images[which] for which in order])
        assert distance(new.student.batch_stats, expected) < 1e-6, (epoch, order)


def test_akd2_is_iad2_before_the_begin_epoch():
    akd2 = one_step("iad2", epoch=41, reliability="off")[1].student
    assert distance(akd2.params, one_step("iad2", epoch=40)[1].student.params) < 1e-6
    assert distance(akd2.params, one_step("iad2", epoch=41)[1].student.params) > 1e-5


def test_iad2_terms_add_up():
    m = one_step("iad2", epoch=41, temperature=2.0)[2]
    total = 0.25 * m["loss_ce"] + 0.5 * (m["loss_distill"] + m["loss_own"])
    np.testing.assert_allclose(m["loss"], total + 0.25 * m["loss_clean_teacher"], rtol=1e-5)
    assert min(m["loss_ce"], m["loss_distill"], m["loss_own"], m["loss_clean_teacher"]) > 0


def test_score_smoothed_target():
    old, _, metrics = one_step("score", label_smoothing=0.18)
    target = np.full((20, 10), 0.02)
    target[np.arange(20), batch()["label"]] = 0.82
    prob = jax.nn.softmax(train_logits(old, batch()["image"]))
    expected = np.mean(np.sum((prob - target) ** 2, axis=1))
    np.testing.assert_allclose(metrics["loss_clean"], expected, rtol=1e-5)
    total = metrics["loss_clean"] + 4 * metrics["loss_robust"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
