"""FAB and its projections: nearest points by brute force, budget and flags, degenerate networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax.attacks.auto_attack import fab_projections
from ard_jax.attacks.auto_attack.fab import NOT_FOUND, _random_starts, fab

BATCH, SHAPE, CLASSES, STEPS = 6, (5, 5, 3), 4, 15
EPS = {"linf": 0.06, "l2": 0.3}

_RNG = np.random.default_rng(0)
_FIRST = _RNG.normal(size=(int(np.prod(SHAPE)), 16)).astype(np.float32) / 4
_SECOND = _RNG.normal(size=(16, CLASSES)).astype(np.float32)
_IMAGES = _RNG.uniform(size=(BATCH, *SHAPE)).astype(np.float32)
_IMAGES[0], _IMAGES[1] = 0.0, 1.0  # both ends of the range

PROJECT = {"linf": fab_projections.project_linf_box, "l2": fab_projections.project_l2_box}


def predict(images):
    """A fixed two-layer net."""
    return jnp.tanh((images.reshape(images.shape[0], -1) - 0.5) @ _FIRST) @ _SECOND


@functools.cache
def batch():
    """Images and the net's own labels, but for the last image, whose label is wrong."""
    images = jnp.asarray(_IMAGES)
    labels = jnp.argmax(predict(images), axis=-1)
    return images, labels.at[-1].add(1) % CLASSES


def size(delta, norm):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.abs(flat).max(axis=1) if norm == "linf" else np.linalg.norm(flat, axis=1)


@functools.cache
def run(norm, targeted):
    call = jax.jit(functools.partial(fab, predict, norm=norm, steps=STEPS, trace=True))
    images, labels = batch()
    targets = (labels + 1) % CLASSES if targeted else None
    result = call(images, labels, eps=EPS[norm], targets=targets)
    return jax.tree.map(np.asarray, result)


def by_bisection(t, w, b, norm):
    """The displacement in float64, its one unknown found by 200 halvings."""
    t, w, b = (np.asarray(a, np.float64) for a in (t, w, b))
    gap = w @ t - b
    w, gap = (w, gap) if gap >= 0 else (-w, -gap)
    caps = np.where(w > 0, t, 1 - t)
    speed = np.ones_like(w) if norm == "linf" else np.abs(w)
    move = lambda lam: np.where(w != 0, np.minimum(lam * speed, caps), 0.0)  # noqa: E731
    low, high = 0.0, 1e12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.abs(w) @ move(middle) < gap else (low, middle)
    return -np.sign(w) * move(high)


def planes(kind, count=40, dim=30):
    rng = np.random.default_rng(5)
    t, w = rng.uniform(size=(count, dim)), rng.normal(size=(count, dim))
    if kind == "corners":
        t = np.round(t)
    if kind == "uneven":
        w = w * np.exp(2 * rng.normal(size=w.shape))
    if kind == "zeros":
        w[rng.uniform(size=w.shape) < 0.5] = 0.0
    reach = 5.0 if kind == "infeasible" else 0.3
    b = (w * t).sum(axis=1) + reach * rng.choice([-1, 1], count) * np.abs(w).sum(axis=1)
    if kind != "infeasible":
        b = (w * t).sum(axis=1) + 0.3 * (b - (w * t).sum(axis=1)) * rng.uniform(size=count)
    return tuple(a.astype(np.float32) for a in (t, w, b))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["plain", "corners", "uneven", "zeros", "infeasible"])
