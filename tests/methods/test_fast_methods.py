"""FGSM-RS, N-FGSM, FAT, and IKL and GKL: what can be said of them by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import CLASSES, batch, network

from ard_jax import attacks, losses, methods, optim
from ard_jax.methods import base, dkl
from ard_jax.models.bundle import ModelBundle

SCHEDULES = {"fgsm_rs": "cyclic", "n_fgsm": "cyclic"}
EPOCHS, STEPS_PER_EPOCH = 4, 3


def parts(name, attack=None, **fields):
    sgd = optim.OptimConfig(lr=0.05, schedule=SCHEDULES.get(name, "constant"))
    return methods.Parts(
        student=network(),
        student_optim=optim.make(sgd, EPOCHS, STEPS_PER_EPOCH),
        attack=attacks.make(attack or f"{name}_train", eps=0.1),
        epochs=EPOCHS,
        steps_per_epoch=STEPS_PER_EPOCH,
        **fields,
    )


@functools.cache
def compiled(name, options=(), fields=()):
    """(parts, state at the start, jitted step)."""
    p = parts(name, **dict(fields))
    method = methods.create(name, p, **dict(options))
    return p, method.init(p.student.init(jax.random.key(0)), {}), jax.jit(method.step)


def run(name, epochs, options=(), fields=(), data=batch):
    """(states, metrics) of one step in each of these epochs, the state at the start first."""
    _, state, step = compiled(name, options, fields)
    states, metrics = [state], []
    for i, epoch in enumerate(epochs):
        state, values = step(state, data(epoch), jax.random.key(i))
        state = state.replace(step=state.step + 1)
        states.append(state)
        metrics.append({k: float(v) for k, v in values.items()})
    return states, metrics


@pytest.mark.parametrize("name", ["fgsm_rs", "n_fgsm"])
def test_the_rate_changes_at_every_update_and_is_zero_at_the_first(name):
    states, metrics = run(name, [i // STEPS_PER_EPOCH + 1 for i in range(12)])
    want = 0.05 * np.array([*range(7), *range(5, 0, -1)]) / 6
    np.testing.assert_allclose([m["lr"] for m in metrics], want, atol=1e-7)
    first, second, third = (s.student.params for s in states[:3])
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(second["fc"]["kernel"] != third["fc"]["kernel"])


@pytest.mark.parametrize("name", ["fgsm_rs", "n_fgsm"])
def test_train_mode_attack_moves_the_statistics_at_its_start(name):
    """By the pass at x + noise, then by S(x'): momentum 0.9 applied twice."""
    fields = (("attack_bn", "train"), ("attack_bn_stats", "keep"))
    p, state, step = compiled(name, fields=fields)
    b, noise = batch(), 0.05 * jnp.sign(batch()["image"] - 0.3)
    new, _ = step(state, b | {"start_noise": noise}, jax.random.key(0))
    variables, stats = state.student.variables, state.student.batch_stats
    start = b["image"] + noise

    def loss(x):
        logits, after = p.student.apply(variables, x, True)
        return jnp.sum(losses.cross_entropy(logits, b["label"])), after

    gradient, stats = jax.grad(loss, has_aux=True)(start)
    moved = start + p.attack.step_size * jnp.sign(gradient)
    if name == "fgsm_rs":
        moved = jnp.clip(moved, b["image"] - 0.1, b["image"] + 0.1)
    _, stats = p.student.apply(
        {"params": variables["params"], "batch_stats": stats}, jnp.clip(moved, 0, 1), True
    )
    for ours, want in zip(*map(jax.tree.leaves, (new.student.batch_stats, stats)), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-6)


def test_fat_is_patient_from_its_epochs_on():
    _, metrics = run("fat", [1, 2, 3, 4], options=(("tau_epochs", (2, 4)),))
    assert [m["tau"] for m in metrics] == [0, 1, 1, 2]
    assert run("fat", [4], options=(("tau_epochs", ()),))[1][0]["tau"] == 0


def test_fat_trains_on_images_that_stopped():
    """At the start nearly all are wrong, so that they stay where they began; with more patience they move."""
    losses_of = {
        epochs: run("fat", [4], options=(("tau_epochs", epochs),))[1][0]["loss"]
        for epochs in ((), (1, 2, 3, 4))
    }
    assert losses_of[()] < losses_of[1, 2, 3, 4]
    p, state, step = compiled("fat", (("tau_epochs", ()),))
    b = batch()
    z = p.student.apply(state.student.variables, b["image"], False)[0]
    wrong = jnp.argmax(z, -1) != b["label"]
    assert 0 < int(wrong.sum()) < len(wrong)
    quiet = attacks.make("fat_train", eps=0.1, start="none", sigma=0.0)
    still = methods.Parts(student=p.student, student_optim=p.student_optim, attack=quiet)
    moved = base.attack(still, state, b, jax.random.key(0), patience=0).images
    same = np.all(np.asarray(moved == b["image"]), axis=(1, 2, 3))
    np.testing.assert_array_equal(same, wrong)


def test_fat_refuses_an_attack_of_equal_steps():
    with pytest.raises(ValueError, match="'sat_train' takes as many steps.*'fat_train'"):
        methods.create("fat", parts("fat", "sat_train"))


# Free: m updates on one batch, d kept over them and over the batches


@functools.cache
def free(replays=3, schedule="constant", size=20):
    p = dataclasses.replace(
        parts("free", "fgsm"),
        student_optim=optim.make(
            optim.OptimConfig(lr=0.05, schedule=schedule), EPOCHS, STEPS_PER_EPOCH * replays
        ),
        batch_size=size,
    )
    method = methods.create("free", p, replays=replays)
    return p, method.init(p.student.init(jax.random.key(0)), {}), jax.jit(method.step)


def test_free_by_hand():
    """Two batches, the second smaller, replay by replay: one gradient moves d and then the weights."""
    p, state, step = free()
    delta, s = np.zeros((20, *p.student.image_shape), np.float32), state.student

    @jax.jit
    def replay(s, d, b):
        def loss(params, d):
            variables = {"params": params, "batch_stats": s.batch_stats}
            z, after = p.student.apply(variables, b["image"] + d, True)
            return jnp.mean(losses.cross_entropy(z, b["label"])), after

        gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
        (value, stats), (of_params, of_d) = gradient(s.params, d)
        params, opt = p.student_optim.update(of_params, s.opt_state, s.params, 0.05)
        return s.replace(params=params, batch_stats=stats, opt_state=opt), value, of_d

    for size in (20, 12):
        b, seen = batch(size=size), []
        x = np.asarray(b["image"])
        for _ in range(3):
            s, value, of_d = replay(s, delta[:size], b)
            seen.append(float(value))
            moved = np.clip(delta[:size] + np.float32(0.1) * np.sign(of_d), -0.1, 0.1)
            delta[:size] = np.clip(moved, -x, 1 - x)
        state, metrics = step(state, b, jax.random.key(0))
        assert float(metrics["loss"]) == pytest.approx(np.mean(seen), rel=1e-4)
        # Where a gradient is at the level of rounding its sign is anything's.
        same = np.abs(state.method["delta"] - delta) < 1e-6
        assert same.mean() > 0.99
    for ours, want in zip(*map(jax.tree.leaves, (state.student, s)), strict=True):
        np.testing.assert_allclose(ours, want, rtol=2e-3, atol=2e-4)
    assert np.any(delta[12:]) and np.abs(delta).max() <= 0.1 + 1e-6


def test_the_rate_of_free_changes_at_every_replay():
    _, state, step = free(replays=2, schedule="cyclic")
    rates = []
    for _ in range(EPOCHS * STEPS_PER_EPOCH):
        state, metrics = step(state, batch(), jax.random.key(0))
        rates.append(float(metrics["lr"]))
    total = 2 * EPOCHS * STEPS_PER_EPOCH
    every = 0.05 * (1 - np.abs(2 * np.arange(total) / total - 1))
    np.testing.assert_allclose(rates, every.reshape(-1, 2).mean(1), atol=1e-7)
    assert int(state.student.opt_state.updates) == total
    assert methods.updates_per_step("free", {"replays": 2}) == 2
    assert methods.updates_per_step("sat", {}) == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"batch_size": 0}, "keeps d over the batches: it needs Parts"),
        ({"awp": methods.Awp(0.01)}, "takes one gradient, and so no weight perturbation"),
        (
            {"attack": attacks.make("sat_train", eps=0.1)},
            "'sat_train' is not one step on CE from x",
        ),
        (
            {"attack": attacks.make("fgsm", eps=0.1, start="uniform")},
            "'fgsm' is not one step on CE",
        ),
    ],
)
def test_what_free_refuses(fields, told):
    with pytest.raises(ValueError, match=told):
        methods.create("free", dataclasses.replace(free()[0], **fields))
    _, state, step = free()
    with pytest.raises(ValueError, match="a batch of 21 images: method 'free' was made with 20"):
        step(state, batch(size=21), jax.random.key(0))


