"""What must hold for Auto-PGD on any network: ball, range, flags, keys, one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax.attacks.auto_attack.apgd import LOSSES, apgd, checkpoint_lengths

BATCH, SHAPE, CLASSES, STEPS = 8, (5, 5, 3), 5, 20
EPS = {"linf": 0.04, "l2": 0.25}


def network(seed=0, classes=CLASSES):
    """A fixed two-layer net."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(int(np.prod(SHAPE)), 16)).astype(np.float32) / 4
    second = rng.normal(size=(16, classes)).astype(np.float32)
    return lambda x: jnp.tanh((x.reshape(x.shape[0], -1) - 0.5) @ first) @ second


def batch(seed=0):
    """Images (the first two at the ends of the range) with the labels that the network gives them."""
    images = np.random.default_rng(seed + 100).uniform(size=(BATCH, *SHAPE)).astype(np.float32)
    images[0], images[1] = 0.0, 1.0
    return jnp.asarray(images), jnp.argmax(network(seed)(images), axis=-1)


def wanted(loss, targets):
    """The targets, for the loss that takes them."""
    return targets if loss == "targeted_dlr" else None


@functools.cache
def compiled(seed, norm, loss, **options):
    traces = []

    @jax.jit
    def call(images, labels, key, targets, eps):
        traces.append(1)
        return apgd(
            network(seed), images, labels, key, eps=eps, norm=norm, loss=loss,
            targets=wanted(loss, targets), steps=STEPS, trace=True, **options,
        )  # fmt: skip

    call.traces = traces
    return call


def attack(seed=0, norm="linf", loss="cross_entropy", *, key=0, eps=None, shift=1):
    """Result on the batch; `shift` picks other target classes."""
    images, labels = batch(seed)
    key = jax.random.key(key) if isinstance(key, int) else key
    eps = EPS[norm] if eps is None else eps
    return compiled(seed, norm, loss)(images, labels, key, (labels + shift) % CLASSES, eps)


def lengths(delta, norm):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.abs(flat).max(1) if norm == "linf" else np.sqrt(np.square(flat).sum(1))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", EPS)
def test_ball_range_and_flags(seed, loss, norm):
    images, labels = batch(seed)
    result = attack(seed, norm, loss)
    moved = np.asarray(result.images - images)
    assert result.images.dtype == jnp.float32 and result.success.dtype == jnp.bool_
    assert lengths(moved, norm).max() <= EPS[norm] + 1e-6
    assert result.images.min() >= 0.0 and result.images.max() <= 1.0
    wrong = np.argmax(network(seed)(result.images), -1) != labels
    np.testing.assert_array_equal(wrong, result.success)
    np.testing.assert_array_equal(lengths(moved, norm) > 0, result.success)


@pytest.mark.parametrize("norm", EPS)
def test_both_outcomes_occur(norm):
    rates = [np.mean(attack(seed, norm, loss).success) for seed in range(2) for loss in LOSSES]
    assert 0.05 < np.mean(rates) < 0.95


def test_the_adversarial_image_is_the_latest_misclassified_one():
    # One pixel, a second logit that peaks at 0.55: the step leaps over the peak, and what was wrong
    # stays the answer although later iterates are right again.
    images, labels = jnp.full((1, 1, 1, 1), 0.5), jnp.zeros(1, jnp.int32)
    seen = []

    def predict(x):
        peak = 0.01 - jnp.abs(x[:, 0, 0] - 0.55)
        return jnp.concatenate([jnp.zeros_like(peak), 100.0 * peak], axis=1)

    for steps in (1, 4, 8):
        result = apgd(predict, images, labels, eps=0.1, steps=steps, start=images, trace=True)
        seen.append((float(result.images[0, 0, 0, 0]), bool(result.success[0])))
        wrong = np.flatnonzero(np.asarray(result.loss)[:, 0] > np.log(2))
        assert result.success[0] == (wrong.size > 0)
    assert {flag for _, flag in seen} == {True, False}
    assert all(abs(x - 0.55) < 0.01 if flag else x == 0.5 for x, flag in seen)


@pytest.mark.parametrize("norm", EPS)
def test_losses_never_fall_in_the_best_trace(norm):
    result = attack(1, norm)
    assert np.all(np.diff(result.loss_best, axis=0) >= 0)
    np.testing.assert_array_equal(np.maximum.accumulate(result.loss), result.loss_best)
    np.testing.assert_allclose(result.step_size[0], 2 * EPS[norm], rtol=1e-6)
    halvings = np.asarray(result.step_size[:-1] / result.step_size[1:])
    assert set(np.unique(halvings)) == {1.0, 2.0}
    rows = np.flatnonzero(np.any(halvings == 2.0, axis=1)) + 1
    assert set(rows) <= set(np.flatnonzero(checkpoint_lengths(STEPS)))


