"""DPGD on a linear model and on a small convolutional network with BatchNorm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import attacks, losses, models

BATCH, SHAPE, CLASSES, EPS, STEPS = 12, (8, 8, 1), 4, 0.1, 5
ALPHA = EPS / 4
_RNG = np.random.default_rng(0)
X = jnp.asarray(_RNG.uniform(size=(BATCH, *SHAPE)).astype(np.float32))
_WEIGHT = _RNG.normal(size=(int(np.prod(SHAPE)), CLASSES)).astype(np.float32) / 8
NETS = ("linear", "small_cnn")


def linear(images):
    return (images.reshape(images.shape[0], -1) - 0.5) @ _WEIGHT


@functools.cache
def cnn():
    """An untrained network whose running statistics are those of the batch, and whose logits differ."""
    bundle = models.create("small_cnn", CLASSES, SHAPE, widths=(4, 8))
    variables = bundle.init(jax.random.key(0))
    for _ in range(40):
        _, stats = bundle.apply(variables, X, True)
        variables = {"params": variables["params"], "batch_stats": stats}
    variables["params"]["fc"] = jax.tree.map(lambda w: 4.0 * w, variables["params"]["fc"])
    return bundle, variables


def predict_of(net):
    if net == "linear":
        return linear
    bundle, variables = cnn()
    return lambda images: bundle.apply(variables, images, False)[0]


def train_predict(images, batch_stats):
    """Train-mode BatchNorm: the statistics of these images, and the running ones moved."""
    bundle, variables = cnn()
    return bundle.apply({"params": variables["params"], "batch_stats": batch_stats}, images, True)


@functools.cache
def labels_of(net):
    """Two of three images right, the others misclassified."""
    predicted = jnp.argmax(predict_of(net)(X), -1)
    return jnp.where(jnp.arange(BATCH) % 3 == 0, (predicted + 1) % CLASSES, predicted)


def right_of(net, images=X):
    return np.asarray(jnp.argmax(predict_of(net)(images), -1) == labels_of(net))


@functools.cache
def attack(net, rows=None, **options):
    """DPGD's images, or those of the first `rows`."""
    options = {"eps": EPS, "steps": STEPS, "unroll": 1} | options
    images, labels = X[:rows], labels_of(net)[:rows]
    run = functools.partial(attacks.dpgd, predict_of(net), **options)
    return np.asarray(jax.jit(run)(images, labels, jax.random.key(0)))


def one_step(net, lam, **options):
    x_adv = attack(net, steps=1, lambda_schedule="const", lambda_value=lam, **options)
    return x_adv - np.asarray(X)


def differing(a, b):
    """Share of the pixels in which two results differ."""
    return np.mean(np.abs(np.asarray(a) - np.asarray(b)) > 1e-6)


def normalised_space_dpgd(predict, x, y, mean, std, steps=STEPS):
    """The attack as the public scripts write it: on (x - mean)/std, on selected rows, plain Dice."""
    low, high = (0.0 - mean) / std, (1.0 - mean) / std
    clean = (x - mean) / std

    def set_loss(p, onehot, rows):
        if not len(rows):
            return 0.0
        p, onehot = p[rows], onehot[rows]
        overlap = 2.0 * jnp.sum(p * onehot) + 1e-5
        return 1.0 - overlap / (jnp.sum(onehot**2) + jnp.sum(p**2) + 1e-5)

    z, onehot = clean, jax.nn.one_hot(y, CLASSES)
    for i in range(steps):
        right = np.asarray(jnp.argmax(predict(z * std + mean), -1) == y)
        lam = i / (2 * steps)

        def objective(z, right=right, lam=lam):
            p = jax.nn.softmax(predict(z * std + mean))
            rows, others = np.flatnonzero(right), np.flatnonzero(~right)
            return (1 - lam) * set_loss(p, onehot, rows) + lam * set_loss(p, onehot, others)

        z = z + ALPHA / std * jnp.sign(jax.grad(objective)(z))
        z = jnp.clip(clean + jnp.clip(z - clean, -EPS / std, EPS / std), low, high)
    return np.asarray(z * std + mean)


