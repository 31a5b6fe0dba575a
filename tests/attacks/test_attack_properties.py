"""What must hold for every attack: ball, range, determinism, no start, restarts, one program."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import attacks, losses
from ard_jax.attacks import threat_model

BATCH, SHAPE, CLASSES, EPS = 6, (5, 5, 3), 4, 0.1
PGD = [n for n in attacks.names() if isinstance(attacks.make(n), attacks.PgdAttack)]
LINF = PGD
L2 = (
    "fgsm", "bim", "pgd_sat", "pgd20", "tpgd", "ciard_train", "trades_train", "cw_inf", "rslad_train",
    "adaad_train", "score_train", "dpgd_strong", "dpgd_per_sample",
)  # fmt: skip
RANDOM = [n for n in PGD if attacks.make(n).start != "none"]


_RNG = np.random.default_rng(0)
_FIRST = _RNG.normal(size=(int(np.prod(SHAPE)), 16)).astype(np.float32) / 4
_SECOND = _RNG.normal(size=(16, CLASSES)).astype(np.float32)
_IMAGES = _RNG.uniform(size=(BATCH, *SHAPE)).astype(np.float32)
_IMAGES[0], _IMAGES[1] = 0.0, 1.0  # both ends of the range


def batch():
    return jnp.asarray(_IMAGES), jnp.arange(BATCH) % CLASSES


def predict(images):
    """A fixed two-layer net."""
    return jnp.tanh((images.reshape(images.shape[0], -1) - 0.5) @ _FIRST) @ _SECOND


def teacher(images):
    """Another fixed net, for the attacks that follow a teacher."""
    return jnp.sin((images.reshape(images.shape[0], -1) - 0.4) @ _FIRST) @ _SECOND[::-1]


TRACES = collections.Counter()


@functools.cache
def compiled(program, unroll):
    spec = attacks.PgdAttack("test", "test", eps=0.1, step_size=0.1, **dict(program))

    @jax.jit
    def call(images, labels, key, eps, step_size):
        TRACES[program] += 1
        return spec.run(
            predict, images, labels, key, eps=eps, step_size=step_size, unroll=unroll,
            teacher_logits=teacher(images), teacher=teacher,
        )  # fmt: skip

    return call


def run(spec, key=0, unroll=1):
    """The spec's result on the batch; specs with one program share its compilation."""
    call = compiled(spec.program, unroll)
    return np.asarray(call(*batch(), jax.random.key(key), spec.eps, spec.step_size))


@jax.jit
def _ce(images):
    return losses.cross_entropy(predict(images), batch()[1])


def ce(images):
    return np.asarray(_ce(images))


@pytest.mark.parametrize("name", LINF)
def test_linf_ball_and_range(name):
    x, x_adv = np.asarray(batch()[0]), run(attacks.make(name, eps=EPS))
    assert x_adv.dtype == np.float32 and x_adv.shape == x.shape
    assert np.max(np.abs(x_adv - x)) <= EPS + 1e-6
    assert x_adv.min() >= 0.0 and x_adv.max() <= 1.0
    assert np.max(np.abs(x_adv - x)) > EPS / 2  # it did something


@pytest.mark.parametrize("name", L2)
def test_l2_ball_and_range(name):
    x, x_adv = np.asarray(batch()[0]), run(attacks.make(name, eps=0.7, norm="l2"))
    length = np.sqrt(np.sum(np.square(x_adv - x), axis=(1, 2, 3)))
    assert np.max(length) <= 0.7 + 1e-6 and np.max(length) > 0.35
    assert x_adv.min() >= 0.0 and x_adv.max() <= 1.0


@pytest.mark.parametrize("name, norm, eps", [("pgd_sat", "linf", EPS), ("pgd_sat", "l2", 0.7),
                                             ("fgsm", "l2", 0.7), ("cw_inf", "linf", EPS)])  # fmt: skip
def test_untargeted_attacks_raise_the_loss_of_every_image(name, norm, eps):
    assert np.all(ce(run(attacks.make(name, eps, norm))) > ce(batch()[0]))


def test_targeted_attack_raises_the_probability_of_its_targets():
    images, labels = batch()
    targets = attacks.least_likely_class(predict(images), labels)
    assert np.all(targets != labels)
    x_adv = jax.jit(functools.partial(attacks.targeted_pgd, predict, eps=EPS, unroll=1))(
        images, labels, jax.random.key(0)
    )
    before, after = (losses.cross_entropy(predict(x), targets) for x in (images, x_adv))
    assert np.all(after < before)
    other = (labels + 1) % CLASSES
    x_other = attacks.targeted_pgd(
        predict, images, labels, jax.random.key(0), eps=EPS, targets=other, unroll=1
    )
    assert np.all(
        losses.cross_entropy(predict(x_other), other) < losses.cross_entropy(predict(images), other)
    )


