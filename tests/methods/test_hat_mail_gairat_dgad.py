"""HAT, MAIL, GAIRAT and DGAD: what can be said of them by hand, running statistics, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_batch import (
    adversarial_images,
    compiled,
    distance,
    fresh,
    one_step,
    passes,
    train_logits,
)
from small_networks import batch

from ard_jax import losses, methods
from ard_jax.methods import base, dgad, gairat, mail
from ard_jax.runtime import sharding
from ard_jax.training import train_step

NAMES = ("hat", "hat_at", "mail", "mail_trades", "mail_mart", "gairat", "dgad")
# Three classes: a certain right one, an undecided one, a certain wrong one.
Z = jnp.array([[30.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 30.0, 0.0]])
Y = jnp.zeros(3, jnp.int32)


@pytest.mark.parametrize("name", NAMES)
def test_loss_falls_on_one_batch(name):
    _, state, step = compiled(name)
    values = []
    for i in range(60):
        state, metrics = step(state, batch(100), jax.random.key(i))
        values.append(float(metrics["loss"]))
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])


@pytest.mark.multidevice
@pytest.mark.parametrize("name", ["mail", "gairat", "dgad"])
def test_sums_over_the_batch_are_the_same_on_eight_devices(name):
    """Those that scale the weights to mean 1, and that count what the teacher gets wrong."""
    p, start, _ = compiled(name)
    config = train_step.StepConfig(seed=0, steps_per_epoch=1, augment="none")
    images, found = np.uint8(255 * batch(size=16)["image"]), []
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices)
        state = start.replace(step=jnp.asarray(99, jnp.int32))  # epoch 100
        state = jax.tree.map(lambda v: v.copy(), sharding.put_replicated(mesh, state))
        arrays = {"image": images, "label": np.asarray(batch(size=16)["label"])}
        step = train_step.build(methods.create(name, p), config, mesh)
        state, metrics = step(state, sharding.put_batch(mesh, arrays))
        found.append(jax.device_get((state.student, metrics)))
    assert distance(*found) < 1e-5


# HAT


@pytest.mark.parametrize("name", ["hat", "hat_at"])
def test_helper_examples_lie_beyond_and_have_the_helpers_labels(name):
    """At x + h (x' - x), also outside of [0,1]; their labels are those that the clean teacher gives x'."""
    p, _, _ = compiled(name)
    old, new, metrics = one_step(name, h=3.0)
    x, adversarial = batch()["image"], adversarial_images(name)
    beyond = x + 3.0 * (adversarial - x)
    assert jnp.max(beyond) > 1 or jnp.min(beyond) < 0
    helper = jnp.argmax(base.teacher_logits(p, old, "clean", adversarial), -1)
    expected = jnp.mean(losses.cross_entropy(train_logits(old, beyond), helper))
    np.testing.assert_allclose(metrics["loss_helper"], expected, rtol=1e-4)
    assert metrics["helper_accuracy"] == jnp.mean(helper == batch()["label"])
    assert distance(new.student.batch_stats, passes(old, [x, adversarial, beyond])) < 1e-6
    weights = {"loss_clean": 1, "loss_robust": 2.5, "loss_helper": 0.5}
    total = sum(weight * metrics[term] for term, weight in weights.items())
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


def test_hat_without_its_terms_is_natural_training():
    natural = one_step("natural")[1].student.params
    assert distance(one_step("hat", beta=0.0, gamma=0.0)[1].student.params, natural) < 1e-6


def test_forms_of_hat_have_their_own_robust_term():
    for name in ("hat", "hat_at"):
        old, _, metrics = one_step(name)
        z_nat, z_adv = (train_logits(old, x) for x in (batch()["image"], adversarial_images(name)))
        kl, ce = losses.trades_kl(z_nat, z_adv), losses.cross_entropy(z_adv, batch()["label"])
        expected = jnp.mean(kl if name == "hat" else ce)
        np.testing.assert_allclose(metrics["loss_robust"], expected, rtol=1e-4)


# MAIL


def test_probability_margin_of_hand_numbers():
    np.testing.assert_allclose(losses.probability_margin(Z, Y), [-1, 0, 1], atol=1e-6)
    z = jnp.log(jnp.array([[1.0, 2.0, 3.0], [2.0, 1.0, 1.0]]))
    np.testing.assert_allclose(
        losses.probability_margin(z, jnp.array([1, 0])), [1 / 6, -0.25], atol=1e-6
    )


def mail_weights(epoch=77, **options):
    return mail.example_weights(mail.MailConfig(**options), Z, Y, jnp.asarray(epoch))


def test_mail_weights_closed_form():
    sigmoid = 1 / (1 + np.exp(-10 * (np.array([-1.0, 0.0, 1.0]) - 0.5)))
    np.testing.assert_allclose(mail_weights(), sigmoid / sigmoid.mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mail_weights(variant="released"), 3 * sigmoid, rtol=1e-4, atol=1e-6)


def test_mail_weights_survive_sigmoids_that_are_zero():
    weights = mail.example_weights(
        mail.MailConfig(slope=1e4, bias=-5.0), Z[:1].repeat(3, 0), Y, jnp.asarray(77)
    )
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


def test_mail_is_plain_before_its_epoch():
    np.testing.assert_array_equal(mail_weights(epoch=76), 1.0)
    before, after = (one_step("mail", epoch=epoch) for epoch in (76, 77))
    assert before[2]["weight_max"] == 1.0
    z = train_logits(before[0], adversarial_images("mail"))
    plain = jnp.mean(losses.cross_entropy(z, batch()["label"]))
    np.testing.assert_allclose(before[2]["loss"], plain, rtol=1e-5)
    assert distance(before[1].student.params, after[1].student.params) > 1e-5


def test_mail_weights_are_constants():
    slope = jax.grad(lambda z: mail.example_weights(mail.MailConfig(), z, Y, jnp.asarray(77))[0])(Z)
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_mail_mart_weighs_the_first_term_only(variant):
    old, _, metrics = one_step("mail_mart", epoch=77, variant=variant)
    x, adversarial = batch()["image"], adversarial_images("mail_mart")
    z_nat, z_adv, y = train_logits(old, x), train_logits(old, adversarial), batch()["label"]
    config = mail.MailMartConfig(variant=variant)
    weights = mail.example_weights(config, z_adv, y, jnp.asarray(77))
    bce = jnp.mean(weights * losses.boosted_cross_entropy(z_adv, y))
    np.testing.assert_allclose(metrics["loss_bce"], bce, rtol=1e-4)
    kl = jnp.mean(losses.mart_kl(z_nat, z_adv, y))
    np.testing.assert_allclose(metrics["loss_kl"], kl, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], bce + 5 * kl, rtol=1e-4)


def test_mail_trades_moves_the_statistics_twice():
    """Once less than TRADES."""
    old, new, _ = one_step("mail_trades", epoch=77)
    inputs = [batch()["image"], adversarial_images("mail_trades")]
    assert distance(new.student.batch_stats, passes(old, inputs)) < 1e-6


# GAIRAT


def gairat_weights(kappa, steps=10, **options):
    return gairat.example_weights(gairat.GairatConfig(**options), jnp.asarray(kappa), steps)


@pytest.mark.parametrize(
    ("form", "unscaled"),
    [
        ("tanh", lambda a, k: (np.tanh(a) + 1) / 2),
        ("sigmoid", lambda a, k: 1 / (1 + np.exp(-a))),
        ("discrete", lambda a, k: (11 - k) / 11),
    ],
)
def test_gairat_weights_closed_form(form, unscaled):
    kappa = np.arange(11.0)
    v = unscaled(-1 + 5 * (1 - 2 * kappa / 10), kappa)
    np.testing.assert_allclose(gairat_weights(kappa, form=form), v / v.mean(), rtol=1e-4)


def test_gairat_weights_of_few_steps_and_of_equal_examples():
    np.testing.assert_allclose(gairat_weights([3.0, 3.0], steps=4), 1.0, rtol=1e-6)
    few = gairat_weights([0.0, 1.0], steps=1)  # H is 1: arguments 4 and -1
    v = (np.tanh([4.0, -1.0]) + 1) / 2
    np.testing.assert_allclose(few, v / v.mean(), rtol=1e-5)


def test_gairat_is_plain_before_its_epoch():
    before, after = (one_step("gairat", epoch=epoch) for epoch in (59, 60))
    z = train_logits(before[0], adversarial_images("gairat"))
    ce = losses.cross_entropy(z, batch()["label"])
    np.testing.assert_allclose(before[2]["loss"], jnp.mean(ce), rtol=1e-5)
    assert before[2]["weight_max"] == 1.0 < after[2]["weight_max"]
    assert distance(before[1].student.params, after[1].student.params) > 1e-5


# DGAD


def test_corrected_logits_of_hand_numbers():
    z = jnp.array([[1.0, 5.0, 3.0], [4.0, 0.0, 2.0], [7.0, 7.0, 0.0]])
    y = jnp.array([0, 0, 1])
    expected = [[5.0, 1.0, 3.0], [4.0, 0.0, 2.0], [7.0, 7.0, 0.0]]
    np.testing.assert_array_equal(losses.corrected_logits(z, y), expected)


def objective(wrong, size=4, **options):
    """DGAD's loss of a batch whose first `wrong` images the teacher gets wrong, and its metrics."""
    keys = jax.random.split(jax.random.key(0), 4)
    z_nat, z_adv, soft_nat, soft_adv = (jax.random.normal(k, (size, 5)) for k in keys)
    labels = jnp.argmax(soft_nat, -1)
    labels = jnp.where(jnp.arange(size) < wrong, (labels + 1) % 5, labels)
    given = {"label": labels, "epoch": jnp.asarray(1)}
    nets = base.Views(z_nat, z_adv), base.Views(soft_nat, soft_adv)
    total, metrics = dgad.objective(dgad.DgadConfig(**options), *nets, given)
    kl = [
        losses.trades_kl(losses.corrected_logits(soft, labels), z)
        for soft, z in ((soft_nat, z_nat), (soft_adv, z_adv))
    ]
    consistency = jnp.mean(jnp.square(jax.nn.softmax(z_adv) - jax.nn.softmax(z_nat)))
    return float(total), metrics, kl, float(consistency)


@pytest.mark.parametrize("wrong", [0, 1, 4])
def test_dgad_is_a_mean_over_two_groups(wrong):
    """The clean KL of the images that the teacher gets wrong, the adversarial KL of the others."""
    total, metrics, (kl_nat, kl_adv), consistency = objective(wrong)
    expected = (jnp.sum(kl_nat[:wrong]) + jnp.sum(kl_adv[wrong:])) / 4 + consistency
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["teacher_accuracy"], 1 - wrong / 4)
    assert (metrics["loss_clean"] == 0) == (wrong == 0) and (metrics["loss_robust"] == 0) == (
        wrong == 4
    )