@pytest.mark.parametrize("net", ["linear", pytest.param("small_cnn", marks=pytest.mark.slow)])
def test_equals_the_normalised_space_attack_of_the_scripts(net):
    got, plain = (attack(net, steps=3, dice_form=form) for form in losses.DICE_FORMS)
    want = normalised_space_dpgd(predict_of(net), X, labels_of(net), 0.4, 0.25, steps=3)
    # Another order of roundings: a gradient at rounding level may change its sign.
    assert differing(got, want) <= 0.005
    assert differing(got, plain) <= 0.005


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("start", ["none", "uniform"])
def test_ball_and_range(net, start):
    x_adv = attack(net, start=start)
    assert np.max(np.abs(x_adv - X)) <= EPS + 1e-6
    assert x_adv.min() >= 0.0 and x_adv.max() <= 1.0
    loss = [np.sum(losses.cross_entropy(predict_of(net)(x), labels_of(net))) for x in (X, x_adv)]
    assert loss[1] > loss[0] + 0.1
    assert np.sum(right_of(net, x_adv)) < np.sum(right_of(net))


@pytest.mark.parametrize("net", NETS)
def test_the_same_call_compiled_again_gives_the_same_images(net):
    np.testing.assert_array_equal(attack.__wrapped__(net), attack(net))


def test_lambda_table():
    np.testing.assert_allclose(attacks.lambda_values("paper", 10), np.arange(10) * 0.05, atol=1e-7)
    want = np.arange(-1, 9) * 0.05
    np.testing.assert_allclose(attacks.lambda_values("cad", 10), want, atol=1e-7)
    np.testing.assert_array_equal(attacks.lambda_values("const", 3), np.float32([0.25] * 3))


@pytest.mark.parametrize("net", NETS)
def test_lambda_does_not_change_the_step_in_evaluation_mode(net):
    steps = [one_step(net, lam) for lam in (0.05, 0.25, 0.45)]
    assert np.mean(np.abs(steps[0]) > ALPHA / 2) > 0.8  # the images do move
    np.testing.assert_array_equal(steps[0], steps[1])
    np.testing.assert_array_equal(steps[1], steps[2])


@pytest.mark.parametrize("net", NETS)
def test_lambda_s_sign_decides_about_misclassified_images(net):
    right = right_of(net)
    assert 0 < right.sum() < BATCH
    forward, still, back = (one_step(net, lam) for lam in (0.25, 0.0, -0.05))
    np.testing.assert_array_equal(still[~right], 0.0)
    np.testing.assert_array_equal(still[right], forward[right])
    np.testing.assert_array_equal(back[right], forward[right])
    inside = np.asarray((X > ALPHA) & (X < 1 - ALPHA))[~right]  # where the range does not cut
    np.testing.assert_allclose(back[~right][inside], -forward[~right][inside], atol=1e-6)
    assert np.mean(np.abs(forward[~right]) > ALPHA / 2) > 0.8


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("dice", ["batch", "per_sample"])
def test_constant_lambda_differs_only_in_the_first_step_of_misclassified_images(net, dice):
    # Three of the four steps that lead across the ball, so that no iterate stops at its border.
    paper = attack(net, dice=dice, steps=3)
    const = attack(net, dice=dice, steps=3, lambda_schedule="const")
    right = right_of(net)
    # The misclassified images are elsewhere, which the batch's sums tell the others.
    assert differing(paper[right], const[right]) <= (0.0 if dice == "per_sample" else 0.02)
    assert differing(paper[~right], const[~right]) > 0.1
    if dice == "per_sample":  # the same path, one step behind
        behind = attack(net, dice=dice, lambda_schedule="const", steps=2)
        assert differing(paper[~right], behind[~right]) == 0.0


@pytest.mark.parametrize("net", NETS)
def test_switches_that_do_nothing_and_switches_that_do(net):
    # The base is checked against the scripts' form above. These images have one channel, which is
    # always the largest; the first step of every schedule is whole.
    np.testing.assert_array_equal(attack(net, channel_mask_rho=0.9), attack(net))
    for name, value in {"alpha_schedule": "linear", "lambda_schedule": "cad"}.items():
        assert differing(attack(net, **{name: value}), attack(net)) > 0.1, (name, value)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "apgd"])
