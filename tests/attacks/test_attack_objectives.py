"""Attack losses that follow a teacher or a clean prediction, state, step sizes, choice of restarts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import attacks
from ard_jax.attacks import loop
from ard_jax.attacks.threat_model import ThreatModel

BATCH, SHAPE, CLASSES, EPS = 6, (4, 4, 2), 3, 0.1
_RNG = np.random.default_rng(1)
W_STUDENT, W_TEACHER = _RNG.normal(size=(2, int(np.prod(SHAPE)), CLASSES)).astype(np.float32)
X = jnp.asarray(_RNG.uniform(0.3, 0.7, size=(BATCH, *SHAPE)).astype(np.float32))
Y = jnp.arange(BATCH) % CLASSES
START = X + 0.05 * jnp.sign(jnp.asarray(_RNG.normal(size=X.shape), jnp.float32))


def predict(images):
    return jnp.tanh(images.reshape(images.shape[0], -1) - 0.5) @ W_STUDENT


def teacher(images):
    return jnp.sin(3.0 * images.reshape(images.shape[0], -1)) @ W_TEACHER


def log_p(z):
    return jax.nn.log_softmax(z)


def kl(p, q):
    return jnp.sum(jnp.exp(p) * (p - q))


def linear_teacher(x):
    """The teacher at X, the label's logit moved along its own gradient there."""
    rows = jnp.arange(BATCH)
    slope = jax.grad(lambda z: jnp.sum(teacher(z)[rows, Y]))(X)
    moved = jnp.sum((slope * (x - X)).reshape(BATCH, -1), -1)
    return teacher(X).at[rows, Y].add(moved)


# Name -> what one step ascends, from its paper's formula.
FORMULAS = {
    "rslad_train": lambda x: kl(log_p(teacher(X)), log_p(predict(x))),
    "adaad_train": lambda x: kl(log_p(teacher(x)), log_p(predict(x))),
    "saad_train": lambda x: kl(log_p(linear_teacher(x)), log_p(predict(x))),
    "adr_train": lambda x: kl(log_p(teacher(X)), log_p(predict(x))),
    "adr_trades_train": lambda x: kl(log_p(predict(X)), log_p(predict(x))),
    "score_train": lambda x: jnp.sum(
        jnp.square(jax.nn.softmax(predict(x)) - jax.nn.softmax(predict(X)))
    ),
    "trades_train": lambda x: kl(log_p(predict(X)), log_p(predict(x))),
    "ard_train": lambda x: -jnp.sum(log_p(predict(x))[jnp.arange(BATCH), Y]),
    "sat_train": lambda x: -jnp.sum(log_p(predict(x))[jnp.arange(BATCH), Y]),
    "mart_train": lambda x: -jnp.sum(log_p(predict(x))[jnp.arange(BATCH), Y]),
    "gairat_train": lambda x: -jnp.sum(log_p(predict(x))[jnp.arange(BATCH), Y]),
    "hat_train": lambda x: kl(log_p(predict(X)), log_p(predict(x))),
}


@functools.partial(jax.jit, static_argnums=0)
def one_step(spec):
    return spec.run(predict, X, Y, start=START, teacher_logits=teacher(X), teacher=teacher)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_step_ascends_the_papers_formula(name):
    spec = attacks.make(name, eps=EPS, steps=1, step_size=0.01)
    gradient = np.asarray(jax.grad(FORMULAS[name])(START))
    # Rounding decides the sign of a gradient below about 1e-5 of the largest.
    sure = np.abs(gradient) > 1e-5 * np.max(np.abs(gradient))
    assert np.mean(sure) > 0.95
    step = np.asarray(one_step(spec) - START)
    np.testing.assert_allclose(step[sure], 0.01 * np.sign(gradient[sure]), atol=1e-6)


def test_the_three_teachers_are_three_attacks():
    fixed, moving, linear = (
        one_step(attacks.make(n, eps=EPS, steps=1))
        for n in ("rslad_train", "adaad_train", "saad_train")
    )
    for one, other in ((fixed, moving), (fixed, linear), (moving, linear)):
        assert np.mean(np.abs(one - other) > 1e-6) > 0.05
    unmoved = one_step(attacks.make("saad_train", eps=EPS, steps=1, linear_weight=0.0))
    np.testing.assert_allclose(unmoved, fixed, atol=1e-6)


