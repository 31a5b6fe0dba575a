"""Fair-RSLAD's class weights and ABSLD's class temperatures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation_setup import compiled, parts, run, start
from small_networks import CLASSES, batch

from ard_jax import losses, methods
from ard_jax.methods import absld, fair_rslad, per_class


def same(a, b, **tolerance):
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


# Fair-RSLAD


def weights(kappa_sum, count, before=None, **options):
    config = fair_rslad.FairRsladConfig(**options)
    before = np.ones(len(count)) if before is None else before
    arrays = (jnp.asarray(a, jnp.float32) for a in (kappa_sum, count, before))
    return np.asarray(fair_rslad.class_weights(config, *arrays))


def test_class_weights_closed_form():
    """kappa = 4, 5, 8 and beta 2: (1/16, 1/25, 1/64) scaled to sum 3, cut to [5/6, 5/2]."""
    raw = np.array([1 / 16, 1 / 25, 1 / 64])
    expected = 3 * raw / raw.sum()
    assert expected[0] > expected[1] > 5 / 6 > expected[2]
    expected = np.clip(expected, 5 / 6, 5 / 2)
    np.testing.assert_allclose(weights([8, 10, 8], [2, 2, 1]), expected, rtol=1e-6)
    uncut = weights([8, 10, 8], [2, 2, 1], low=0.0, high=9.0)
    np.testing.assert_allclose(uncut, 3 * raw / raw.sum(), rtol=1e-6)
    np.testing.assert_allclose(weights([8, 10, 8], [2, 2, 1], beta=0.0), 1.0)


def test_class_weights_survive_absent_classes_and_kappa_zero():
    np.testing.assert_allclose(
        weights([4, 0, 4], [1, 0, 1], before=[1.0, 2.0, 1.0]), [1.0, 2.0, 1.0]
    )
    np.testing.assert_allclose(weights([0, 5, 5], [1, 1, 1]), [5 / 2, 5 / 6, 5 / 6], rtol=1e-6)
    np.testing.assert_allclose(weights([0, 0, 0], [1, 1, 1]), 1.0)
    np.testing.assert_allclose(weights([0, 0], [0, 0], before=[1.5, 0.9]), [1.5, 0.9])


def test_kappa_counts_the_iterates_that_are_still_right():
    p, b = compiled("fair_rslad")[0], batch()
    states, metrics = run("fair_rslad", 1)
    state = states[0]
    predict = lambda x: p.student.apply(state.student.variables, x, False)[0]  # noqa: E731
    soft = p.teachers["robust"].apply(state.teachers["robust"].variables, b["image"], False)[0]
    # The start is random; a step of size 0 tells where it was.
    spec, right = dataclasses.replace(p.attack, steps=1), []
    x = spec.run(
        predict, b["image"], b["label"], jax.random.key(0), step_size=0.0, teacher_logits=soft
    )
    for _ in range(p.attack.steps):
        right.append(np.asarray(jnp.argmax(predict(x), -1) == b["label"]))
        x = spec.run(
            predict, b["image"], b["label"], start=x, teacher_logits=soft, eps=p.attack.eps,
            step_size=p.attack.step_size,
        )  # fmt: skip
    total = np.sum(right, axis=0)
    sums = [total[np.asarray(b["label"]) == c].sum() for c in range(CLASSES)]
    np.testing.assert_array_equal(states[1].method["kappa_sum"], sums)
    np.testing.assert_array_equal(states[1].method["class_count"], np.full(CLASSES, 2))
    assert metrics[0]["kappa"] == pytest.approx(total.mean())


def test_class_weights_change_at_the_end_of_an_epoch_only():
    states, _ = run("fair_rslad", 4)  # three steps an epoch
    assert np.all(states[2].method["class_weights"] == 1)
    new = states[3].method["class_weights"]
    assert np.any(new != 1) and np.all((new >= 5 / 6) & (new <= 5 / 2))
    assert not np.any(states[3].method["kappa_sum"]) and not np.any(states[3].method["class_count"])
    np.testing.assert_array_equal(states[4].method["class_weights"], new)
    kappa = states[2].method["kappa_sum"]  # of two steps; the third is only in the weights
    assert np.any(kappa)


def test_fair_rslad_with_equal_weights_is_rslad():
    """In the first epoch the weights are 1: same update as RSLAD on the same start."""
    p = compiled("fair_rslad")[0]
    plain = methods.create("rslad", p)
    fair, _ = run("fair_rslad", 1)
    expected, _ = jax.jit(plain.step)(start(plain, p), batch(), jax.random.key(0))
    same(fair[1].student, expected.student, rtol=1e-5, atol=1e-7)


def test_a_class_with_weight_two_counts_twice():
    states, metrics = run("fair_rslad", 1)
    doubled = dict(states[0].method, class_weights=jnp.full(CLASSES, 2.0))
    _, twice = run("fair_rslad", 1, state=states[0].replace(method=doubled))
    for key in ("loss", "loss_robust", "loss_clean"):
        assert twice[0][key] == pytest.approx(2 * metrics[0][key], rel=1e-6)


# ABSLD


def test_class_temperatures_closed_form():
    """G = 1, 2, 6: mean 3, gaps -2, -1, 3; the hardest class gets a temperature lower by the rate."""
    config = absld.AbsldConfig()
    g, t = jnp.asarray([1.0, 2.0, 6.0]), jnp.asarray([1.0, 4.99, 0.55])
    new = absld.class_temperatures(config, t, g, 0.1)
    np.testing.assert_allclose(new, [1 + 0.1 * 2 / 3, 5.0, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(absld.class_temperatures(config, t, jnp.ones(3), 0.1), t)


def test_temperatures_change_at_the_end_of_an_epoch_with_the_decayed_rate():
    for epoch, rate in ((1, 0.1), (215, 0.01)):
        states, _ = run("absld", 3, epochs=[epoch] * 3)
        assert np.all(states[2].method["temp_adv"] == 1)
        for kind in ("adv", "nat"):
            moved = np.abs(np.asarray(states[3].method[f"temp_{kind}"]) - 1)
            assert moved.max() == pytest.approx(rate, rel=1e-4)
            assert not np.any(states[3].method[f"loss_{kind}"])
            assert np.all(np.asarray(states[2].method[f"loss_{kind}"]) > 0)


def test_absld_collects_the_cross_entropy_of_each_class():
    p = compiled("absld")[0]
    states, _ = run("absld", 1)
    b, student = batch(), states[0].student
    # The clean pass comes second, but train-mode logits do not depend on running statistics.
    z = p.student.apply(student.variables, b["image"], True)[0]
    expected = per_class.class_sums(losses.cross_entropy(z, b["label"]), b["label"], CLASSES)
    np.testing.assert_allclose(states[1].method["loss_nat"], expected, rtol=1e-4)


def absld_losses(variant, t_adv, t_nat):
    p, method, _ = compiled("absld", variant=variant)
    state = start(method, p)
    memory = dict(
        state.method, temp_adv=jnp.full(CLASSES, t_adv), temp_nat=jnp.full(CLASSES, t_nat)
    )
    _, metrics = run("absld", 1, state=state.replace(method=memory), variant=variant)
    return metrics[0]["loss_robust"], metrics[0]["loss_clean"]


def test_released_variant_divides_both_labels_by_the_product():
    product = absld_losses("paper", 3.0, 3.0)
    assert absld_losses("released", 2.0, 1.5) == pytest.approx(product, rel=1e-5)
    assert absld_losses("released", 1.0, 3.0) == pytest.approx(product, rel=1e-5)
    separate = absld_losses("paper", 3.0, 1.0)
    assert separate[0] == pytest.approx(product[0], rel=1e-5) and separate[1] != product[1]


@pytest.mark.parametrize("name", ["fair_rslad", "absld"])
def test_epoch_length_must_be_known(name):
    with pytest.raises(ValueError, match="steps_per_epoch=0 must be at least 1"):
        methods.create(name, parts(name, steps_per_epoch=0))