def test_projection_against_bisection(norm, kind):
    t, w, b = planes(kind)
    d = np.asarray(jax.jit(PROJECT[norm])(t, w, b))
    expected = np.stack([by_bisection(*row, norm) for row in zip(t, w, b, strict=True)])
    # The gap is a float32 sum of 30 terms, whose error the largest weights take up.
    np.testing.assert_allclose(d, expected, rtol=1e-4, atol=2e-6)
    assert np.all(t + d >= -1e-6) and np.all(t + d <= 1 + 1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_lands_on_the_plane(norm):
    t, w, b = planes("plain")
    landed = np.einsum("bd,bd->b", w.astype(np.float64), t + np.asarray(PROJECT[norm](t, w, b)))
    np.testing.assert_allclose(landed, b, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_degenerate_rows(norm):
    t = np.full((4, 3), 0.25, np.float32)
    w = np.asarray([[0, 0, 0], [0, 0, 0], [1, 0, -1], [1e-30, 2e-30, 0]], np.float32)
    b = np.asarray([1.0, -1.0, 0.0, 0.0], np.float32)
    d = np.asarray(PROJECT[norm](t, w, b))
    assert np.all(np.isfinite(d))
    np.testing.assert_array_equal(d[:3], 0)  # no normal; no normal; already on the plane
    assert np.all(d[3] <= 0) and d[3, 2] == 0
    np.testing.assert_allclose(w[3] / 1e-30 @ (t[3] + d[3]), 0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_does_not_depend_on_the_scale_of_the_plane(norm):
    t, w, b = planes("plain")
    small = PROJECT[norm](t, w * np.float32(2**-20), b * np.float32(2**-20))
    np.testing.assert_allclose(small, PROJECT[norm](t, w, b), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [True, False])
def test_budget_range_and_flags(norm, targeted):
    (images, labels), result = batch(), run(norm, targeted)
    assert result.images.dtype == np.float32 and result.images.shape == images.shape
    assert result.images.min() >= 0 and result.images.max() <= 1
    distance = size(result.images - np.asarray(images), norm)
    assert np.all(distance <= EPS[norm] + 1e-6)
    wrong = np.argmax(predict(jnp.asarray(result.images)), axis=-1) != np.asarray(labels)
    np.testing.assert_array_equal(result.success, wrong)
    assert result.success.any() and not result.success.all()  # else this tests nothing
    np.testing.assert_array_equal(result.success, result.distance <= EPS[norm])
    np.testing.assert_allclose(
        distance[result.success], result.distance[result.success], rtol=1e-5, atol=1e-7
    )
    np.testing.assert_array_equal(
        result.images[~result.success], np.asarray(images)[~result.success]
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_distance_never_grows(norm):
    result = run(norm, False)
    assert result.best_distance.shape == (STEPS, BATCH)
    assert np.all(np.diff(result.best_distance, axis=0) <= 0)
    assert np.all(result.distance <= result.best_distance[-1])
    np.testing.assert_array_equal(result.best_distance[0, :-1], np.float32(NOT_FOUND))


def test_an_image_that_is_wrong_when_clean():
    (images, _), result = batch(), run("linf", False)
    assert result.success[-1] and result.distance[-1] == 0
    np.testing.assert_array_equal(result.images[-1], images[-1])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_exact_for_a_linear_network(norm):
    """Its boundary is the plane itself: the first projection ends 1.05 times the distance away."""
    rng = np.random.default_rng(2)
    w = rng.normal(size=(12, 3)).astype(np.float32)
    images = jnp.asarray(rng.uniform(0.4, 0.6, size=(5, 2, 2, 3)).astype(np.float32))
    linear = lambda x: (x.reshape(x.shape[0], -1) - 0.5) @ w  # noqa: E731
    logits = np.asarray(linear(images), np.float64)
    labels = jnp.asarray(logits.argmax(axis=1))
    result = jax.jit(functools.partial(fab, linear, norm=norm, eps=1.0, steps=20))(images, labels)
    dual = {"linf": 1, "l2": 2}[norm]
    exact = []
    for row, y in zip(logits, np.asarray(labels), strict=True):
        others = [c for c in range(3) if c != y]
        exact.append(
            min((row[y] - row[c]) / np.linalg.norm(w[:, c] - w[:, y], dual) for c in others)
        )
    exact = np.asarray(exact)
    assert np.all(result.success)
    assert np.all(result.distance >= exact * (1 - 1e-4)) and np.all(
        result.distance <= exact * 1.051
    )


def test_untargeted_is_no_further_than_its_best_target():
    """For a linear network each plane is exact, so the nearest class is the best target."""
    w = np.random.default_rng(3).normal(size=(75, CLASSES)).astype(np.float32)
    linear = lambda x: (x.reshape(x.shape[0], -1) - 0.5) @ w  # noqa: E731
    images = jnp.asarray(_IMAGES[2:] * 0.2 + 0.4)
    labels = jnp.argmax(linear(images), axis=-1)
    call = jax.jit(functools.partial(fab, linear, eps=1.0, steps=10))
    of_target = [
        np.asarray(call(images, labels, targets=(labels + t) % CLASSES).distance)
        for t in range(1, CLASSES)
    ]
    nearest = np.asarray(call(images, labels).distance)
    np.testing.assert_allclose(nearest, np.min(of_target, axis=0), rtol=0.02)


def test_deterministic_and_one_program_for_all_targets():
    traces = []

    def counted(x):
        traces.append(1)
        return predict(x)

    call = jax.jit(functools.partial(fab, counted, steps=3))
    images, labels = batch()
    results = [
        call(images, labels, eps=eps, targets=(labels + t) % CLASSES)
        for t, eps in ((1, 0.1), (2, 0.2), (1, 0.1))
    ]
    first = len(traces)
    call(images, labels, eps=0.3, targets=(labels + 3) % CLASSES)
    assert len(traces) == first
    np.testing.assert_array_equal(results[0].images, results[2].images)
    assert not np.array_equal(results[0].distance, results[1].distance)


def test_rows_do_not_depend_on_their_batch():
    images, labels = batch()
    call = jax.jit(functools.partial(fab, predict, eps=0.06, steps=STEPS))
    whole, part = call(images, labels), call(images[2:4], labels[2:4])
    np.testing.assert_allclose(whole.distance[2:4], part.distance, rtol=1e-4)
    np.testing.assert_array_equal(whole.success[2:4], part.success)


def bowl(images):
    """Logits 0 and |x - 0.5|^2 - 0.3: at x = 0.5 the gradient is 0; the boundary is at 0.063 in Linf."""
    squares = jnp.sum(jnp.square(images - 0.5), axis=(1, 2, 3))
    return jnp.stack([jnp.zeros_like(squares), squares - 0.3], axis=1)


def test_restarts_leave_a_flat_spot():
    images, labels = jnp.full((3, *SHAPE), 0.5), jnp.zeros(3, jnp.int32)
    call = lambda restarts, seed: jax.jit(  # noqa: E731
        functools.partial(fab, bowl, eps=0.2, steps=20, restarts=restarts, trace=True)
    )(images, labels, jax.random.key(seed))
    once, more, again, other = call(1, 0), call(2, 0), call(2, 0), call(2, 1)
    assert not np.any(once.success) and np.all(once.distance == np.float32(NOT_FOUND))
    assert np.all(more.success) and more.best_distance.shape == (40, 3)
    np.testing.assert_array_equal(more.best_distance[:20], once.best_distance)
    np.testing.assert_array_equal(more.images, again.images)
    assert not np.array_equal(more.images, other.images)
    nearest = np.sqrt(0.3 / np.prod(SHAPE))
    assert np.all(more.distance >= nearest * (1 - 1e-5)) and np.all(more.distance < 2 * nearest)
    assert len(np.unique(more.distance)) == 3  # every image has its own start


def test_one_key_per_image():
    images, labels = jnp.full((3, *SHAPE), 0.5), jnp.zeros(3, jnp.int32)
    keys, order = jax.random.split(jax.random.key(0), 3), np.asarray([2, 0, 1])
    call = jax.jit(functools.partial(fab, bowl, eps=0.2, steps=20, restarts=2))
    plain, permuted = call(images, labels, keys), call(images, labels, keys[order])
    np.testing.assert_array_equal(plain.distance[order], permuted.distance)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [True, False])
def test_flat_and_masked_networks_give_no_nan(norm, targeted):
    images, labels = batch()
    targets = (labels + 1) % CLASSES if targeted else None

    def flat(x):  # no gradient at all, as with a quantised input
        return predict(jax.lax.stop_gradient(jnp.round(x))) + 0.0 * jnp.sum(x)

    attack = lambda network, y: jax.jit(  # noqa: E731
        functools.partial(fab, network, norm=norm, eps=EPS[norm], steps=4, targets=targets)
    )(images, y)
    nothing = attack(flat, jnp.argmax(flat(images), axis=-1))
    assert not np.any(nothing.success) and np.all(np.isfinite(nothing.images))
    tiny, plain = attack(lambda x: predict(x) / 1e6, labels), attack(predict, labels)
    np.testing.assert_allclose(tiny.distance, plain.distance, rtol=1e-3)  # a plane has no scale


@pytest.mark.parametrize(
    "options, words",
    [
        ({"eps": -0.1}, "eps"),
        ({"eps": 8}, "8/255"),
        ({"norm": "l1"}, "norm"),
        ({"steps": 0}, "steps"),
        ({"restarts": 2}, "key"),
        ({"restarts": 0}, "restarts"),
        ({"eta": 0.5}, "eta"),
        ({"alpha_max": 2.0}, "alpha_max"),
        ({"beta": -1.0}, "beta"),
        ({"targets": jnp.zeros(2, jnp.int32)}, "targets"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        fab(predict, *batch(), **({"eps": 0.1} | options))


def test_bad_logits():
    with pytest.raises(ValueError, match="logits"):
        fab(lambda x: predict(x)[:, :1], *batch(), eps=0.1)
    with pytest.raises(ValueError, match="logits"):
        fab(lambda x: jnp.sum(x, axis=(1, 2, 3)), *batch(), eps=0.1)


def test_random_starts_are_half_eps_away():
    images = jnp.full((4, *SHAPE), 0.5)
    for norm in ("linf", "l2"):
        starts = jax.jit(_random_starts, static_argnums=3)(jax.random.key(0), images, 0.2, norm)
        np.testing.assert_allclose(size(starts - images, norm), 0.1, rtol=1e-5)