# IKL and GKL


def logits(seed):
    return 3 * jax.random.normal(jax.random.key(seed), (6, CLASSES))


def test_weighted_mse_is_the_sum_over_pairs():
    z, z_adv = logits(0), logits(1)
    weights = jax.random.uniform(jax.random.key(2), (6, CLASSES))
    change = np.float64(z - z_adv)
    pairs = change[:, :, None] - change[:, None, :]
    w = np.float64(weights)
    want = np.sum(w[:, :, None] * w[:, None, :] * pairs**2, axis=(1, 2)) / 4
    np.testing.assert_allclose(losses.weighted_mse(z, z_adv, weights), want, rtol=1e-5)
    # It sees differences of logits alone, also where their common part is large.
    shifted = losses.weighted_mse(z + 1000.0, z_adv, weights)
    np.testing.assert_allclose(shifted, want, rtol=1e-3)


def test_weighted_mse_and_soft_cross_entropy_refuse_other_shapes():
    with pytest.raises(ValueError, match="weighted_mse: logits of shapes"):
        losses.weighted_mse(logits(0), logits(1)[:3], jnp.ones((6, CLASSES)))
    with pytest.raises(ValueError, match="class_weights have shape"):
        losses.weighted_mse(logits(0), logits(1), jnp.ones((CLASSES, CLASSES)))
    with pytest.raises(ValueError, match="soft_cross_entropy: logits of shapes"):
        losses.soft_cross_entropy(logits(0), logits(1)[:3])


