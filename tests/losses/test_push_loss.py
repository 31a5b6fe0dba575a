"""The push loss and its scales: selection, empty and poisoned sets, decade borders."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ard_jax import losses

LABELS = jnp.array([0, 1, 2, 0, 1, 2])


def logits(seed, shape=(6, 3)):
    return 2.0 * jax.random.normal(jax.random.key(seed), shape)


def teacher_with(wrong):
    """Confident logits that name another class than the label exactly where `wrong` is set."""
    named = jnp.where(jnp.array(wrong), (LABELS + 1) % 3, LABELS)
    return 4.0 * jax.nn.one_hot(named, 3) + 0.1 * logits(5)


SOME = [True, False, True, False, False, True]


def mean_push(student, teacher):
    kl, wrong = losses.push_loss(student, teacher, LABELS)
    return losses.masked_class_mean(kl, wrong, 3)


def test_push_of_hand_numbers():
    # Softened student (1/2, 1/2), teacher (3/4, 1/4): only the first row is misclassified.
    student, teacher = jnp.zeros((2, 2)), jnp.log(jnp.array([[3.0, 1.0], [3.0, 1.0]]))
    kl, wrong = losses.push_loss(student, teacher, jnp.array([1, 0]))
    want = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    np.testing.assert_array_equal(wrong, [True, False])
    # The 1e-5 inside the teacher's logarithm adds about 1e-5 per class.
    np.testing.assert_allclose(kl, [want, want], atol=2.1e-5)
    np.testing.assert_allclose(losses.masked_class_mean(kl, wrong, 2), want / 2, atol=1.1e-5)


def test_only_the_student_is_softened():
    student, teacher = logits(0), logits(1)
    kl, _ = losses.push_loss(student, teacher, LABELS)
    np.testing.assert_allclose(kl, losses.kl_divergence(student / 5.0, teacher), rtol=1e-5)
    both, _ = losses.push_loss(student, teacher, LABELS, 5.0, 5.0)
    np.testing.assert_allclose(both, losses.kl_divergence(student / 5, teacher / 5), rtol=1e-5)


def test_masking_equals_selecting():
    student, teacher, rows = logits(0), teacher_with(SOME), jnp.array([0, 2, 5])
    kl = losses.kl_divergence(student[rows], teacher[rows], 1.0, 5.0)
    np.testing.assert_allclose(mean_push(student, teacher), jnp.mean(kl) / 3, rtol=1e-6)
    gradient = jax.grad(mean_push)(student, teacher)
    selected = jax.grad(lambda z: jnp.mean(losses.kl_divergence(z, teacher[rows], 1.0, 5.0)) / 3)(
        student[rows]
    )
    np.testing.assert_allclose(gradient[rows], selected, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(gradient[jnp.array([1, 3, 4])], 0.0)


def test_jit_and_gradient_check():
    student, teacher = logits(0), teacher_with(SOME)
    np.testing.assert_allclose(
        jax.jit(mean_push)(student, teacher), mean_push(student, teacher), rtol=1e-6
    )
    check_grads(
        lambda z: mean_push(z, teacher), (student,), 1, ["rev"], eps=1e-2, atol=1e-3, rtol=1e-2
    )


def test_the_clean_teacher_is_a_constant():
    gradient = jax.grad(mean_push, argnums=1)(logits(0), teacher_with(SOME))
    np.testing.assert_array_equal(gradient, 0.0)


def test_nothing_misclassified_gives_zero_and_no_gradient():
    value, gradient = jax.jit(jax.value_and_grad(mean_push))(logits(0), teacher_with([False] * 6))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_everything_misclassified_is_the_plain_mean():
    student, teacher = logits(0), teacher_with([True] * 6)
    want = jnp.mean(losses.kl_divergence(student, teacher, 1.0, 5.0)) / 3
    np.testing.assert_allclose(mean_push(student, teacher), want, rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_poisoned_selected_row_drops_the_term_without_poisoning_gradients(bad, side):
    student, teacher = logits(0), teacher_with(SOME)
    if side == "student":
        student = student.at[2, 1].set(bad)
    else:
        teacher = teacher.at[2, 1].set(bad)
    value, gradient = jax.value_and_grad(mean_push)(student, teacher)
    _, wrong = losses.push_loss(student, teacher, LABELS)
    if wrong[2]:
        assert value == 0.0
        np.testing.assert_array_equal(gradient, 0.0)
    else:  # the poisoned entry made the teacher name the label
        assert value > 0.0 and np.all(np.isfinite(gradient))


def test_a_poisoned_row_that_is_not_selected_does_not_matter():
    student, teacher = logits(0), teacher_with(SOME)
    value, gradient = jax.value_and_grad(mean_push)(student.at[1, 0].set(math.nan), teacher)
    want, want_gradient = jax.value_and_grad(mean_push)(student, teacher)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-6, atol=1e-9)


def reference_scale(l1, l2, l3):
    """The original's arithmetic: Python logarithms of float32 values."""
    l1, l2, l3 = (float(np.float32(v)) or 1e-7 for v in (l1, l2, l3))
    low = min(math.floor(math.log10(abs(l1))), math.floor(math.log10(abs(l2))))
    return np.float32(10.0 ** (low - math.floor(math.log10(abs(l3)))))


