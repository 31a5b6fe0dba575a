"""DARD's objective, its labels and presets, and the joined method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import batch, network

from ard_jax import attacks, losses, methods, optim
from ard_jax.methods import base, dard


def parts(roles=("robust",), **options):
    net = network()
    return methods.Parts(
        student=net,
        student_optim=optim.make(optim.OptimConfig(lr=0.05), 20),
        attack=attacks.make("dpgd", eps=0.1, steps=3),
        teachers={role: net for role in roles},
        # ciard_dard has two teachers and trains the robust one.
        teacher_optims={"robust": optim.make(optim.OptimConfig(lr=0.01), 20)}
        if "clean" in roles
        else {},
        epochs=20,
        **options,
    )


def start(method, p):
    keys = jax.random.split(jax.random.key(0), 3)
    teachers = {
        role: net.init(k) for k, (role, net) in zip(keys[1:], p.teachers.items(), strict=False)
    }
    return method.init(p.student.init(keys[0]), teachers)


def one_step(name="dard", p=None, b=None, **options):
    p = parts() if p is None else p
    method = methods.create(name, p, **options)
    state = start(method, p)
    return state, *method.step(state, batch() if b is None else b, jax.random.key(1))


def different(a, b):
    return any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def logits(seed, scale=3.0):
    return scale * jax.random.normal(jax.random.key(seed), (16, 10))


def test_equal_logits_have_no_distillation_loss():
    z = logits(0)
    q = dard.soft_labels(z, 3.0, "logits")
    for kd in ("kl", "dice"):
        value, gradient = jax.value_and_grad(dard.knowledge_distillation)(z, q, 3.0, kd)
        assert abs(value) < 2e-6 and np.max(np.abs(gradient)) < 1e-6


def test_gradient_of_the_kl_is_the_closed_form():
    z, q, t = logits(0), dard.soft_labels(logits(1), 3.0, "logits"), 3.0
    gradient = jax.grad(dard.knowledge_distillation)(z, q, t, "kl")
    np.testing.assert_allclose(gradient, t * (jax.nn.softmax(z / t) - q) / 16, atol=2e-7)


def test_value_of_the_kl_is_the_definition():
    z, g, t = logits(0), logits(1), 3.0
    q = np.asarray(jax.nn.softmax(g / t), np.float64)
    p = np.asarray(jax.nn.log_softmax(z / t), np.float64)
    expected = t**2 * np.mean(np.sum(q * (np.log(q) - p), -1))
    q = dard.soft_labels(g, t, "logits")
    assert dard.knowledge_distillation(z, q, t, "kl") == pytest.approx(expected, rel=1e-5)


def test_one_hot_labels_are_finite():
    q = dard.soft_labels(500.0 * jax.nn.one_hot(jnp.arange(16) % 10, 10), 1.0, "logits")
    assert float(q.min()) == 0.0
    value, gradient = jax.value_and_grad(dard.knowledge_distillation)(logits(0), q, 1.0, "kl")
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_without_soft_labels_it_is_cross_entropy():
    config = dard.DardConfig(a=0.0)
    z, labels = logits(0), jnp.arange(16) % 10
    value = dard.branch(config, z, dard.soft_labels(logits(1), 3.0, "logits"), labels)
    assert value == pytest.approx(float(jnp.mean(losses.cross_entropy(z, labels))), rel=1e-6)


@pytest.mark.parametrize(
    ("classes", "temperature", "top"), [(10, 3.0, 0.13425), (10, 1.0, 0.23197), (100, 1.0, 0.02672)]
)
def test_double_softmax_is_nearly_uniform(classes, temperature, top):
    sure = 200.0 * jnp.eye(classes)[:1]
    q = dard.soft_labels(sure, temperature, "double_softmax")
    assert float(q.max()) == pytest.approx(top, abs=5e-6)


def test_mean_of_equal_branches_is_the_branch():
    p = parts(roles=("robust",))
    loss_of = dard._student_loss(dard.DardConfig(), p, batch(), *[jnp.full((20, 10), 0.1)] * 2)
    z = jax.random.normal(jax.random.key(5), (20, 10))
    total, values = loss_of(z, z)
    assert total == pytest.approx(float(values["loss_clean"]), rel=1e-6)


def test_epoch_ramp_goes_from_clean_to_nearly_half():
    p, q = parts(), jnp.full((20, 10), 0.1)
    z_nat, z_adv = logits(0)[:10].repeat(2, 0), logits(1)[:10].repeat(2, 0)
    for epoch, weight in ((1, 0.0), (11, 0.25), (20, 19 / 40)):
        config = dard.DardConfig(objective="epoch_ramp")
        total, values = dard._student_loss(config, p, batch(epoch), q, q)(z_nat, z_adv)
        expected = (1 - weight) * values["loss_clean"] + weight * values["loss_robust"]
        assert total == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": "epoch_ramp"},
        {"objective": "fused"},
        {"tau": "double_softmax"},
        {"labels": "online"},
        {"kd": "dice"},
    ],
)
def test_student_learns_and_teacher_stays(options):
    p = parts()
    method = methods.create("dard", p, **options)
    state = start(method, p)
    step, values = jax.jit(method.step), []
    teacher = state.teachers["robust"].variables
    for i in range(20):
        state, metrics = step(state, batch(), jax.random.key(i))
        values.append(float(metrics["loss"]))
    assert np.mean(values[-3:]) < np.mean(values[:3])
    assert not different(teacher, state.teachers["robust"].variables)


def test_options_change_the_update():
    """At 10 epochs each option gives another student than the default does."""
    _, default, _ = one_step(b=batch(10))
    for options in (
        {"objective": "epoch_ramp"}, {"objective": "fused"}, {"tau": "double_softmax"},
        {"labels": "online"}, {"kd": "dice"}, {"a": 0.5}, {"temperature": 1.0},
    ):  # fmt: skip
        _, state, _ = one_step(b=batch(10), **options)
        assert different(default.student.params, state.student.params), options


def test_offline_labels_come_from_the_batch():
    p = parts()
    assert methods.create("dard", p).columns == ()
    method = methods.create("dard", p, labels="offline")
    assert method.columns == ("teacher_nat", "teacher_adv")
    state, b = start(method, p), batch()
    attacked = base.attack(p, state, b, jax.random.key(1)).images
    teacher = {
        "teacher_nat": base.teacher_logits(p, state, "robust", b["image"]),
        "teacher_adv": base.teacher_logits(p, state, "robust", attacked),
    }
    same, _ = method.step(state, b | teacher, jax.random.key(1))
    online, _ = methods.create("dard", p).step(state, b, jax.random.key(1))
    for x, y in zip(*map(jax.tree.leaves, (same.student, online.student)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    swapped = {"teacher_nat": teacher["teacher_adv"], "teacher_adv": teacher["teacher_nat"]}
    other, _ = method.step(state, b | swapped, jax.random.key(1))
    assert different(other.student.params, online.student.params)


def test_train_mode_attack_keeps_or_discards_statistics():
    stats = {}
    for mode, kept in (("eval", "discard"), ("train", "discard"), ("train", "keep")):
        p = parts(attack_bn=mode, attack_bn_stats=kept)
        _, state, _ = one_step(p=p)
        stats[mode, kept] = state.student.batch_stats
    assert different(stats["train", "discard"], stats["train", "keep"])
    assert different(stats["eval", "discard"], stats["train", "keep"])


def test_kept_statistics_are_those_of_three_attack_passes_and_two_more():
    p = parts(attack_bn="train", attack_bn_stats="keep")
    before, state, _ = one_step(p=p)
    net, params, stats = p.student, before.student.params, before.student.batch_stats
    b, x = batch(), batch()["image"]

    def objective(z, stats, i):
        logits, after = net.apply({"params": params, "batch_stats": stats}, z, True)
        return jnp.sum(losses.dpgd_objective(logits, b["label"], i / 6)), after

    for i in range(3):
        gradient, stats = jax.grad(objective, has_aux=True)(x, stats, i)
        x = jnp.clip(x + 0.025 * jnp.sign(gradient), b["image"] - 0.1, b["image"] + 0.1)
        x = jnp.clip(x, 0, 1)
    for images in (b["image"], x):
        stats = net.apply({"params": params, "batch_stats": stats}, images, True)[1]
    for ours, theirs in zip(*map(jax.tree.leaves, (state.student.batch_stats, stats)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_joined_method_trains_robust_teacher_and_leaves_the_clean_one():
    p = parts(roles=("robust", "clean"))
    method = methods.create("ciard_dard", p, itt_start=2)
    state = start(method, p)
    for epoch, moves in ((1, False), (2, True)):
        new, metrics = method.step(state, batch(epoch), jax.random.key(1))
        assert different(state.teachers["robust"].params, new.teachers["robust"].params) == moves
        assert not different(state.teachers["clean"].variables, new.teachers["clean"].variables)
        assert different(state.student.params, new.student.params)
        assert {"loss_robust", "loss_clean", "loss_push", "push_scale"} <= set(metrics)


def test_joined_method_without_push_and_clean_teacher_is_dard():
    """On the same examples: one scalar objective, of which DARD's is a part."""
    p = parts(roles=("robust", "clean"))
    options = {"push": False, "clean_weight": 0.0, "forward_order": "adversarial_first"}
    method = methods.create("ciard_dard", p, **options)
    state, b = start(method, p), batch()
    joined, metrics = method.step(state, b, jax.random.key(1))
    only = parts()
    plain = methods.create("dard", only)
    dard_state = plain.init(state.student.variables, {"robust": state.teachers["robust"].variables})
    expected, dard_metrics = plain.step(dard_state, b, jax.random.key(1))
    assert metrics["loss"] == pytest.approx(float(dard_metrics["loss"]), rel=1e-5)
    pairs = zip(
        *map(jax.tree.leaves, (joined.student.params, expected.student.params)), strict=True
    )
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