@pytest.mark.parametrize(
    "name, step, start, clip_start, order, needs",
    [
        ("rslad_train", 2 / 255, "gauss", False, "ball_then_range", "logits"),
        ("adaad_train", 2 / 255, "gauss", False, "ball_then_range", "network"),
        ("saad_train", 2 / 255, "gauss", False, "ball_then_range", "network"),
        ("adr_train", 2 / 255, "uniform", True, "ball_then_range", "logits"),
        ("adr_trades_train", 2 / 255, "gauss", False, "ball_then_range", ""),
        ("ard_train", 2 / 255, "uniform", False, "ball_then_range", ""),
        ("mart_train", 0.007 / 0.031 * 8 / 255, "gauss", False, "ball_then_range", ""),
        ("gairat_train", 0.007 / 0.031 * 8 / 255, "uniform", True, "ball_then_range", ""),
        ("hat_train", 2 / 255, "gauss", False, "ball_then_range", ""),
        ("score_train", 2 / 255, "uniform", True, "ball_then_range", ""),
        ("sat_train", 2 / 255, "uniform", True, "ball_then_range", ""),
        ("dpgd", 2 / 255, "none", True, "ball_then_range", ""),
        ("dpgd_strong", 2 / 255, "uniform", True, "ball_then_range", ""),
    ],
)
def test_the_numbers_of_the_training_attacks(name, step, start, clip_start, order, needs):
    spec = attacks.make(name)
    assert (spec.eps, spec.steps, spec.sigma) == (8 / 255, 10, 0.001)
    assert (spec.start, spec.clip_start, spec.order) == (start, clip_start, order)
    assert spec.needs_teacher == needs
    np.testing.assert_allclose(spec.step_size, step, rtol=1e-12)


def test_soft_dice_needs_the_teacher_s_logits():
    assert attacks.make("dpgd", dice="soft").needs_teacher == "logits"


def counting(x, count):
    logits = predict(x)
    return logits, count + (jnp.argmax(logits, -1) == Y)


@pytest.mark.parametrize("name", ["pgd_sat", "trades_train", "score_train", "dpgd", "adaad_train"])
def test_a_state_is_threaded_through_every_step(name):
    spec = attacks.make(name, eps=EPS, steps=4)

    def stateless(steps):
        spec_of = attacks.make(name, eps=EPS, steps=steps, step_size=spec.step_size)
        return spec_of.run(predict, X, Y, start=START, teacher=teacher, unroll=1)

    x_adv, right = jax.jit(
        lambda: spec.run(
            counting, X, Y, start=START, teacher=teacher, state=jnp.zeros(BATCH), unroll=1
        )
    )()
    np.testing.assert_allclose(x_adv, jax.jit(lambda: stateless(4))(), atol=1e-6)
    # The iterates x'_0 .. x'_3, at which a gradient was taken; x'_0 is the start itself.
    iterates = [START, *(jax.jit(lambda n=n: stateless(n))() for n in (1, 2, 3))]
    want = sum((jnp.argmax(predict(x), -1) == Y).astype(jnp.float32) for x in iterates)
    np.testing.assert_array_equal(right, want)
    assert 0 < np.sum(want) < 4 * BATCH  # the count can tell iterates apart


def test_clean_predictions_leave_no_trace_in_the_state():
    spec = attacks.make("trades_train", eps=EPS, steps=3)
    calls = lambda x, n: (predict(x), n + 1)  # noqa: E731
    _, n = spec.run(calls, X, Y, start=START, state=jnp.zeros((), jnp.int32), unroll=1)
    assert n == 3


def recorded(schedule, steps, score, rho=0.0, slope=1.0):
    """Iterates of an ascent along `slope` in which the score of iterate i is score(i)."""

    def objective(z, state, i):
        values = jnp.sum(slope * z, axis=tuple(range(1, z.ndim)))
        return values, (jnp.full(len(z), score(i), jnp.float32), state.at[i].set(z[0, 0, 0, 0]))

    x = jnp.zeros((1, 2, 2, 2))
    x_adv, seen = loop.ascend(
        objective, x, x, jnp.zeros(steps), threat=ThreatModel(20.0, clip_min=-50.0, clip_max=50.0),
        step_size=1.0, steps=steps, alpha_schedule=schedule, channel_mask_rho=rho, unroll=1,
    )  # fmt: skip
    return np.append(seen, x_adv[0, 0, 0, 0]), np.asarray(x_adv)


def test_step_size_schedules():
    rising = lambda i: i  # noqa: E731
    np.testing.assert_allclose(recorded("const", 4, rising)[0], [0, 1, 2, 3, 4])
    np.testing.assert_allclose(recorded("linear", 4, rising)[0], [0, 1, 1.75, 2.25, 2.5])
    cosine = np.cumsum([0.0, *((1 + np.cos(np.pi * np.arange(4) / 4)) / 2)])
    np.testing.assert_allclose(recorded("cosine", 4, rising)[0], cosine, rtol=1e-6)