def test_soft_cross_entropy_has_the_gradient_of_a_kl_with_a_fixed_target():
    z, z_adv = logits(0), logits(1)
    of_both = jax.grad(lambda *z: jnp.sum(losses.soft_cross_entropy(*z)), (0, 1))(z_adv, z)
    kl = jax.grad(lambda a: jnp.sum(losses.trades_kl(z, a)))(z_adv)
    np.testing.assert_allclose(of_both[0], kl, atol=1e-6)
    assert not np.any(of_both[1])


@pytest.mark.parametrize("gamma", [0.2, 1.0])
def test_with_uniform_class_means_both_forms_are_equal(gamma):
    means = jnp.full((6, CLASSES), 1 / CLASSES)
    gkl, ikl = (
        dkl.decoupled_kl(dkl.DklConfig(form=form, gamma=gamma), logits(0), logits(1), means)
        for form in ("gkl", "ikl")
    )
    np.testing.assert_allclose(gkl, ikl, rtol=1e-5)


def test_loss_of_dkl_is_the_sum_of_its_parts():
    for options in ((), (("form", "ikl"), ("alpha", 5.0), ("beta", 2.0))):
        _, (m,) = run("dkl", [2], options)
        given = dict(options)
        want = m["loss_ce"] + given.get("beta", 20) * m["loss_mse"]
        want += given.get("alpha", 4) * m["loss_soft_ce"]
        assert m["loss"] == pytest.approx(want, rel=1e-5)


def test_the_radius_of_dkl_grows_with_the_epoch():
    for options, parts_of_eps in (((), (0.25, 0.5, 1.0)), ((("eps_ramp", False),), (1, 1, 1))):
        p, state, _ = compiled("dkl", options)
        seen = []

        def apply(variables, images, train, p=p, seen=seen):
            if train:  # S(x'), S(x)
                jax.debug.callback(lambda x: seen.append(np.asarray(x)), images)
            return p.student.apply(variables, images, train)

        watched = methods.Parts(
            student=ModelBundle("watched", CLASSES, p.student.image_shape, "none", p.student.init, apply),
            student_optim=p.student_optim, attack=p.attack, epochs=EPOCHS,
            steps_per_epoch=STEPS_PER_EPOCH,
        )  # fmt: skip
        step = methods.create("dkl", watched, **dict(options)).step
        for epoch, part in zip((1, 2, 4), parts_of_eps, strict=True):
            seen.clear()
            step(state, batch(epoch), jax.random.key(0))
            jax.effects_barrier()
            assert np.abs(seen[0] - seen[1]).max() == pytest.approx(0.1 * part, rel=1e-4)


def test_class_means_change_at_the_end_of_an_epoch_only():
    two = lambda epoch: batch(epoch) | {"label": batch()["label"] % 2}  # noqa: E731
    states, _ = run("dkl", [1, 1, 1, 2], data=two)
    means = [np.asarray(s.method["class_means"]) for s in states]
    for early in means[:3]:
        np.testing.assert_allclose(early, 1 / CLASSES)
    np.testing.assert_allclose(means[3].sum(axis=1), 1.0, rtol=1e-5)
    assert np.all(np.abs(means[3][:2] - 1 / CLASSES).max(axis=1) > 1e-3)
    np.testing.assert_allclose(means[3][2:], 1 / CLASSES)  # of classes that did not occur
    np.testing.assert_array_equal(means[4], means[3])
    assert not np.any(states[3].method["class_sums"]) and np.any(states[4].method["class_sums"])