@pytest.mark.parametrize(
    "l1, l2, l3, want",
    [
        (0.05, 0.03, 0.101, 0.1),
        (0.05, 0.03, 0.0999, 1.0),
        (0.0999, 0.2, 0.3, 0.1),
        (0.1001, 0.2, 0.3, 1.0),
        (0.0, 0.2, 0.3, 1e-6),
        (0.2, 0.3, 0.0, 1e6),
        (0.0, 0.0, 0.0, 1.0),
        (-0.05, 0.3, 0.2, 0.1),
    ],
)
def test_decade_scale(l1, l2, l3, want):
    assert losses.decade_scale(l1, l2, l3) == np.float32(want)
    assert reference_scale(l1, l2, l3) == np.float32(want)


def test_decade_scale_is_exact_next_to_every_power_of_ten():
    borders = [np.float32(10.0**k) for k in range(-12, 8)]
    values = np.array(
        [v for b in borders for v in (np.nextafter(b, 0, dtype=np.float32), b,
                                      np.nextafter(b, np.float32(np.inf)))], np.float32
    )  # fmt: skip
    scale = jax.jit(jax.vmap(lambda v: losses.decade_scale(v, 10.0, 1.0)))(values)
    want = [reference_scale(v, 10.0, 1.0) for v in values]
    np.testing.assert_array_equal(scale, want)
    scale = jax.jit(jax.vmap(lambda v: losses.decade_scale(1.0, 1.0, v)))(values)
    np.testing.assert_array_equal(scale, [reference_scale(1.0, 1.0, v) for v in values])


@pytest.mark.parametrize("scale", [losses.decade_scale, losses.continuous_scale])
def test_scales_have_no_gradient_and_are_zero_when_a_loss_is_not_finite(scale):
    gradients = jax.grad(lambda l1, l2, l3: scale(l1, l2, l3), (0, 1, 2))(0.05, 0.03, 0.2)
    assert all(g == 0.0 for g in gradients)
    for bad in (math.nan, math.inf):
        assert scale(0.1, 0.1, bad) == 0.0
        assert scale(bad, 0.1, 0.1) == 0.0


def test_continuous_scale():
    np.testing.assert_allclose(losses.continuous_scale(0.05, 0.03, 0.2), 0.15, rtol=1e-6)
    np.testing.assert_allclose(losses.continuous_scale(0.05, 0.03, 0.2, 2.0), 0.3, rtol=1e-6)
    assert losses.continuous_scale(1.0, 1.0, 0.0, max_scale=7.0) == 7.0


def test_bounded_push():
    student, teacher = jnp.log(jnp.array([[1.0, 3.0], [1.0, 3.0]])), jnp.array([[0.0, 1.0]] * 2)
    value = losses.bounded_push(student, teacher, jnp.array([True, False]), 1.0)
    np.testing.assert_allclose(value, [0.75, 0.0], rtol=1e-6)
    mask = jnp.array([True, False])
    poisoned = student.at[1, 0].set(jnp.nan)
    loss = lambda z: jnp.mean(losses.bounded_push(z, teacher, mask))  # noqa: E731
    gradient = jax.grad(loss)(poisoned)
    assert np.all(np.isfinite(gradient)) and np.all(gradient[1] == 0) and gradient[0, 1] > 0
    check_grads(loss, (student,), 1, ["rev"], eps=1e-2, atol=1e-3, rtol=1e-2)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(6, 3\).*\(6, 4\)"):
        losses.push_loss(logits(0), logits(1, (6, 4)), LABELS)
    with pytest.raises(ValueError, match="not one-hot"):
        losses.push_loss(logits(0), logits(1), jnp.zeros((6, 3), jnp.int32))