def test_apgd_halves_the_step_where_the_score_does_not_rise():
    assert loop.apgd_checkpoints(100)[:5] == [22, 41, 57, 70, 80]
    assert loop.apgd_checkpoints(10) == [3, 5, 6, 7, 8, 9]
    np.testing.assert_allclose(recorded("apgd", 10, lambda i: i)[0], np.arange(11))
    steps = [1, 1, 1, 1 / 2, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64]
    np.testing.assert_allclose(recorded("apgd", 10, lambda i: -i)[0], np.cumsum([0, *steps]))
    # Gains at 1 and 2 of the first three: under 75 %, so halved once, at step 3.
    once = recorded("apgd", 5, lambda i: jnp.where(i == 3, 0, i))[0]
    assert loop.apgd_checkpoints(5) == [2, 3, 4]
    np.testing.assert_allclose(np.diff(once), [1, 1, 1, 0.5, 0.5])


def test_channel_mask_stops_channels_with_little_gradient():
    slope = jnp.array([1.0, 0.3])
    for rho, moved in ((0.0, 1), (0.2, 1), (0.5, 0)):
        _, x_adv = recorded("const", 2, lambda i: i, rho, slope)
        np.testing.assert_allclose(x_adv[0, ..., 0], 2.0)
        np.testing.assert_allclose(x_adv[0, ..., 1], 2.0 * moved)


def test_restarts_keep_a_misclassified_candidate_before_one_with_more_loss():
    # Image = one number; class 1 wins above 0.6; the CW loss grows the other way below 0.5.
    images, labels = jnp.full((1, 1), 0.5), jnp.array([0])

    def logits(x):
        return jnp.concatenate([jnp.full_like(x, 0.6), x], axis=1)

    starts = jnp.array([[[0.55]], [[0.7]], [[0.4]]])

    def worst(starts):
        spec = attacks.make("pgd_sat", eps=0.3, steps=1, restarts=len(starts))
        return spec.run(logits, images, labels, step_size=0.0, start=starts)

    np.testing.assert_allclose(worst(starts), [[0.7]])
    # Nothing misclassified: the candidate with the largest loss.
    np.testing.assert_allclose(worst(starts[::2]), [[0.55]])


def run_without_teacher(name):
    return attacks.make(name).run(predict, X, Y, start=X)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: run_without_teacher("rslad_train"), "teacher_logits are None.*teacher_kl"),
        (lambda: run_without_teacher("adaad_train"), "teacher is None.*teacher_moving_kl"),
        (lambda: attacks.dpgd(predict, X, Y, dice="soft"), "teacher_logits are None.*dice='soft'"),
        (lambda: attacks.dpgd(predict, X, None), "labels are None.*dice"),
        (lambda: attacks.dpgd(predict, X, Y, dice_groups=4), "groups=4.*batch of 6"),
        (lambda: attacks.dpgd(predict, X, Y, start="uniform"), "key is None"),
        (lambda: attacks.dpgd(predict, X, Y, lambda_schedule="linear"), "'linear'.*paper"),
        (lambda: attacks.make("dpgd", alpha_schedule="step"), "'dpgd'.*'step'.*cosine"),
        (lambda: attacks.make("dpgd", channel_mask_rho=1.5), "channel_mask_rho=1.5"),
        (lambda: attacks.make("dpgd", dice="tversky"), "'tversky'.*per_sample"),
        (lambda: attacks.make("dpgd", dice_form="x"), "'x'.*stable"),
        (lambda: attacks.make("dpgd", dice_groups=0), "dice_groups=0"),
        (lambda: attacks.make("dpgd", smoothing=-1.0), "smoothing=-1.0"),
        (lambda: attacks.make("dpgd", lambda_value=2.0), "lambda_value=2.0"),
        (lambda: attacks.make("bim", dice="per_sample"), "dice: options of loss 'dice', not 'cross_entropy'"),
        (lambda: attacks.bim(predict, X, Y, smoothing=0.1), "smoothing: options of loss 'dice'"),
        (
            lambda: attacks.make("pgd_sat", restarts=2).run(
                counting, X, Y, jax.random.key(0), state=jnp.zeros(BATCH)
            ),
            "restarts=2.*state",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_an_unknown_option_is_named():
    with pytest.raises(ValueError, match="no parameter lamda"):
        attacks.pgd(predict, X, Y, start=X, lamda=1)