def test_least_likely_class_excludes_the_label():
    logits = jnp.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    np.testing.assert_array_equal(attacks.least_likely_class(logits, jnp.array([0, 2])), [1, 0])


def test_l2_step_follows_the_normalised_gradient():
    images = jnp.full((2, *SHAPE), 0.5)
    slope = jnp.array([3.0, 0.0])[:, None, None, None]  # the second image has no gradient at all
    x_adv = attacks.pgd_loop(
        lambda x: jnp.sum(slope * x, (1, 2, 3)), images, images,
        eps=1.0, step_size=0.3, steps=2, norm="l2",
    )  # fmt: skip
    want = 0.5 + 0.6 / np.sqrt(np.prod(SHAPE))
    np.testing.assert_allclose(x_adv[0], np.full(SHAPE, want), rtol=1e-5)
    np.testing.assert_array_equal(x_adv[1], images[1])


@pytest.mark.parametrize("order, want", [("range_at_end", 0.02), ("ball_then_range", 0.0),
                                         ("range_then_ball", 0.0)])  # fmt: skip
def test_only_range_at_end_lets_iterates_leave_the_range(order, want):
    # From 0.02 the first step goes to -0.03, from where the way up leads back; at 0 it leads down.
    images = jnp.full((1, 1), 0.02)
    x_adv = attacks.pgd_loop(
        lambda x: -jnp.square(x[:, 0] + 0.001), images, images,
        eps=0.1, step_size=0.05, steps=2, order=order,
    )  # fmt: skip
    np.testing.assert_allclose(x_adv, [[want]], atol=1e-7)


@pytest.mark.parametrize("tiny", [1e-30, 1e30])
def test_l2_direction_of_extreme_gradients_has_unit_length(tiny):
    gradient = tiny * jax.random.normal(jax.random.key(0), (3, *SHAPE))
    np.testing.assert_allclose(
        threat_model.l2_norm(threat_model.ascent_direction(gradient, "l2")), 1.0, rtol=1e-5
    )


@pytest.mark.parametrize("name", RANDOM)
def test_same_key_same_result_other_key_another(name):
    spec = attacks.make(name, eps=EPS, steps=1, step_size=0.01)
    np.testing.assert_array_equal(run(spec, 5), run(spec, 5))
    assert np.any(run(spec, 5) != run(spec, 6))


@pytest.mark.parametrize("norm", threat_model.NORMS)
@pytest.mark.parametrize("order", threat_model.ORDERS)
def test_zero_steps_return_the_start(norm, order):
    x = batch()[0]
    found = attacks.pgd_loop(ce, x, x, eps=EPS, step_size=0.1, steps=0, norm=norm, order=order)
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("start", ["uniform", "gauss"])
def test_a_start_stays_in_ball_and_range(start):
    spec = attacks.make("ciard_train", eps=1e-3, steps=1, start=start)
    x = np.asarray(batch()[0])
    call = compiled(spec.program, 1)
    x_adv = np.asarray(call(*batch(), jax.random.key(0), spec.eps, 0.0))
    assert 0 < np.max(np.abs(x_adv - x)) <= 1e-3 + 1e-6
    assert x_adv.min() >= 0.0 and x_adv.max() <= 1.0


@pytest.mark.parametrize("norm", threat_model.NORMS)
def test_zero_radius_returns_the_images(norm):
    spec = attacks.make("pgd_sat", eps=0.0, norm=norm)
    np.testing.assert_allclose(run(spec), batch()[0], atol=1e-7)


def test_starts():
    images, key = jnp.full((200, *SHAPE), 0.5), jax.random.key(0)
    uniform = threat_model.random_start("uniform", key, images, 0.2) - images
    assert np.max(np.abs(uniform)) <= 0.2 + 1e-6
    np.testing.assert_allclose(np.std(uniform), 0.2 / np.sqrt(3), rtol=0.02)
    gauss = threat_model.random_start("gauss", key, images, 0.2, sigma=0.01) - images
    np.testing.assert_allclose(np.std(gauss), 0.01, rtol=0.02)
    length = threat_model.l2_norm(
        threat_model.random_start("uniform", key, images, 0.2, norm="l2") - images
    )
    assert np.max(length) <= 0.2 + 1e-6
    np.testing.assert_allclose(np.mean(length), 0.1, rtol=0.1)
    low = jnp.zeros((4, *SHAPE))
    assert np.min(threat_model.random_start("gauss", key, low, 0.2, clip=None)) < 0.0
    assert np.min(threat_model.random_start("gauss", key, low, 0.2, clip=(0.0, 1.0))) == 0.0