def test_it_beats_the_first_iterate():
    result = attack(2, "linf")
    assert np.all(np.asarray(result.loss_best[-1]) > np.asarray(result.loss[0]))


def test_a_key_gives_one_result_and_another_key_another():
    first, again, other = attack(key=3), attack(key=3), attack(key=4)
    np.testing.assert_array_equal(first.loss, again.loss)
    assert np.any(first.loss[0] != other.loss[0])


def test_keys_per_image_make_the_rows_independent():
    images, labels = batch()
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(BATCH))
    whole = compiled(0, "linf", "cross_entropy")(images, labels, keys, labels, EPS["linf"])
    rows = jnp.asarray([5, 2, 6])
    part = compiled(0, "linf", "cross_entropy")(
        images[rows], labels[rows], keys[rows], labels[rows], EPS["linf"]
    )
    np.testing.assert_allclose(part.images, whole.images[rows], atol=1e-6)
    np.testing.assert_array_equal(part.success, whole.success[rows])
    one_key = attack(key=7)
    np.testing.assert_allclose(one_key.loss, whole.loss, atol=1e-6)


def test_the_random_start_lies_on_the_surface():
    images = jnp.full((BATCH, *SHAPE), 0.5)
    labels = jnp.zeros(BATCH, jnp.int32)
    for norm, eps in EPS.items():
        starts = []

        def predict(x, starts=starts):
            jax.debug.callback(lambda x: starts.append(np.asarray(x)), x)
            return network()(x)

        run = functools.partial(apgd, predict, eps=eps, norm=norm, steps=1)
        jax.jit(run)(images, labels, jax.random.key(0))
        jax.effects_barrier()
        np.testing.assert_allclose(lengths(starts[0] - 0.5, norm), eps, rtol=1e-5)


def test_targets_and_eps_do_not_compile_again():
    results = [
        attack(0, "linf", "targeted_dlr", shift=s, eps=e) for s in (1, 2) for e in (0.01, 0.1)
    ]
    assert len(compiled(0, "linf", "targeted_dlr").traces) == 1
    assert np.any(results[1].loss != results[3].loss)
    assert np.sum(results[0].success) < np.sum(results[1].success)


def test_the_loop_holds_one_copy_of_the_network():
    calls = []

    def predict(x):
        calls.append(1)
        return network()(x)

    images, labels = batch()
    jax.jit(lambda x: apgd(predict, x, labels, jax.random.key(0), eps=0.1).images).lower(images)
    assert len(calls) <= 2  # jax.lax.scan may trace its body twice


def test_the_first_step_is_compared_with_zero_or_with_the_start():
    # 4 steps: a checkpoint after every one. The image stays correct, so its DLR stays below 0 and
    # AutoAttack's comparison of the first step with 0 halves, although the loss has risen.
    images = jnp.full((1, 2, 2, 1), 0.5)
    slope = jnp.asarray([[1.0, 0.0, -1.0]])

    def predict(x):
        return jnp.asarray([[5.0, 0.0, -5.0]]) - jnp.sum(x - 0.5, axis=(1, 2, 3))[:, None] * slope

    labels = jnp.zeros(1, jnp.int32)
    options = {"eps": 0.1, "steps": 4, "loss": "dlr", "start": images - 0.1, "trace": True}
    # DLR of these logits is constant, so give the network a third class that does not move along.
    predict_dlr = lambda x: predict(x).at[:, 2].set(-5.0)  # noqa: E731
    quirk = apgd(predict_dlr, images, labels, **options)
    honest = apgd(predict_dlr, images, labels, compat=False, **options)
    assert quirk.loss[1, 0] > quirk.loss[0, 0] and quirk.loss[1, 0] < 0
    np.testing.assert_allclose(quirk.step_size[:2, 0], [0.2, 0.1], rtol=1e-6)
    np.testing.assert_allclose(honest.step_size[:2, 0], [0.2, 0.2], rtol=1e-6)


