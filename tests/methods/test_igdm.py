"""Gradient matching: the step written out, its ramp, its statistics beside a method's own repeated passes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation_setup import parts, start
from small_networks import CLASSES, batch

from ard_jax import losses, methods
from ard_jax.methods import base, igdm

EPOCH = 30
KEY = jax.random.key(0)


@functools.cache
def one_step(name, matching=None, epoch=EPOCH, **options):
    """(parts, state before, state after, metrics)."""
    p = dataclasses.replace(parts(name), igdm=matching)
    method = methods.create(name, p, **options)
    state = start(method, p)
    new, metrics = jax.jit(method.step)(state, batch(epoch), KEY)
    return p, state, new, {k: float(v) for k, v in metrics.items()}


def distance(a, b):
    pairs = zip(*map(jax.tree.leaves, (a, b)), strict=True)
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in pairs)


def points(p, state, config):
    """x', x + beta d, x - gamma d."""
    images = batch()["image"]
    adversarial = jax.jit(lambda: base.attack(p, state, batch(), KEY).images)()
    d = adversarial - images
    return adversarial, images + config.beta * d, images - config.gamma * d


POINTS = [igdm.Igdm(weight=20.0), igdm.Igdm(weight=20.0, beta=0.5, gamma=0.8)]


@pytest.mark.parametrize("config", POINTS)
def test_the_step_written_out(config):
    p, state, new, metrics = one_step("adaad", config)
    adversarial, plus, minus = points(p, state, config)
    teacher = lambda x: p.teachers["robust"].apply(state.teachers["robust"].variables, x, False)[0]  # noqa: E731

    def loss(params):
        stats, z = state.student.batch_stats, {}
        named = {"nat": batch()["image"], "adv": adversarial, "plus": plus, "minus": minus}
        order = ("nat", "adv", "minus") if config.beta == 1 else ("nat", "adv", "plus", "minus")
        for name in order:
            variables = {"params": params, "batch_stats": stats}
            z[name], stats = p.student.apply(variables, named[name], True)
        first = z["adv"] if config.beta == 1 else z["plus"]
        own = jnp.mean(losses.trades_kl(teacher(adversarial), z["adv"])) / CLASSES
        log_t = jax.nn.log_softmax(teacher(plus) - teacher(minus))
        log_s = jax.nn.log_softmax(first - z["minus"])
        term = jnp.mean(jnp.sum(jnp.exp(log_t) * (log_t - log_s), -1))
        return own + 20.0 * EPOCH / 300 * term, (stats, term)

    (value, (stats, term)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        state.student.params
    )
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    assert metrics["loss_igdm"] == pytest.approx(float(term), rel=1e-5)
    expected = jax.tree.map(lambda w, g: w - 0.3 * (g + 2e-4 * w), state.student.params, gradient)
    assert distance(new.student.params, expected) < 1e-5
    assert distance(new.student.batch_stats, stats) < 1e-5
    usual = one_step("adaad")[2]
    assert distance(new.student.params, usual.student.params) > 1e-3


@pytest.mark.parametrize("ramp_epochs", [0, 200])
@pytest.mark.parametrize("epoch", [1, 150])
def test_the_weight_grows_with_the_epoch(ramp_epochs, epoch):
    _, _, _, m = one_step("adaad", igdm.Igdm(weight=2.0, ramp_epochs=ramp_epochs), epoch)
    share = 2.0 * epoch / (ramp_epochs or 300)
    assert m["loss"] == pytest.approx(m["loss_base"] + share * m["loss_igdm"], rel=1e-5)
    assert m["loss_igdm"] > 0


def test_a_weight_of_zero_changes_nothing():
    without, zero = one_step("adaad"), one_step("adaad", igdm.Igdm())
    assert distance(without[2].student, zero[2].student) == 0.0
    assert "loss_igdm" not in zero[3]


def test_statistics_beside_repeated_passes():
    """AdaIAD's released code runs S(x), S(x'), S(x), S(x); the pass at x - d comes last."""
    config = igdm.Igdm(weight=1.0)
    p, state, new, _ = one_step("adaiad", config, 61, variant="released")
    adversarial, _, minus = points(p, state, config)
    stats, x = state.student.batch_stats, batch()["image"]
    for images in (x, adversarial, x, x, minus):
        variables = {"params": state.student.params, "batch_stats": stats}
        stats = p.student.apply(variables, images, True)[1]
    for ours, theirs in zip(*map(jax.tree.leaves, (new.student.batch_stats, stats)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_point_behind_x_is_not_clipped():
    images = jnp.full((1, 1, 1, 2), 0.02)
    found = igdm.points(igdm.Igdm(weight=1.0, beta=0.5), images, images + 0.1)
    np.testing.assert_allclose(found["minus"], -0.08, rtol=1e-5)
    np.testing.assert_allclose(found["plus"], 0.07, rtol=1e-5)


def test_equal_differences_match_whatever_the_logits():
    z, d = jax.random.normal(KEY, (2, 5, CLASSES))
    assert float(jnp.max(igdm.matching(z + d, z, d, jnp.zeros_like(z)))) < 1e-6
    assert float(jnp.min(igdm.matching(z + d, z, -d, jnp.zeros_like(z)))) > 1e-2


@pytest.mark.parametrize(("name", "teacher"), [("adaad", 1), ("rslad", 2)])
def test_one_more_pass_of_the_student_and_of_the_teacher(name, teacher):
    """Of the teacher two where the base does not ask it at x'."""

    def passes(matching):
        calls = {"student": 0, "robust": 0}
        p = dataclasses.replace(parts(name), igdm=matching)

        def counted(net, role):
            def apply(variables, images, train):
                calls[role] += train or role == "robust"
                return net.apply(variables, images, train)

            return dataclasses.replace(net, apply=apply)

        p = dataclasses.replace(
            p, student=counted(p.student, "student"),
            teachers={"robust": counted(p.teachers["robust"], "robust")},
        )  # fmt: skip
        method = methods.create(name, p)
        state = start(method, p)
        calls.update(student=0, robust=0)
        jax.eval_shape(method.step, state, batch(), KEY)
        return calls

    without, with_it = passes(None), passes(igdm.Igdm(weight=1.0))
    assert with_it["student"] - without["student"] == 1
    assert with_it["robust"] - without["robust"] == teacher