@pytest.mark.parametrize("name", ["pgd_sat", "dpgd_strong"])
@pytest.mark.parametrize("norm, eps", [("linf", 0.03), ("l2", 0.3)])
def test_more_restarts_are_never_weaker(name, norm, eps):
    labels = batch()[1]
    spec = attacks.make(name, eps=eps, norm=norm, steps=2, step_size=eps / 8)
    results = {r: run(dataclasses.replace(spec, restarts=r)) for r in (1, 4)}
    right = {r: np.asarray(jnp.argmax(predict(x), -1) == labels) for r, x in results.items()}
    assert not np.any(right[4] & ~right[1])  # what one restart broke stays broken
    same = right[4] == right[1]
    assert np.all(ce(results[4])[same] >= ce(results[1])[same] - 1e-6)
    assert np.any(ce(results[4]) > ce(results[1]) + 1e-6)


@pytest.mark.parametrize("name", ["pgd_sat", "cw_inf", "trades_train", "adaad_train", "dpgd"])
def test_loop_and_unrolled_loop_agree(name):
    spec = attacks.make(name, eps=EPS, steps=8)
    # XLA may fuse the two differently: a gradient at rounding level may change its sign.
    assert np.mean(np.abs(run(spec) - run(spec, unroll=True)) > 1e-6) <= 0.005


@pytest.mark.parametrize("name", ["pgd_sat", "trades_train", "fgsm", "rslad_train", "dpgd"])
def test_traced_radius_equals_static_radius(name):
    spec = attacks.make(name, eps=EPS)
    static = jax.jit(
        lambda x, y, k: spec.run(predict, x, y, k, unroll=1, teacher_logits=teacher(x))
    )
    differing = np.abs(static(*batch(), jax.random.key(0)) - run(spec)) > 1e-6
    assert np.mean(differing) <= 0.005


def test_equal_programs_compile_once():
    specs = [attacks.make(n, EPS) for n in ("pgd_sat", "pgd_trades", "pgd20")]
    specs += [attacks.make("pgd_sat", eps) for eps in (0.0, 0.02, 0.3)]
    results = [run(spec) for spec in specs]
    (program,) = {spec.program for spec in specs}
    assert TRACES[program] == 1
    for spec, x_adv in zip(specs, results, strict=True):
        assert np.max(np.abs(x_adv - _IMAGES)) <= spec.eps + 1e-6
    assert np.any(results[0] != results[1])


def test_the_result_is_a_constant_for_whoever_differentiates_through_it():
    images, labels = batch()

    def loss(scale):
        x_adv = attacks.pgd(
            lambda x: scale * predict(x), images, labels, jax.random.key(0), steps=2, unroll=1
        )
        return jnp.sum(x_adv) + 0.0 * scale

    assert jax.grad(loss)(1.5) == 0.0


def test_a_given_start_is_used_as_it_is():
    images, labels = batch()
    start = images + 0.03
    spec = attacks.make("ciard_train", eps=EPS, steps=1, step_size=0.01)
    x_adv = spec.run(predict, images, labels, start=start)
    step = np.asarray(x_adv - start)[2:]  # images 0 and 1 touch the range
    inside = (np.asarray(start)[2:] < 0.99) & (np.asarray(start)[2:] > 0.01)
    np.testing.assert_allclose(np.abs(step[inside]), 0.01, atol=1e-6)


def test_public_functions_are_the_registry_s_attacks():
    images, labels = batch()
    key = jax.random.key(4)
    pairs = {
        "fgsm": attacks.fgsm, "bim": attacks.bim, "pgd_sat": attacks.pgd, "cw_inf": attacks.cw_linf,
        "tpgd": attacks.targeted_pgd, "ciard_train": attacks.ciard_pgd, "dpgd": attacks.dpgd,
    }  # fmt: skip
    for name, function in pairs.items():
        got = jax.jit(functools.partial(function, predict, unroll=1))(images, labels, key)
        np.testing.assert_allclose(got, run(attacks.make(name), 4), atol=1e-6, err_msg=name)
    got = jax.jit(lambda x: attacks.trades_pgd(predict, x, None, key, unroll=1))(images)
    want = run(attacks.make("trades_train", eps=0.031), 4)
    assert np.mean(np.abs(got - want) > 1e-6) <= 0.005


@pytest.mark.multidevice
def test_a_sharded_batch_gives_the_same_images():
    axis = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis,), devices=jax.devices()[:2])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    images, labels = (jax.device_put(a, rows) for a in batch())
    spec = attacks.make("pgd_sat", eps=EPS, restarts=2)
    got = jax.jit(lambda x, y: spec.run(predict, x, y, jax.random.key(0), unroll=1))(images, labels)
    assert np.mean(np.abs(got - run(spec)) > 1e-6) <= 0.005
