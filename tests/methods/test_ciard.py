"""CIARD's step: what each network is allowed to change, every option, the edge cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import SHAPE, networks

from ard_jax import attacks, methods, optim
from ard_jax.methods import ciard
from ard_jax.methods.ciard_config import CiardConfig


def parts(steps=2):
    nets = networks()
    return methods.Parts(
        student=nets[0],
        student_optim=optim.make(optim.OptimConfig(), 10),
        attack=attacks.make("ciard_train", eps=0.2, steps=steps),
        teachers={"robust": nets[1], "clean": nets[2]},
        teacher_optims={"robust": optim.make(optim.OptimConfig(lr=0.01, momentum=0.1), 10)},
        epochs=10,
    )


def batch(epoch=1, size=12):
    key = jax.random.key(3)
    return {
        "image": jax.random.uniform(key, (size, *SHAPE)),
        "label": jnp.arange(size, dtype=jnp.int32) % 10,
        "epoch": jnp.asarray(epoch, jnp.int32),
    }


def start(method, p):
    keys = iter(jax.random.split(jax.random.key(0), 3))
    student = p.student.init(next(keys))
    return method.init(student, {r: b.init(next(keys)) for r, b in p.teachers.items()})


def changed(before, after):
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any(bool(jnp.any(a != b)) for a, b in pairs)


@functools.cache
def one_step():
    """State before a step, after one in epoch 1, after one in epoch 2, when the teacher is trained."""
    p = parts()
    method = methods.create("ciard", p, itt_start=2)
    state, step = start(method, p), jax.jit(method.step)
    return state, *(step(state, batch(epoch), jax.random.key(1))[0] for epoch in (1, 2))


def test_who_changes_before_and_after_the_teacher_is_trained():
    old, new, late = one_step()
    assert changed(old.student.params, new.student.params)
    assert changed(old.student.batch_stats, new.student.batch_stats)
    assert not changed(old.teachers["robust"].params, new.teachers["robust"].params)
    assert not changed(old.teachers["robust"].opt_state, new.teachers["robust"].opt_state)
    assert changed(old.teachers["robust"].batch_stats, new.teachers["robust"].batch_stats)
    assert changed(old.teachers["robust"].params, late.teachers["robust"].params)
    for after in (new, late):
        assert not changed(old.teachers["clean"].variables, after.teachers["clean"].variables)


def test_teacher_is_trained_at_every_kth_step():
    p = parts()
    method = methods.create("ciard", p, itt_start=1, itt_every=3)
    state, moved = start(method, p), []
    step = jax.jit(method.step)
    for _ in range(4):
        new, _ = step(state, batch(), jax.random.key(1))
        moved.append(changed(state.teachers["robust"].params, new.teachers["robust"].params))
        state = new.replace(step=new.step + 1)
    assert moved == [True, False, False, True]


def test_the_students_update_does_not_depend_on_training_the_teacher():
    _, without, with_training = one_step()
    assert not changed(without.student, with_training.student)


def test_student_statistics_are_two_updates_clean_then_adversarial():
    """r <- 0.81 r + 0.09 clean + 0.10 adversarial, with the batch moments of the first layer."""
    p = parts()
    method = methods.create("ciard", p)
    state, b = start(method, p), batch()
    config = CiardConfig()
    adversarial = ciard.student_attack(config, p, state, b, jax.random.key(1))[0].images
    new, _ = method.step(state, b, jax.random.key(1))
    one = {"params": state.student.params, "batch_stats": state.student.batch_stats}
    moments = []
    for images in (b["image"], adversarial):
        _, stats = p.student.apply(one, images, True)
        moments.append(jax.tree.map(lambda s, r: (s - 0.9 * r) / 0.1, stats, one["batch_stats"]))
    expected = jax.tree.map(
        lambda r, c, a: 0.81 * r + 0.09 * c + 0.1 * a, one["batch_stats"], *moments
    )
    for ours, theirs in zip(
        *map(jax.tree.leaves, (new.student.batch_stats, expected)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-5)


OPTIONS = [
    {"itt_anchor": "ema"},
    {"itt_anchor": "ce_kl"},
    {"forward_order": "adversarial_first"},
    {"branch_weights": "nlb"},
    {"temp_balance": "off"},
    {"temp_decay": "per_epoch"},
    {"push": False},
    {"push_temperature": "both"},
    {"push_scale": "continuous"},
    {"push_scale": "fixed", "push_lambda": 0.1},
    {"push_scale": "bounded", "push_lambda": 0.05},
    {"push_scale": "bounded", "push_warmup": 0},
    {"kl_reduction": "batchmean"},
    {"kl_scale": 10.0},
    {"clean_weight": 0.5},
    {"r_label_bn": "eval"},
    {"r_clean_forward": "keep"},
    {"decay_epochs": ()},
]


def three_steps(epoch, **options):
    p = parts()
    method = methods.create("ciard", p, **({"itt_start": 2} | options))
    state, step = start(method, p), jax.jit(method.step)
    # A weakly typed array in the first state would make the step compile twice: the second has none.
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    for i in range(3):
        state, metrics = step(state, batch(epoch), jax.random.key(i))
        state = state.replace(step=state.step + 1)
        assert all(np.isfinite(v) for v in jax.device_get(metrics).values())
    return state


three_plain_steps = functools.cache(three_steps)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_does_something_and_stays_finite(options):
    # Epoch 216 lies past the first decay, where temp_decay and decay_epochs matter.
    epoch = 10 if "temp_balance" in options else 216
    ours, theirs = three_steps(epoch, **options), three_plain_steps(epoch)
    same_keys = {k: theirs.method[k] for k in theirs.method}
    assert (
        changed(ours.student, theirs.student)
        or changed(ours.teachers["robust"], theirs.teachers["robust"])
        or changed({k: ours.method[k] for k in same_keys}, same_keys)
    )


def test_options_are_all_tested():
    fields = set(CiardConfig.model_fields)
    numbers = {"itt_start", "itt_every", "itt_ema_decay", "itt_kl_weight", "weight_rate", "temp_rate",
               "push_t", "kl_eps"}  # fmt: skip
    assert fields == set().union(*OPTIONS) | numbers


@pytest.mark.parametrize("push_scale", ["decade", "continuous", "fixed", "bounded"])
@pytest.mark.parametrize("wrong", [0, 1, 12])
def test_number_of_misclassified_samples(push_scale, wrong):
    """None, one, all: values and gradients finite; with none the push is exactly absent."""
    labels = jnp.arange(12, dtype=jnp.int32) % 10
    target = 8.0 * jax.nn.one_hot(jnp.where(jnp.arange(12) < wrong, labels + 1, labels) % 10, 10)
    config = CiardConfig(push_scale=push_scale)
    z = jax.random.normal(jax.random.key(0), (12, 10))

    def term(z):
        robust = 5.0 * jax.nn.one_hot(labels, 10)
        l1, l2 = jnp.asarray(0.05), jnp.asarray(0.03)
        soft = ciard.Soft(robust, target, target)
        value, l3, scale, n = ciard.push_term(config, l1, l2, z, soft, labels, 90.0)
        return value, (l3, scale, n)

    (value, (l3, scale, n)), gradient = jax.value_and_grad(term, has_aux=True)(z)
    assert np.isfinite(value) and np.all(np.isfinite(gradient)) and n == wrong
    if wrong == 0:
        assert value == 0 and l3 == 0 and not np.any(gradient)
    else:
        assert value != 0 and np.any(gradient)
    if wrong == 0 and push_scale != "bounded":
        assert scale == 0


def test_sharper_clean_teacher_raises_its_temperature():
    config, memory = CiardConfig(), {"temp_adv": jnp.ones(()), "temp_nat": jnp.ones(())}
    soft, sharp = jnp.eye(4, 10), 4 * jnp.eye(4, 10)
    logits = ciard.Soft(robust_adv=soft, clean_nat=sharp, clean_adv=sharp)
    after, h_adv, h_nat = ciard.balance(config, memory, logits, 0.1, 0.1, jnp.asarray(0), 1)
    assert h_adv < h_nat < 0
    assert float(after["temp_nat"]) == pytest.approx(1.001) and float(after["temp_adv"]) == 1.0


@pytest.mark.parametrize(("epoch", "scale"), [(1, 0.1), (5, 0.5), (10, 1.0), (30, 1.0)])
def test_a_bounded_push_grows_over_its_first_epochs(epoch, scale):
    labels = jnp.arange(12, dtype=jnp.int32) % 10
    wrong, right = (8.0 * jax.nn.one_hot((labels + i) % 10, 10) for i in (1, 0))
    z = jax.random.normal(jax.random.key(0), (12, 10))

    def term(**options):
        config = CiardConfig(push_scale="bounded", **options)
        one = jnp.asarray(1.0)
        return ciard.push_term(config, one, one, z, ciard.Soft(right, wrong, wrong), labels, epoch)

    value, _, ramp, _ = term(push_warmup=10)
    whole = term(push_warmup=0)[0]
    assert whole > 0 and float(ramp) == pytest.approx(scale)
    assert float(value) == pytest.approx(scale * float(whole))


@pytest.mark.parametrize(
    ("decay", "rates"), [("freeze", [1, 0, 0, 0]), ("per_epoch", [1, 1, 0.1, 0.01])]
)
def test_temperatures_move_less_from_the_decay_epochs_on(decay, rates):
    """Frozen from the first of them on; or a tenth after each."""
    config = CiardConfig(temp_decay=decay, decay_epochs=(3, 5))
    soft = ciard.Soft(*(i * jnp.eye(10)[:8] for i in (1.0, 5.0, 9.0)))
    memory, one = {"temp_adv": jnp.full((), 2.0), "temp_nat": jnp.full((), 2.0)}, jnp.asarray(1.0)

    def moved(epoch):
        new = ciard.balance(config, memory, soft, one, one, jnp.asarray(7), jnp.asarray(epoch))[0]
        return float(new["temp_adv"] - 2)

    whole = moved(1)
    assert abs(whole) > 1e-5
    np.testing.assert_allclose([moved(e) / whole for e in (2, 3, 4, 6)], rates, atol=1e-2)
