"""Square: schedule and windows, budget and flags, chunks, compaction, curves, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax.attacks.auto_attack import square_moves, square_windows
from ard_jax.attacks.auto_attack.square import square, square_result, square_run, square_start
from ard_jax.attacks.threat_model import ThreatModel

BATCH, SHAPE, CLASSES, QUERIES = 6, (8, 8, 3), 4, 40
EPS = {"linf": 0.2, "l2": 2.0}
NORMS = ("linf", "l2")

_RNG = np.random.default_rng(0)
_FIRST = _RNG.normal(size=(int(np.prod(SHAPE)), 16)).astype(np.float32) / 8
_SECOND = _RNG.normal(size=(16, CLASSES)).astype(np.float32)
_IMAGES = _RNG.uniform(size=(BATCH, *SHAPE)).astype(np.float32)
_IMAGES[0], _IMAGES[1] = 0.0, 1.0  # both ends of the range


def predict(images):
    """A fixed two-layer net."""
    return jnp.tanh((images.reshape(images.shape[0], -1) - 0.5) @ _FIRST) @ _SECOND


def batch():
    images = jnp.asarray(_IMAGES)
    return images, jnp.argmax(predict(images), axis=-1)


@functools.cache
def programs(norm, shared=True, rescale=False):
    """(start, run a chunk of 10, the whole attack), compiled."""
    start = functools.partial(square_start, predict, norm=norm)
    chunk = functools.partial(
        square_run, predict, norm=norm, queries=10, shared=shared, rescale=rescale
    )
    whole = functools.partial(
        square, predict, norm=norm, queries=QUERIES, shared=shared, rescale=rescale
    )
    return jax.jit(start), jax.jit(chunk), jax.jit(whole)


def run(norm, shared=True, seed=0, **options):
    return jax.tree.map(
        np.asarray,
        programs(norm, shared)[2](*batch(), jax.random.key(seed), eps=EPS[norm], **options),
    )


def states(norm, shared=True, eps=None, seed=0):
    """The state at the start and after every 10 queries."""
    start, chunk, _ = programs(norm, shared)
    key, eps = jax.random.key(seed), EPS[norm] if eps is None else eps
    found = [start(*batch(), key, eps=eps)]
    for first in range(0, QUERIES, 10):
        found.append(chunk(found[-1], *batch(), key, eps=eps, first_query=first, budget=QUERIES))
    return [jax.tree.map(np.asarray, s) for s in found]


def size(delta, norm):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.abs(flat).max(axis=1) if norm == "linf" else np.linalg.norm(flat, axis=1)


def test_schedule_of_autoattack():
    """p and side at 32x32, first and last query of each of the table's eight columns."""
    last = (10, 50, 200, 500, 1000, 2000, 4000, 4999)
    first = (0, *(i + 1 for i in last[:-1]))
    p = (0.8, 0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625)
    side = (29, 20, 14, 10, 7, 5, 4, 3)
    table = square_windows.sides(0.8, 32, 32, "linf")
    for queries in (first, last):
        levels = [int(square_windows.level(i)) for i in queries]
        assert levels == list(range(8))
        np.testing.assert_allclose([0.8 / 2**n for n in levels], p)
        assert tuple(table[levels]) == side
    assert [int(square_windows.level(i)) for i in (6000, 6001, 8000, 8001)] == [7, 8, 8, 9]