def test_step_size_schedules_begin_with_the_whole_step(schedule):
    np.testing.assert_array_equal(
        attack("linear", steps=1, alpha_schedule=schedule), attack("linear", steps=1)
    )


@pytest.mark.parametrize("net", NETS)
def test_only_the_batch_dice_depends_on_batch_mates(net):
    for dice in ("per_sample", "unsquared"):
        assert differing(attack(net, dice=dice)[:5], attack(net, 5, dice=dice)) == 0.0
    assert differing(attack(net)[:2], attack(net, 2)) > 0.0
    # Groups of two are batches of two.
    assert differing(attack(net, dice_groups=6)[:2], attack(net, 2)) == 0.0


def test_soft_targets_lead_away_from_the_teacher_s_prediction():
    z = 0.5 * linear(X)  # not the minimum, where the gradient would be rounding
    x_adv = attacks.dpgd(
        linear, X, labels_of("linear"), eps=EPS, steps=STEPS, dice="soft", teacher_logits=z,
        lambda_schedule="const", unroll=1,
    )  # fmt: skip
    teacher = jax.nn.softmax(z)
    before, after = (losses.soft_dice(linear(x), teacher) for x in (X, x_adv))
    assert np.all(after > before + 1e-3)


@functools.cache
def train_mode(lam, steps=STEPS):
    stats = cnn()[1]["batch_stats"]
    run = functools.partial(
        attacks.dpgd, train_predict, eps=EPS, steps=steps, step_size=ALPHA, unroll=1,
        lambda_schedule="const", lambda_value=lam,
    )  # fmt: skip
    return jax.jit(run)(X, labels_of("small_cnn"), state=stats)


def test_train_mode_batchnorm_couples_the_images():
    low, high = train_mode(0.05), train_mode(0.45)
    # Every image now moves the others through the batch statistics, with the weight lambda gives it.
    assert 0.0 < differing(low[0], high[0])
    assert np.max(np.abs(low[0] - X)) <= EPS + 1e-6
    repeated = jax.tree.leaves(train_mode.__wrapped__(0.05))
    for a, b in zip(repeated, jax.tree.leaves(low), strict=True):
        np.testing.assert_array_equal(a, b)


def test_train_mode_statistics_move_once_a_step():
    stats = cnn()[1]["batch_stats"]
    want = stats
    for images in (X, train_mode(0.25, 1)[0], train_mode(0.25, 2)[0]):  # the iterates
        want = train_predict(images, want)[1]
    for a, b in zip(jax.tree.leaves(train_mode(0.25, 3)[1]), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("net", NETS)
def test_targeted_pgd_aims_at_the_smallest_clean_logit(net):
    logits = predict_of(net)(X)
    targets = attacks.least_likely_class(logits, labels_of(net))
    smallest = jnp.argmin(logits, -1)
    allowed = smallest != labels_of(net)  # the label itself is never the target
    assert np.sum(allowed) >= BATCH // 2
    np.testing.assert_array_equal(targets[allowed], smallest[allowed])
    x_adv = attacks.targeted_pgd(
        predict_of(net), X, labels_of(net), jax.random.key(0), eps=EPS, unroll=1
    )
    before, after = (losses.cross_entropy(predict_of(net)(x), targets) for x in (X, x_adv))
    assert np.all(after < before)


@pytest.mark.multidevice
def test_a_sharded_batch_is_one_batch():
    axis = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis,), devices=jax.devices()[:4])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    images, labels = (jax.device_put(a, rows) for a in (X, labels_of("linear")))
    run = functools.partial(attacks.dpgd, linear, eps=EPS, steps=STEPS, unroll=1)
    assert differing(jax.jit(run)(images, labels), attack("linear")) <= 0.005
    per_shard = functools.partial(run, dice_groups=4)
    got = np.asarray(jax.jit(per_shard)(images, labels))
    assert differing(got[:3], attack("linear", 3)) <= 0.005
