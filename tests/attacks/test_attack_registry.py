"""PgdAttack and make: parameters, overrides, programs, and every bad input named."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import attacks, losses

X, Y = jnp.full((2, 4, 4, 3), 0.5), jnp.array([0, 1])


def predict(images):
    return jnp.stack([jnp.sum(images, (1, 2, 3)), jnp.sum(images**2, (1, 2, 3))], axis=1)


@pytest.mark.parametrize(
    "name, step, steps",
    [
        ("fgsm", 8 / 255, 1),
        ("bim", 2 / 255, 10),
        ("pgd_sat", 2 / 255, 20),
        ("pgd_trades", 0.003, 20),
        ("pgd20", 2 / 255, 20),
        ("tpgd", 2 / 255, 10),
        ("cw_inf", 2 / 255, 30),
        ("ciard_train", 2 / 255, 10),
    ],
)
def test_the_papers_numbers_at_8_255(name, step, steps):
    spec = attacks.make(name)
    assert (spec.name, spec.eps, spec.steps, spec.norm) == (name, 8 / 255, steps, "linf")
    np.testing.assert_allclose(spec.step_size, step, rtol=1e-12)


def test_trades_at_its_own_radius():
    np.testing.assert_allclose(attacks.make("trades_train", eps=0.031).step_size, 0.007, rtol=1e-12)


def test_steps_scale_with_the_radius_and_overrides_are_absolute():
    np.testing.assert_allclose(attacks.make("pgd_sat", eps=0.2).step_size, 0.05)
    spec = attacks.make("pgd_sat", eps=0.2, steps=7, step_size=0.01, restarts=3, start="gauss")
    assert (spec.steps, spec.step_size, spec.restarts, spec.start) == (7, 0.01, 3, "gauss")
    np.testing.assert_allclose(attacks.make("pgd_trades").with_eps(4 / 255).step_size, 0.0015)


def test_evaluation_names_are_registered_and_labelled():
    names = attacks.evaluation_names()
    assert names == ("fgsm", "pgd_sat", "pgd_trades", "bim", "tpgd", "cw_inf")
    labels = [attacks.make(n).label for n in names]
    assert labels == ["FGSM", "PGD_sat", "PGD_trades", "BIM", "T-PGD", "CW_inf"]
    assert set(names) <= set(attacks.names())
    assert attacks.make("cw_inf", norm="l2").label == "CW (L2)"


def test_programs():
    sat, trades = attacks.make("pgd_sat"), attacks.make("pgd_trades", eps=0.2)
    assert sat.program == trades.program and hash(sat.program) == hash(trades.program)
    for other in (
        attacks.make("pgd_sat", steps=19),
        attacks.make("pgd_sat", norm="l2"),
        attacks.make("pgd_sat", restarts=2),
        attacks.make("bim"),
    ):
        assert other.program != sat.program
    assert len({attacks.make("pgd_sat"), attacks.make("pgd_sat"), trades}) == 2


def test_run_scales_the_step_when_only_the_radius_is_given():
    x_adv = attacks.make("fgsm", eps=0.1).run(predict, X, Y, eps=0.2)
    np.testing.assert_allclose(np.abs(x_adv - X).max(), 0.2, rtol=1e-5)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: attacks.make("pdg"), "'pdg'.*pgd_sat"),
        (lambda: attacks.make("pgd_sat", eps=-0.1), "eps=-0.1"),
        (lambda: attacks.make("pgd_sat", eps=8), r"eps=8.*8/255"),
        (lambda: attacks.make("pgd_sat", eps="8/255"), "eps='8/255'.*number"),
        (lambda: attacks.make("pgd_sat", eps=float("nan")), "eps=nan"),
        (lambda: attacks.make("pgd_sat", eps=float("inf"), norm="l2"), "eps=inf"),
        (lambda: attacks.make("pgd_sat", eps=jnp.float32(0.1)), r"eps is a JAX array.*run\(\)"),
        (lambda: attacks.make("pgd_sat", norm="l1"), "'l1'.*linf, l2"),
        (lambda: attacks.make("pgd_sat", steps=-1), "steps=-1"),
        (lambda: attacks.make("pgd_sat", steps=2.5), "steps=2.5"),
        (lambda: attacks.make("pgd_sat", steps=True), "steps=True"),
        (lambda: attacks.make("pgd_sat", step_size=-1.0), "step_size=-1.0"),
        (lambda: attacks.make("pgd_sat", restarts=0), "restarts=0"),
        (lambda: attacks.make("pgd_sat", start="random"), "'random'.*uniform"),
        (lambda: attacks.make("pgd_sat", order="range"), "'range'.*range_then_ball"),
        (lambda: attacks.make("pgd_sat", loss="dlr"), "'dlr'.*cross_entropy"),
        (lambda: attacks.make("pgd_sat", sigma=-1.0), "sigma=-1.0"),
        (lambda: attacks.make("pgd_sat", linear_weight=0.5), "linear_weight.*teacher_linear_kl"),
        (lambda: attacks.make("saad_train", linear_weight=-1.0), "linear_weight=-1.0"),
        (lambda: attacks.make("pgd_sat", clip_min=1.0), "clip_min=1.0.*empty"),
        (lambda: attacks.make("pgd_sat", step=0.1), "no parameter step; it has.*step_size"),
        *(
            (lambda f=f, given=given: f(predict, X, *given, step=1), f"no parameter step; it has .*{has}")
            for f, given, has in (
                (functools.partial(attacks.apgd, eps=0.1), (Y,), "eot, loss"),
                (functools.partial(attacks.fab, eps=0.1), (Y,), "beta, eta"),
                (functools.partial(attacks.square, eps=0.1), (Y, None), "rescale, shared"),
                (attacks.autoattack, (Y,), "steps, version"),
                (functools.partial(attacks.pgd_loop, eps=0.1, step_size=0.1, steps=1), (X,), "order"),
                (functools.partial(attacks.make("bim").run, key=None), (Y,), "targets, teacher"),
            )
        ),
        (lambda: attacks.make("bim", eps=0).with_eps(0.1), "eps=0.*step_size"),
        (lambda: attacks.pgd(predict, X, Y), "key is None"),
        (lambda: attacks.pgd(predict, X, Y, eps=-1.0), "eps=-1.0"),
        (lambda: attacks.pgd(predict, X, Y, eps=np.float64(2.0)), "eps=2.0"),
        (lambda: attacks.trades_pgd(predict, X, eps="a"), "eps='a'"),
        (lambda: attacks.pgd(predict, X, Y, start="middle"), "'middle'"),
        (lambda: attacks.pgd(predict, X, Y, start=X[:1]), r"start of shape \(1, 4, 4, 3\)"),
        (lambda: attacks.pgd(predict, X, Y, start=X, restarts=2), "restarts=2"),
        (lambda: attacks.bim(predict, X, None), "labels are None.*cross_entropy"),
        (
            lambda: attacks.trades_pgd(predict, X, None, jax.random.key(0), restarts=2),
            "labels are None; restarts=2",
        ),
        (lambda: attacks.bim(predict, jnp.zeros(X.shape, jnp.uint8), Y), "uint8.*divide uint8 by"),
        (lambda: attacks.bim(predict, X.astype(jnp.bfloat16), Y), "bfloat16"),
        (lambda: attacks.bim(predict, X, jnp.eye(2)), "not one-hot"),
        (lambda: attacks.bim(predict, X, Y[:1]), "labels of shape"),
        (lambda: attacks.bim(predict, jnp.zeros(4), jnp.zeros(4, jnp.int32)), "add a batch axis"),
        (
            lambda: attacks.pgd_loop(
                lambda x: jnp.mean(x), X, X, eps=0.1, step_size=0.1, steps=1
            ),
            "one value per example",
        ),
        (
            lambda: attacks.pgd_loop(predict, X, X[:1], eps=0.1, step_size=0.1, steps=1),
            "start of shape",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_apgd_trains_and_autoattack_does_not():
    apgd = attacks.make("apgd_ce", eps=0.1, steps=3)
    x_adv = jax.jit(lambda x: apgd.run(predict, x, Y, jax.random.key(0)))(X)
    assert np.abs(x_adv - X).max() <= 0.1 + 1e-6 and not np.array_equal(x_adv, X)
    cascade = attacks.make("square100", eps=0.1)
    assert not cascade.pure and "square100" not in attacks.names()
    assert cascade.run(predict, X, Y).shape == X.shape
    with pytest.raises(ValueError, match="'square100'.*no jitted step.*apgd_ce"):
        jax.jit(lambda x: cascade.run(predict, x, Y))(X)


def test_apgd_of_training_starts_at_the_image_and_gives_the_largest_loss():
    images = jax.random.uniform(jax.random.key(0), (4, 4, 4, 3))
    labels = jnp.array([0, 1, 0, 1])
    found = attacks.make("apgd_train", eps=0.1)(predict, images, labels, jax.random.key(0))
    given = {"eps": 0.1, "steps": 2, "start": images}
    expected = attacks.apgd(predict, images, labels, jax.random.key(1), **given).best
    np.testing.assert_allclose(found, expected, atol=1e-6)
    loss = [losses.cross_entropy(predict(x), labels) for x in (images, found)]
    assert (loss[1] >= loss[0]).all() and (loss[1] > loss[0]).any()
    soft = losses.as_logits(jax.nn.one_hot(labels, 2))
    softly = attacks.make("apgd_soft_train", eps=0.1)
    assert (softly.needs_labels, softly.needs_teacher) == (False, "logits")
    with_soft = softly(predict, images, labels, jax.random.key(0), teacher_logits=soft)
    np.testing.assert_allclose(with_soft, found, atol=1e-6)
    half = jnp.full_like(soft, 0.0)  # every class alike
    assert not np.allclose(
        softly(predict, images, labels, jax.random.key(0), teacher_logits=half), found, atol=1e-3
    )
    with pytest.raises(ValueError, match="start 'gauss'; choose one of uniform, none"):
        attacks.make("apgd_train", eps=0.1, start="gauss")