def test_expectation_over_random_predictions():
    images, labels = batch()
    seen = []

    def predict(x, key):
        jax.debug.callback(lambda k: seen.append(tuple(np.asarray(k))), jax.random.key_data(key))
        return network()(x + 0.01 * jax.random.normal(key, x.shape))

    def run(eot):
        attack = functools.partial(apgd, predict, eps=0.1, steps=3, eot=eot, trace=True)
        return jax.jit(attack)(images, labels, jax.random.key(1))

    result = run(4)
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 4 * (3 + 1)
    again = run(4)
    np.testing.assert_array_equal(result.loss, again.loss)
    # Without noise the average over equal gradients changes nothing.
    still = lambda x, key: network()(x)  # noqa: E731
    averaged = apgd(still, images, labels, jax.random.key(1), eps=0.1, steps=3, eot=4, trace=True)
    single = apgd(network(), images, labels, jax.random.key(1), eps=0.1, steps=3, trace=True)
    np.testing.assert_allclose(averaged.loss, single.loss, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the outputs of all:UserWarning")
@pytest.mark.parametrize("norm", EPS)
def test_a_network_without_gradient_leaves_finite_images(norm):
    images, labels = batch()
    constant = lambda x: jnp.zeros((x.shape[0], CLASSES)).at[:, 0].set(2.0) + 0.0 * jnp.sum(x)  # noqa: E731
    for loss in LOSSES:
        result = apgd(
            constant, images, jnp.zeros_like(labels), jax.random.key(0), eps=0.1, norm=norm,
            loss=loss, targets=wanted(loss, jnp.ones_like(labels)), steps=6, trace=True,
        )  # fmt: skip
        assert not np.any(result.success) and np.all(np.isfinite(result.loss))
        np.testing.assert_array_equal(result.images, images)


def test_l2_follows_a_tiny_gradient():
    images, labels = batch()
    weak = lambda x: 1e-12 * network()(x)  # noqa: E731
    result = apgd(weak, images, labels, jax.random.key(0), eps=1.0, norm="l2", loss="dlr", steps=20)
    strong = apgd(network(), images, labels, jax.random.key(0), eps=1.0, norm="l2", loss="dlr",
                  steps=20)  # fmt: skip
    assert np.sum(strong.success) > BATCH // 2
    assert np.sum(weak(images).argmax(-1) == labels) == BATCH
    assert np.any(result.success)


@pytest.mark.parametrize("options, words", [
    ({"steps": 0}, "steps=0"), ({"steps": 2.5}, "steps=2.5"), ({"eot": 0}, "eot=0"),
    ({"rho": 1.5}, "rho=1.5"), ({"loss": "ce"}, "unknown APGD loss 'ce'"), ({"norm": "l1"}, "norm"),
    ({"eps": 8}, "write 8/255"), ({"loss": "targeted_dlr"}, "targets are None"),
    ({"key": None}, "pass a jax PRNG key"), ({"start": np.zeros((1, 1))}, "start of shape"),
    ({"key": jax.random.split(jax.random.key(0), 3)}, "one for each image"),
])  # fmt: skip
def test_bad_arguments(options, words):
    images, labels = batch()
    key = options.pop("key", jax.random.key(0))
    with pytest.raises(ValueError, match=words):
        apgd(network(), images, labels, key, **({"eps": 0.1} | options))


@pytest.mark.parametrize("loss, classes, words", [
    ("targeted_dlr", 3, "3 classes; this loss needs at least 4"),
    ("dlr", 2, "2 classes; this loss needs at least 3"),
])  # fmt: skip
def test_too_few_classes(loss, classes, words):
    images, labels = batch()
    few = network(classes=classes)
    with pytest.raises(ValueError, match=words):
        targets = wanted(loss, 1 - labels % 2)
        apgd(few, images, labels % 2, jax.random.key(0), eps=0.1, loss=loss, targets=targets)


def test_bad_images_labels_and_networks():
    images, labels = batch()
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="uint8"):
        apgd(network(), (images * 255).astype(jnp.uint8), labels, key, eps=0.1)
    with pytest.raises(ValueError, match="one-hot"):
        apgd(network(), images, jax.nn.one_hot(labels, CLASSES), key, eps=0.1)
    with pytest.raises(ValueError, match="predict returned shape"):
        apgd(lambda x: network()(x)[0], images, labels, key, eps=0.1)


@pytest.mark.multidevice
def test_a_sharded_batch_gives_the_same_result():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    images, labels = batch()
    want = attack(key=0)
    images, labels = (jax.device_put(a, rows) for a in (images, labels))
    call = compiled(0, "linf", "cross_entropy")
    got = call(images, labels, jax.random.key(0), (labels + 1) % CLASSES, EPS["linf"])
    np.testing.assert_array_equal(got.success, want.success)
    # One gradient at rounding level may have taken the other sign.
    assert np.mean(np.abs(got.images - want.images) > 1e-5) <= 0.005
