"""Dice losses: masks, closed-form gradient, the stable form, groups, soft targets, DPGD's objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ard_jax import losses

BATCH, CLASSES = 12, 5
S = 1e-5
Y = jnp.arange(BATCH) % CLASSES
MASK = jnp.array([1, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1], jnp.float32)
FORMS = losses.DICE_FORMS


def logits(seed=0, shape=(BATCH, CLASSES)):
    return 2.0 * jax.random.normal(jax.random.key(seed), shape)


def rows_dice(z, y, rows):
    """The definition on selected rows, one scalar, in float64."""
    p = np.asarray(jax.nn.softmax(z), np.float64)[rows]
    e = np.eye(z.shape[-1])[np.asarray(y)[rows]]
    return 1 - (2 * np.sum(p * e) + S) / (np.sum(e**2) + np.sum(p**2) + S)


def closed_form(z, y, m):
    """dL/dz_bk = (2/Den) p_k [D (p_k - ||p_b||^2) - (1[k=y] - p_y)], in float64."""
    p = np.asarray(jax.nn.softmax(z), np.float64)
    e, m = np.eye(z.shape[-1])[np.asarray(y)], np.asarray(m, np.float64)[:, None]
    whole = np.sum(m * e) + np.sum(m * p**2) + S
    dice = (2 * np.sum(m * p * e) + S) / whole
    p_y = np.sum(p * e, -1, keepdims=True)
    inner = dice * (p - np.sum(p**2, -1, keepdims=True)) - (e - p_y)
    return m * 2 / whole * p * inner


@pytest.mark.parametrize("form", FORMS)
def test_masked_equals_row_selected(form):
    z, rows = logits(), np.flatnonzero(MASK)
    shares = losses.dice_loss(z, Y, MASK, form=form)
    assert shares.shape == (BATCH,) and shares.dtype == jnp.float32
    np.testing.assert_allclose(jnp.sum(shares), rows_dice(z, Y, rows), rtol=1e-6)
    np.testing.assert_array_equal(shares[MASK == 0], 0.0)
    selected = jax.grad(lambda a: jnp.sum(losses.dice_loss(a, Y[rows], form=form)))(z[rows])
    masked = jax.grad(lambda a: jnp.sum(losses.dice_loss(a, Y, MASK, form=form)))(z)
    np.testing.assert_allclose(masked[rows], selected, atol=1e-8)
    np.testing.assert_array_equal(masked[MASK == 0], 0.0)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_set_has_value_and_gradient_zero(form):
    loss = lambda z: jnp.sum(losses.dice_loss(z, Y, jnp.zeros(BATCH), form=form))  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(logits())
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", [jnp.ones(BATCH), MASK])
def test_gradient_is_the_closed_form(form, mask):
    gradient = jax.grad(lambda z: jnp.sum(losses.dice_loss(z, Y, mask, form=form)))(logits())
    np.testing.assert_allclose(gradient, closed_form(logits(), Y, mask), atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_unsquared_is_one_minus_the_label_s_probability(form):
    p_y = jax.nn.softmax(logits())[jnp.arange(BATCH), Y]
    value = losses.dice_loss(logits(), Y, kind="unsquared", form=form)
    np.testing.assert_allclose(value, 1 - p_y, atol=1e-7)


def test_per_sample_is_the_dice_of_sets_of_one():
    want = [rows_dice(logits(), Y, [b]) for b in range(BATCH)]
    for form in FORMS:
        value = losses.dice_loss(logits(), Y, kind="per_sample", form=form)
        np.testing.assert_allclose(value, want, atol=1e-6)


@pytest.mark.parametrize("kind", losses.DICE_KINDS[:3])
def test_stable_equals_plain(kind):
    value = [jnp.sum(losses.dice_loss(logits(), Y, MASK, kind=kind, form=f)) for f in FORMS]
    np.testing.assert_allclose(*value, rtol=1e-6)
    gradient = [
        jax.grad(lambda z, f=f: jnp.sum(losses.dice_loss(z, Y, MASK, kind=kind, form=f)))(logits())
        for f in FORMS
    ]
    np.testing.assert_allclose(*gradient, atol=1e-7)


@pytest.mark.parametrize("kind", ["batch", "per_sample"])
@pytest.mark.parametrize("gap", [20.0, 40.0])
def test_the_stable_form_is_exact_for_a_confident_image(kind, gap):
    label = jnp.zeros(1, jnp.int32)

    def gradient(form):
        total = lambda z: jnp.sum(losses.dice_loss(z, label, kind=kind, form=form))  # noqa: E731
        return np.asarray(jax.grad(total)(gap * jax.nn.one_hot(label, 10)))[0]

    # Nine wrong classes of probability p: L = ((9p)^2 + 9 p^2) / (2 + s), and d log p / dz_y = -1.
    p = np.exp(-gap)
    want = -2 * (81 + 9) * p**2 / (2 + S)
    stable, plain = gradient("stable"), gradient("plain")
    np.testing.assert_allclose(stable[0], want, rtol=1e-4)
    np.testing.assert_allclose(stable[1:], -want / 9, rtol=1e-4)
    # p_y is exactly 1 in float32, so the plain form has lost the 81.
    assert abs(plain[0] / want - 1) > 0.5


@pytest.mark.parametrize("kind", losses.DICE_KINDS[:3])
def test_values_gradients_and_bfloat16(kind):
    loss = lambda z: jnp.sum(losses.dice_loss(z, Y, MASK, kind=kind))  # noqa: E731
    check_grads(loss, (logits(),), 1, ["rev"], eps=1e-2, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(jax.jit(loss)(logits()), loss(logits()), rtol=1e-6)
    low = losses.dice_loss(logits().astype(jnp.bfloat16), Y, kind=kind)
    assert low.dtype == jnp.float32
    exact = losses.dice_loss(logits().astype(jnp.bfloat16).astype(jnp.float32), Y, kind=kind)
    np.testing.assert_array_equal(low, exact)


def test_groups_have_their_own_dice():
    z = logits()
    grouped = losses.dice_loss(z, Y, MASK, groups=3)
    apart = [losses.dice_loss(z[i : i + 4], Y[i : i + 4], MASK[i : i + 4]) for i in (0, 4, 8)]
    np.testing.assert_allclose(grouped, jnp.concatenate(apart), rtol=1e-6)
    assert abs(jnp.sum(grouped) - jnp.sum(losses.dice_loss(z, Y, MASK))) > 1e-2


@pytest.mark.multidevice
def test_a_sharded_batch_has_one_dice():
    axis = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis,), devices=jax.devices()[:4])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    z, y, m = (jax.device_put(a, rows) for a in (logits(), Y, MASK))
    for groups in (1, 4):
        got = jax.jit(lambda z, y, m, g=groups: losses.dice_loss(z, y, m, groups=g))(z, y, m)
        np.testing.assert_allclose(
            got, losses.dice_loss(logits(), Y, MASK, groups=groups), rtol=1e-6
        )


@pytest.mark.parametrize("form", FORMS)
def test_soft_dice(form):
    z, t = logits(), jax.nn.softmax(logits(1))
    p = np.asarray(jax.nn.softmax(z), np.float64)
    q = np.asarray(t, np.float64)
    want = 1 - (2 * np.sum(p * q, -1) + S) / (np.sum(p**2, -1) + np.sum(q**2, -1) + S)
    np.testing.assert_allclose(losses.soft_dice(z, t, form=form), want, atol=1e-6)
    total = lambda a: jnp.sum(losses.soft_dice(a, t, form=form))  # noqa: E731
    check_grads(total, (z,), 1, ["rev"], eps=1e-2, atol=1e-3, rtol=1e-3)
    hard = losses.soft_dice(z, jax.nn.one_hot(Y, CLASSES), form=form)
    np.testing.assert_allclose(hard, losses.dice_loss(z, Y, kind="per_sample"), atol=1e-6)


def test_soft_dice_is_zero_only_at_its_target_symmetric_and_bounded():
    z, other = logits(), logits(1)
    p, t = jax.nn.softmax(z), jax.nn.softmax(other)
    np.testing.assert_array_equal(losses.soft_dice(z, p), 0.0)
    value = losses.soft_dice(z, t)
    assert np.all(value > 0) and np.all(value < 1)
    np.testing.assert_allclose(value, losses.soft_dice(other, p), rtol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.25, -0.05])
@pytest.mark.parametrize("form", FORMS)
def test_objective_weighs_right_and_misclassified_images(lam, form):
    z = logits()
    right = np.asarray(jnp.argmax(z, -1) == Y)
    assert 0 < right.sum() < BATCH
    want = (1 - lam) * rows_dice(z, Y, right) + lam * rows_dice(z, Y, ~right)
    value = losses.dpgd_objective(z, Y, lam, form=form)
    np.testing.assert_allclose(jnp.sum(value), want, rtol=1e-5, atol=1e-7)
    gradient = jax.grad(lambda a: jnp.sum(losses.dpgd_objective(a, Y, lam, form=form)))(z)
    parts = [closed_form(z, Y, m) for m in (right, ~right)]
    np.testing.assert_allclose(gradient, (1 - lam) * parts[0] + lam * parts[1], atol=1e-7)


@pytest.mark.parametrize("dice", losses.DICE_KINDS)
def test_padding_is_in_neither_set(dice):
    z, t = logits(), jax.nn.softmax(logits(1))
    padded = losses.dpgd_objective(z, Y.at[7:].set(-1), 0.25, dice=dice, targets=t)
    alone = losses.dpgd_objective(z[:7], Y[:7], 0.25, dice=dice, targets=t[:7])
    np.testing.assert_allclose(padded[:7], alone, rtol=1e-6)
    np.testing.assert_array_equal(padded[7:], 0)


@pytest.mark.parametrize("dice", ["per_sample", "unsquared", "soft"])
def test_objectives_that_do_not_couple_the_batch(dice):
    z, t = logits(), jax.nn.softmax(logits(1))

    def gradient(rows):
        def total(a):
            return jnp.sum(losses.dpgd_objective(a, Y[rows], 0.25, dice=dice, targets=t[rows]))

        return jax.grad(total)(z[rows])

    everything, few = gradient(slice(None)), gradient(slice(2, 5))
    np.testing.assert_allclose(everything[2:5], few, rtol=1e-6)
    assert np.all(np.max(np.abs(everything), axis=-1) > 1e-4)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: losses.dice_loss(logits(), Y[:3]), "labels of shape"),
        (lambda: losses.dice_loss(logits(), Y, MASK[:3]), r"shape \(3,\)"),
        (lambda: losses.dice_loss(logits(), Y, kind="soft"), "'soft'.*per_sample"),
        (lambda: losses.dice_loss(logits(), Y, form="fast"), "'fast'.*stable"),
        (lambda: losses.dice_loss(logits(), Y, groups=5), "groups=5.*12"),
        (lambda: losses.dice_loss(logits(), Y, groups=0), "groups=0"),
        (lambda: losses.soft_dice(logits(), logits()[:, :3]), "soft_dice"),
        (lambda: losses.soft_dice(logits(), logits(), form="fast"), "'fast'"),
        (lambda: losses.dpgd_objective(logits(), Y, 0.1, dice="hard"), "'hard'.*batch"),
        (lambda: losses.dpgd_objective(logits(), Y, 0.1, dice="soft"), "targets are None"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
