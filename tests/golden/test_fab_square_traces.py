"""FAB-T and Square, followed step by step, against AutoAttack's own runs in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from make_rounding import FAR
from shared_files import autoattack_rounding, load

from ard_jax.attacks.auto_attack import fab_projections, square_windows
from ard_jax.attacks.auto_attack.fab import fab
from ard_jax.attacks.auto_attack.square import square, square_run, square_start
from ard_jax.attacks.auto_attack.square_moves import SquareDraws

# Optimised, as these loops run for longer than that takes.
pytestmark = [pytest.mark.golden, pytest.mark.usefixtures("optimised_programs")]

EPS = 8 / 255
FAB_ROUNDING = 1e-6  # of a distance, in pixel units: a few roundings of a pixel
# float32 logits of up to 10, two programs: a few units in the last place (1e-6) each.
MARGIN = 2e-5


@functools.cache
def golden():
    """Entries of the full file where it is at hand, else of the slice in this folder."""
    arrays, is_full = load("autoattack.npz", "autoattack_slice.npz")
    wanted = ("apgd/x", "apgd/y", "square/", "fab/", "proj_linf/")
    arrays = {k: arrays[k] for k in arrays if k.startswith(wanted)}
    if not is_full:  # grey levels
        arrays["apgd/x"] = arrays["apgd/x"].astype(np.float32) / np.float32(255)
    return arrays


@functools.cache
def predict():
    weights, is_full = load("cnn_a_adv_weights.npz", "attacks_slice.npz")
    prefix = "" if is_full else "cnn_a/weights/"
    return nets.cnn_a_predict(
        {k.removeprefix(prefix): weights[k] for k in weights if k.startswith(prefix)}
    )


def batch():
    return jnp.asarray(golden()["apgd/x"]), jnp.asarray(golden()["apgd/y"])


def highest(function):
    """`function` compiled and run at full float32 precision, on any device."""

    def call(*args):
        with jax.default_matmul_precision("highest"):
            return jax.tree.map(np.asarray, jax.jit(function)(*args))

    return call


def test_box_projection():
    """Zero weights, tiny weights and planes that miss the box are among the cases."""
    d = highest(fab_projections.project_linf_box)(*(golden()[f"proj_linf/{n}"] for n in "twb"))
    # The gap <w,t> - b is a float32 sum of 60 terms; so is its error in units of the displacement.
    np.testing.assert_allclose(d, golden()["proj_linf/d"], rtol=0, atol=1e-6)


@functools.cache
def fab_run():
    network = predict()
    run = lambda x, y, t: fab(network, x, y, eps=EPS, targets=t, trace=True)  # noqa: E731
    return highest(run)(*batch(), golden()["fab/y_target"])


def test_fab_target_is_the_runner_up():
    order = np.argsort(highest(predict())(batch()[0]), axis=-1)
    rank = int(golden()["fab/target_rank"])
    np.testing.assert_array_equal(order[:, -rank], golden()["fab/y_target"])


def rounding(what):
    """How far two right runs may be apart: each may be off the float64 run by as much as a member.

    A ReLU unit, a weight of the plane or an argmax within rounding of its boundary falls either way, by the
    processor, and there a path forks: make_rounding.py.
    """
    return 2 * autoattack_rounding(f"fab/{what}", len(golden()["apgd/y"]))


def test_fab_distance_before_every_step():
    ours, theirs = fab_run().best_distance, golden()["fab/best_dist_before_iter"]
    assert ours.shape == theirs.shape
    difference = np.abs(np.minimum(ours, FAR) - np.minimum(theirs, FAR))
    allowed = rounding("best_distance") + FAB_ROUNDING
    assert np.all(difference <= allowed), (difference / allowed).max(axis=0)


def test_fab_result():
    result, final = fab_run(), golden()["fab/final_dist"]
    assert np.all(np.abs(result.distance - final) <= rounding("distance") + FAB_ROUNDING)
    sure = rounding("success") == 0
    np.testing.assert_array_equal(result.success[sure], (final <= EPS)[sure])
    delta = np.abs(result.images - np.asarray(batch()[0])).reshape(len(final), -1).max(axis=1)
    np.testing.assert_allclose(
        delta, np.where(result.success, result.distance, 0), rtol=0, atol=1e-7
    )


def test_fab_images():
    if "fab/adv" not in golden():
        pytest.skip("the slice has no FAB images; needs the full golden file")
    found = fab_run().success
    difference = np.abs(fab_run().images - golden()["fab/adv"]).reshape(len(found), -1).max(axis=1)
    assert np.all(difference[found] <= (rounding("images") + 1e-5)[found])


def draws():
    return SquareDraws(*(golden()[f"square/{n}"] for n in ("init_sign", "row", "col", "sign")))


@functools.cache
def square_replay():
    """(margins before each query [Q,B], the state at the end)."""
    network, (x, y), eps = predict(), batch(), golden()["square/eps"]
    queries = len(golden()["square/row"])

    def run(state, first):
        return square_run(
            network, state, x, y, None, eps=eps, first_query=first, queries=1, budget=queries,
            draws=draws(),
        )  # fmt: skip

    def replay():
        state = square_start(network, x, y, None, eps=eps, draws=draws())
        end, margins = jax.lax.scan(lambda s, i: (run(s, i), s.margin), state, jnp.arange(queries))
        return margins, end

    return highest(replay)()


def test_square_window_sides():
    table = square_windows.sides(0.8, 32, 32, "linf")
    levels = [int(square_windows.level(i)) for i in range(len(golden()["square/side"]))]
    np.testing.assert_array_equal(table[levels], golden()["square/side"])


def test_square_margins_of_every_query():
    margins, end = square_replay()
    np.testing.assert_allclose(margins, golden()["square/margin_min"], rtol=0, atol=MARGIN)
    np.testing.assert_allclose(end.margin, golden()["square/final_margin"], rtol=0, atol=MARGIN)


def test_square_queries_and_images():
    end = square_replay()[1]
    np.testing.assert_array_equal(end.queries, golden()["square/n_queries_used"])
    if "square/x_best" in golden():
        np.testing.assert_allclose(end.images, golden()["square/x_best"], rtol=0, atol=1e-7)


def test_square_at_once_equals_the_chunks():
    network, (x, y), eps = predict(), batch(), golden()["square/eps"]
    queries = len(golden()["square/row"])
    run = lambda: square(network, x, y, None, eps=eps, queries=queries, draws=draws())  # noqa: E731
    result, end = highest(run)(), square_replay()[1]
    np.testing.assert_array_equal(result.success, golden()["square/final_margin"] <= 0)
    np.testing.assert_array_equal(result.queries, end.queries)
    np.testing.assert_allclose(
        result.images,
        np.where(result.success[:, None, None, None], end.images, x),
        rtol=0,
        atol=1e-7,
    )