def test_dgad_of_mobilenet_v2_adds_or_multiplies():
    _, metrics, _, consistency = objective(1)
    clean, robust = metrics["loss_clean"], metrics["loss_robust"]
    added = objective(1, student_form="mobilenet_v2")[0]
    np.testing.assert_allclose(added, (clean / 4 + robust * 3 / 4) / 2 + consistency, rtol=1e-5)
    product = objective(1, student_form="mobilenet_v2", variant="released")[0]
    np.testing.assert_allclose(product, (clean / 4 + 3 / 4) * robust / 2 + consistency, rtol=1e-5)


def test_dgad_divides_by_the_full_batch_when_told_to():
    _, metrics, _, consistency = objective(1)
    clean, robust = metrics["loss_clean"], metrics["loss_robust"]
    total = objective(1, full_batch=8, beta=2.0)[0]
    np.testing.assert_allclose(total, clean / 8 + robust * 7 / 8 + 2 * consistency, rtol=1e-5)
    with pytest.raises(ValueError, match="full_batch=3: smaller than the batch of 4; give 4, or 0"):
        objective(1, full_batch=3)


@pytest.mark.parametrize(("epoch", "repeats"), [(4, 1), (5, 2)])
def test_dgad_repeats_its_passes_in_the_iad_form(epoch, repeats):
    old, new, _ = one_step("dgad", epoch=epoch, iad_begin=5)
    inputs = [batch()["image"], adversarial_images("dgad")]
    assert distance(new.student.batch_stats, passes(old, inputs * repeats)) < 1e-6


def test_dgad_keeps_the_gradient_of_the_clean_side(monkeypatch):
    usual = one_step("dgad")[1].student.params
    squared, stop = losses.squared_error, jax.lax.stop_gradient
    monkeypatch.setattr(losses, "squared_error", lambda adv, nat: squared(adv, stop(nat)))
    _, state, step = fresh("dgad")
    detached = step(state, batch(), jax.random.key(1))[0].student.params
    assert distance(usual, detached) > 1e-5