def test_schedule_rescaled_to_the_budget():
    for budget in (100, 300, 5000, 1_000_000):
        queries = np.unique(np.linspace(0, budget - 1, 57).astype(int))
        ours = [int(square_windows.level(jnp.asarray(i), jnp.asarray(budget))) for i in queries]
        raw = [int(square_windows.level(int(i) * 10_000 // budget)) for i in queries]
        assert ours == raw


@pytest.mark.parametrize("shape", [(32, 32), (28, 28), (8, 8), (3, 3), (2, 9), (1, 1), (224, 224)])
@pytest.mark.parametrize("norm", NORMS)
def test_window_sides_fit_the_image(shape, norm):
    table = square_windows.sides(0.8, *shape, norm)
    assert table.min() >= 1 and table.max() <= min(shape)
    assert np.all(np.diff(table) <= 0)
    if norm == "l2":  # odd, and 3 where the image has room for it
        assert np.all(table % 2 == 1) and (min(shape) < 3 or table.min() >= 3)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 9])
def test_bump(side):
    hill = square_windows.bump(side)
    assert hill.shape == (side, side) and hill.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(hill), 1, rtol=1e-6)
    assert np.all(hill[: side // 2] > 0) and np.all(hill[side // 2 :] < 0)


def test_bump_of_side_five():
    """By hand: rectangles 2x5 and 3x5 round their middles, weights 1, 1/4, 1/9."""
    one, two, three = 1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9
    upper = np.asarray([[three, two, two, two, three], [three, two, one, two, three]])
    lower = np.asarray([upper[0], upper[1], upper[0]])
    both = np.concatenate([upper / np.linalg.norm(upper), -lower / np.linalg.norm(lower)])
    np.testing.assert_allclose(square_windows.bump(5), both / np.sqrt(2), rtol=1e-5)


def test_tiles_cover_the_middle_once():
    for shape, side, corners in (((32, 32), 6, 25), ((28, 28), 5, 25), ((8, 8), 1, 49)):
        found, positions = square_windows.tiles(*shape)
        count = np.zeros(shape, int)
        for row, col in positions:
            count[row : row + found, col : col + found] += 1
        assert found == side and len(positions) == corners and count.max() == 1
    assert square_windows.tiles(2, 2) == (1, [(0, 0), (0, 1), (1, 0), (1, 1)])


def test_windows_are_where_they_are_drawn():
    row, col = jnp.asarray([0, 3]), jnp.asarray([2, 5])
    mask = np.asarray(square_windows.mask(row, col, jnp.asarray(3), 8, 9))[..., 0]
    padded = jnp.zeros((4, 4)).at[:3, :3].set(jnp.arange(1.0, 10).reshape(3, 3))
    placed = np.asarray(square_windows.placed(padded, row, col, 8, 9))[..., 0]
    for i, (r, c) in enumerate([(0, 2), (3, 5)]):
        expected = np.zeros((8, 9))
        expected[r : r + 3, c : c + 3] = np.arange(1.0, 10).reshape(3, 3)
        np.testing.assert_array_equal(mask[i], expected > 0)
        np.testing.assert_array_equal(placed[i], expected)


def test_offsets_leave_out_the_last_one():
    uniforms = jnp.asarray([0.0, 0.3, np.nextafter(np.float32(1), np.float32(0))])
    found = square_moves._offset(uniforms, 32, jnp.asarray(29))
    np.testing.assert_array_equal(found, [0, 0, 2])  # 3 would fit
    np.testing.assert_array_equal(square_moves._offset(uniforms, 5, jnp.asarray(5)), 0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shared", [True, False])
def test_budget_range_and_flags(norm, shared):
    (images, labels), result = batch(), run(norm, shared)
    assert result.images.dtype == np.float32 and result.images.shape == images.shape
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert np.all(size(result.images - np.asarray(images), norm) <= EPS[norm] + 1e-6)
    wrong = np.argmax(predict(jnp.asarray(result.images)), axis=-1) != np.asarray(labels)
    np.testing.assert_array_equal(result.success, wrong)
    assert result.success.any() and not result.success.all()  # else this tests nothing
    np.testing.assert_array_equal(
        result.images[~result.success], np.asarray(images)[~result.success]
    )
    assert np.all(result.queries[~result.success] == QUERIES + 1)
    assert np.all(result.queries[result.success] <= QUERIES + 1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shared", [True, False])
def test_margin_never_grows_and_is_that_of_the_images(norm, shared):
    images, labels = batch()
    found = states(norm, shared)
    margins = np.stack([s.margin for s in found])
    assert np.all(np.diff(margins, axis=0) <= 0) and np.any(margins[-1] < margins[0])
    for state in found:
        logits = np.array(predict(jnp.asarray(state.images)))
        own = logits[np.arange(BATCH), labels]
        logits[np.arange(BATCH), labels] = -np.inf
        np.testing.assert_allclose(state.margin, own - logits.max(axis=1), atol=1e-5)
        assert state.images.min() >= 0 and state.images.max() <= 1
        assert np.all(size(state.images - np.asarray(images), norm) <= EPS[norm] + 1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_chunks_change_nothing(norm):
    end, whole = states(norm)[-1], run(norm)
    np.testing.assert_array_equal(end.queries, whole.queries)
    result = square_result(predict, jax.tree.map(jnp.asarray, end), *batch())
    np.testing.assert_array_equal(result.success, whole.success)
    np.testing.assert_allclose(result.images, whole.images, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_compaction_changes_nothing(norm):
    """Rows dropped after 10 queries, with keys that belong to the images."""
    start, chunk, _ = programs(norm)
    (images, labels), key, eps = batch(), jax.random.key(2), EPS[norm]
    own = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(9), jnp.arange(BATCH))
    run = lambda state, rows, first: chunk(  # noqa: E731
        state, images[rows], labels[rows], key, eps=eps, first_query=first, budget=QUERIES,
        image_keys=own[rows],
    )  # fmt: skip
    everything, left = np.arange(BATCH), np.asarray([4, 1, 5])
    state = run(start(images, labels, key, eps=eps, image_keys=own), everything, 0)
    whole = run(state, everything, 10)
    part = run(jax.tree.map(lambda a: a[left], state), left, 10)
    np.testing.assert_array_equal(part.queries, whole.queries[left])
    np.testing.assert_allclose(part.images, whole.images[left], atol=1e-6)
    assert np.any(np.asarray(whole.images) != np.asarray(state.images))


def test_broken_images_are_left_alone():
    found = states("linf")
    for before, after in zip(found[:-1], found[1:], strict=True):
        broken = before.margin <= 0
        np.testing.assert_array_equal(after.images[broken], before.images[broken])
        np.testing.assert_array_equal(after.queries[broken], before.queries[broken])
        assert np.all(after.queries[after.margin > 0] == before.queries[after.margin > 0] + 10)


def test_stops_when_all_are_broken():
    images, labels = batch()
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return predict(x)

    wrong = (labels + 1) % CLASSES  # margins below 0 at once
    result = square(counted, images, wrong, jax.random.key(0), eps=0.01, queries=1000)
    jax.effects_barrier()
    assert np.all(result.success) and np.all(result.queries == 1)
    # Two looks at the network before, the first candidate, and the test at the end.
    assert len(calls) == 4


def test_budget_ends_a_chunk():
    start, chunk, _ = programs("linf")
    key, eps = jax.random.key(0), 1e-4
    state = chunk(start(*batch(), key, eps=eps), *batch(), key, eps=eps, first_query=0, budget=7)
    np.testing.assert_array_equal(state.queries, 8)


def test_dead_rows_cost_nothing():
    start, chunk, _ = programs("linf")
    key, alive = jax.random.key(0), np.arange(BATCH) % 2 == 0
    state = start(*batch(), key, eps=1e-4, alive=jnp.asarray(alive))
    state = chunk(state, *batch(), key, eps=1e-4, first_query=0, budget=QUERIES)
    np.testing.assert_array_equal(state.queries, np.where(alive, 11, 1))


def test_shared_windows_are_shared():
    """From a start at the images themselves: which pixels a proposal moves, and where to."""
    images = jnp.full((3, *SHAPE), 0.5)
    labels = jnp.zeros(3, jnp.int32)
    flat = lambda x: jnp.zeros((x.shape[0], 2)).at[:, 0].set(1.0)  # noqa: E731
    masks = {}
    for shared in (True, False):
        propose = square_moves.proposer(
            images, jax.random.key(0), ThreatModel(0.1), square_moves.SquareOptions(
                shared=shared, image_keys=jax.random.split(jax.random.key(1), 3)
            ), 100,
        )  # fmt: skip
        state = square_start(flat, images, labels, jax.random.key(0), eps=0.0)
        moved = np.asarray(jax.jit(jax.vmap(propose, (None, 0)))(state, jnp.arange(20, 26))) - 0.5
        assert set(np.unique(np.round(np.abs(moved), 6))) == {0.0, np.float32(0.1)}
        masks[shared] = moved
    assert np.all(masks[True] == masks[True][:, :1])
    assert not np.all(masks[False] == masks[False][:, :1])


@pytest.mark.parametrize("norm", NORMS)
def test_deterministic_for_a_key(norm):
    first, again, other = run(norm), run(norm), run(norm, seed=1)
    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)


def test_masked_gradients_do_not_matter():
    """Logits / 1e6 of a network without any gradient: found like the plain one."""
    images, labels = batch()
    masked = lambda x: predict(jax.lax.stop_gradient(x)) / 1e6  # noqa: E731
    result = square(masked, images, labels, jax.random.key(0), eps=EPS["linf"], queries=QUERIES)
    np.testing.assert_array_equal(result.success, run("linf").success)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 3, 2)])
def test_small_images(norm, shape):
    images = jnp.full((2, *shape), 0.5)
    network = lambda x: jnp.stack([0.1 + jnp.sum(x, (1, 2, 3)), 0.2 * x[:, 0, 0, 0]], 1)  # noqa: E731
    result = square(
        network, images, jnp.zeros(2, jnp.int32), jax.random.key(0), eps=0.1, norm=norm, queries=12
    )
    assert np.all(np.isfinite(result.images)) and np.all(result.queries == 13)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"eps": -0.1}, "eps"),
        ({"eps": 8}, "8/255"),
        ({"norm": "l1"}, "norm"),
        ({"queries": -1}, "queries"),
        ({"p_init": 1.5}, "p_init"),
        ({"key": None}, "key"),
        ({"key": jax.random.split(jax.random.key(0), BATCH)}, "image_keys"),
        ({"image_keys": jax.random.split(jax.random.key(0), 2)}, "image_keys"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        square(
            predict, *batch(), **({"key": jax.random.key(0), "eps": 0.1, "queries": 2} | options)
        )


def test_bad_logits():
    for bad in (lambda x: predict(x)[:, :1], lambda x: jnp.sum(x, axis=(1, 2, 3))):
        with pytest.raises(ValueError, match="logits"):
            square(bad, *batch(), jax.random.key(0), eps=0.1, queries=2)


def test_signs_do_not_follow_the_window_s_position():
    """Drawn from the same bits they would: then half of all moves could never be proposed."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(2000))
    below = square_moves._uniforms(keys, 5) < 0.5
    signs = square_moves._signs(keys, (3,))
    for column in range(5):
        for channel in range(3):
            correlation = np.corrcoef(below[:, column], signs[:, channel])[0, 1]
            assert abs(correlation) < 0.1, (column, channel)
