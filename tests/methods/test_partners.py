"""LBGAT and PeerAiD: what their second network learns from, and what moves its statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import batch, network

from ard_jax import attacks, losses, methods, optim

# Method -> (attack, role of its partner).
CASES = {"lbgat": ("trades_train", "guide"), "peeraid": ("rslad_train", "peer")}


def parts(name, **fields):
    attack, role = CASES[name]
    return methods.Parts(
        student=network(8),
        student_optim=optim.make(optim.OptimConfig(lr=0.05), 10),
        teachers={role: network(12)},
        **{"attack": attacks.make(attack, eps=0.1, steps=3)} | fields,
    )


def start(method, p):
    role = method.teachers[0]
    given = {role: p.teachers[role].init(jax.random.key(1))}
    return method.init(p.student.init(jax.random.key(0)), given)


@functools.cache
def one_step(name, **options):
    """(parts, state before, state after, metrics)."""
    p = parts(name)
    method = methods.create(name, p, **options)
    state = start(method, p)
    return p, state, *jax.jit(method.step)(state, batch(), jax.random.key(1))


def adversarial_images(p, state):
    predict = lambda x: p.student.apply(state.student.variables, x, False)[0]  # noqa: E731
    given = {}
    if p.attack.needs_teacher:
        peer = p.teachers["peer"].apply(state.teachers["peer"].variables, batch()["image"], False)
        given["teacher_logits"] = peer[0]
    b = batch()
    return p.attack.run(predict, b["image"], b["label"], jax.random.key(1), unroll=1, **given)


def moved(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.abs(x - y).max()) for x, y in pairs)


@pytest.mark.parametrize("name", CASES)
def test_loss_falls_on_one_batch_and_the_partner_learns_too(name):
    p, role = parts(name), CASES[name][1]
    method = methods.create(name, p)
    state, step, seen = start(method, p), jax.jit(method.step), []
    for i in range(30):
        state, metrics = step(state, batch(), jax.random.key(i))
        seen.append(jax.device_get(metrics))
    for key in ("loss", "loss_guide" if name == "lbgat" else "loss_peer"):
        assert np.mean([m[key] for m in seen[-5:]]) < 0.8 * np.mean([m[key] for m in seen[:5]])
    assert seen[-1][f"{role}_accuracy"] > seen[0][f"{role}_accuracy"]


@pytest.mark.parametrize("name", CASES)
def test_statistics_are_those_of_the_passes(name):
    """LBGAT runs S(x'), S(x) and G(x) in train mode, PeerAiD S(x') twice, S(x) and P(x')."""
    p, old, new, _ = one_step(name)
    role, x, adversarial = CASES[name][1], batch()["image"], adversarial_images(p, old)
    times, of_partner = (1, x) if name == "lbgat" else (2, adversarial)
    for net, before, after, inputs in (
        (p.student, old.student, new.student, (*[adversarial] * times, x)),
        (p.teachers[role], old.teachers[role], new.teachers[role], (of_partner,)),
    ):
        stats = before.batch_stats
        for images in inputs:
            variables = {"params": before.params, "batch_stats": stats}
            _, stats = net.apply(variables, images, True)
        for ours, theirs in zip(*map(jax.tree.leaves, (after.batch_stats, stats)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_guide_is_moved_by_the_squared_error():
    """Its gradient is that of CE alone with the student's logits out of reach."""
    p, old, new, _ = one_step("lbgat", beta=0.0)
    x, guide = batch()["image"], old.teachers["guide"]
    adversarial = adversarial_images(p, old)
    z_adv = p.student.apply(old.student.variables, adversarial, True)[0]

    def loss(params, with_error):
        variables = {"params": params, "batch_stats": guide.batch_stats}
        z = p.teachers["guide"].apply(variables, x, True)[0]
        ce = jnp.mean(losses.cross_entropy(z, batch()["label"]))
        return ce + with_error * jnp.mean(jnp.square(z_adv - z))

    def updated(with_error):
        gradient = jax.grad(loss)(guide.params, with_error)
        return jax.tree.map(lambda w, g: w - 0.05 * (g + 2e-4 * w), guide.params, gradient)

    assert moved(new.teachers["guide"].params, updated(1.0)) < 1e-6
    assert moved(new.teachers["guide"].params, updated(0.0)) > 1e-4


def test_rate_of_the_peer_is_a_multiple_of_the_students():
    """Of the first step, whose momentum is empty."""
    (_, old, once, _), (_, _, thrice, metrics) = (
        one_step("peeraid"),
        one_step("peeraid", peer_rate=3.0),
    )
    change = lambda new: jax.tree.map(  # noqa: E731
        jnp.subtract, new.teachers["peer"].params, old.teachers["peer"].params
    )
    assert moved(change(thrice), jax.tree.map(lambda d: 3 * d, change(once))) < 1e-6
    assert moved(thrice.student.params, once.student.params) == 0
    assert float(metrics["lr_peer"]) == pytest.approx(3 * float(metrics["lr"]))


def test_kl_scale_is_a_factor_of_every_kl_term():
    with_kl, scaled = one_step("peeraid")[3], one_step("peeraid", kl_scale=2.0)[3]
    ce = one_step("peeraid", kl_scale=0.0)[3]
    for key in ("loss_peer", "loss_student"):
        kl = float(with_kl[key] - ce[key])
        assert kl > 0
        # Differences of float32 numbers up to 4, each rounded to 2.4e-7.
        assert float(scaled[key] - ce[key]) == pytest.approx(2 * kl, abs=1e-6)


def test_an_attack_that_asks_a_network_at_every_step_asks_the_peer():
    p = parts("peeraid", attack=attacks.make("adaad_train", eps=0.1, steps=2))
    method = methods.create("peeraid", p)
    state = start(method, p)
    new, _ = jax.jit(method.step)(state, batch(), jax.random.key(1))
    assert moved(new.student.params, state.student.params) > 0
    with pytest.raises(ValueError, match="'adaad_train'.*needs a robust teacher"):
        methods.create("lbgat", parts("lbgat", attack=p.attack))