def test_class_means_by_hand():
    z, labels = logits(3), jnp.array([0, 1, 1, 3, 3, 3])
    before = jnp.eye(CLASSES)
    found = dkl.class_means(dkl.class_sums(z, labels, 2.0), before)
    p = jax.nn.softmax(z / 2.0)
    np.testing.assert_allclose(found[:2], [p[0], (p[1] + p[2]) / 2], rtol=1e-5)
    np.testing.assert_array_equal(found[4], before[4])


@pytest.mark.parametrize(
    ("options", "temperature"),
    [
        ({}, 1.0),
        ({"variant": "released"}, 4.0),
        ({"form": "ikl"}, 4.0),
        ({"variant": "released", "temperature": 2.0}, 2.0),
    ],
)
def test_temperature_of_the_class_means(options, temperature):
    _, state, step = compiled("dkl", tuple(options.items()))
    new, _ = step(state, batch(), jax.random.key(0))
    p, b = compiled("dkl")[0], batch()
    z = p.student.apply(state.student.variables, b["image"], True)[0]
    want = dkl.class_sums(z, b["label"], temperature)
    np.testing.assert_allclose(new.method["class_sums"], want, rtol=1e-4, atol=1e-6)


def test_dkl_refuses_an_attack_whose_radius_cannot_grow():
    with pytest.raises(ValueError, match="'apgd_ce' has a fixed radius.*eps_ramp=False"):
        methods.create("dkl", parts("dkl", "apgd_ce"))
    methods.create("dkl", parts("dkl", "apgd_ce"), eps_ramp=False)


# Consistency-AT


def test_jensen_shannon_by_hand():
    z, other = logits(0), logits(1)
    p, q = (np.float64(jax.nn.softmax(2 * a)) for a in (z, other))
    m = (p + q) / 2
    want = np.sum(p * np.log(p / m) + q * np.log(q / m), axis=1) / 2
    np.testing.assert_allclose(losses.jensen_shannon(z, other, 0.5), want, rtol=1e-4)
    np.testing.assert_allclose(losses.jensen_shannon(other, z, 0.5), want, rtol=1e-4)
    np.testing.assert_allclose(losses.jensen_shannon(z, z), 0.0, atol=1e-6)
    apart = losses.jensen_shannon(*(300 * jnp.eye(2)[None, i] for i in (0, 1)))
    np.testing.assert_allclose(apart, np.log(2), rtol=1e-5)  # finite where a probability is 0
    with pytest.raises(ValueError, match="temperature=0"):
        losses.jensen_shannon(z, other, 0)


def pairs(epoch):
    return batch(epoch) | {"view": batch()["image"][:, ::-1]}


def test_consistency_at_by_hand():
    """Both views attacked and passed in one batch of 2B, in any order of them."""
    p = parts("consistency_at", "sat_train")
    still = methods.Parts(
        student=p.student, student_optim=p.student_optim,
        attack=attacks.make("sat_train", eps=0.1, start="none"),
    )  # fmt: skip
    method = methods.create("consistency_at", still, weight=3.0)
    state, b = method.init(p.student.init(jax.random.key(0)), {}), pairs(1)
    new, m = jax.jit(method.step)(state, b, jax.random.key(0))
    images = jnp.concatenate([b["image"], b["view"]])
    labels = jnp.concatenate([b["label"]] * 2)
    predict = lambda x: p.student.apply(state.student.variables, x, False)[0]  # noqa: E731
    x_adv = still.attack.run(predict, images, labels, unroll=1)
    z, stats = p.student.apply(state.student.variables, x_adv, True)
    first, second = jnp.split(z, 2)
    ce = float(jnp.mean(losses.cross_entropy(z, labels)))
    js = float(jnp.mean(losses.jensen_shannon(first, second, 0.5)))
    assert js > 1e-4
    assert float(m["loss_ce"]) == pytest.approx(ce, rel=1e-5)
    assert float(m["loss_js"]) == pytest.approx(js, rel=1e-4)
    assert float(m["loss"]) == pytest.approx(ce + 3 * js, rel=1e-5)
    for ours, want in zip(*map(jax.tree.leaves, (new.student.batch_stats, stats)), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-6)
