"""Auto-PGD, followed step by step, against AutoAttack's own run in PyTorch from the same start."""

import functools

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from make_slice_autoattack import start_of
from shared_files import autoattack_rounding, load

from ard_jax.attacks.auto_attack.apgd import apgd, checkpoint_lengths

# Optimised, as these loops run for longer than that takes.
pytestmark = [pytest.mark.golden, pytest.mark.usefixtures("optimised_programs")]

LOSSES = {"ce": "cross_entropy", "dlr": "dlr", "dlr-targeted": "targeted_dlr"}
# What the loss of a float32 network itself is rounded by, where its value counts and where its inputs do.
LOSS_ROUNDING = 1e-6


@functools.cache
def golden():
    """Entries of the full file where it is at hand, else of the slice in this folder."""
    arrays, is_full = load("autoattack.npz", "autoattack_slice.npz")
    arrays = {k: arrays[k] for k in arrays if k.startswith("apgd/")}
    if not is_full:
        x = arrays["apgd/x"].astype(np.float32) / np.float32(255)
        start = start_of(x, arrays["apgd/x_init_k"], arrays["apgd/eps"])
        arrays |= {"apgd/x": x, "apgd/x_init": start}
    return arrays


@functools.cache
def predict():
    weights, is_full = load("cnn_a_adv_weights.npz", "attacks_slice.npz")
    prefix = "" if is_full else "cnn_a/weights/"
    return nets.cnn_a_predict(
        {k.removeprefix(prefix): weights[k] for k in weights if k.startswith(prefix)}
    )


@functools.cache
def run(name):
    network = predict()

    @jax.jit
    def call(images, labels, start, targets, eps):
        targets = targets if LOSSES[name] == "targeted_dlr" else None
        return apgd(
            network, images, labels, eps=eps, loss=LOSSES[name], targets=targets, start=start,
            trace=True,
        )  # fmt: skip

    names = ("x", "y", "x_init", "dlr-targeted/y_target", "eps")
    return jax.tree.map(np.asarray, call(*(jnp.asarray(golden()[f"apgd/{n}"]) for n in names)))


def rounding(name, what):
    """How far two right runs may be apart: each may be off the float64 run by as much as a member.

    A sign of a gradient, a ReLU unit or a step-size decision within rounding of its boundary falls either
    way, by the processor, and there a path forks. Which images can, when, and how far they then differ comes
    from our loop in float64 on slightly moved networks (make_rounding.py), not from any processor.
    """
    return 2 * autoattack_rounding(f"apgd/{name}/{what}", len(golden()["apgd/y"]))


@pytest.mark.parametrize("trace", ("loss", "loss_best"))
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_at_every_step(name, trace):
    want = golden()[f"apgd/{name}/{trace}"]
    steps = len(want)  # the slice holds the first ones of dlr only
    difference = np.abs(getattr(run(name), trace)[:steps] - want)
    allowed = rounding(name, trace)[:steps] + LOSS_ROUNDING * (1 + np.abs(want))
    assert np.all(difference <= allowed), (difference / allowed).max(axis=0)


@pytest.mark.parametrize("name", LOSSES)
def test_the_step_size_of_every_step(name):
    want = golden()[f"apgd/{name}/step_size"]
    sure = rounding(name, "step_size")[: len(want)] == 0
    np.testing.assert_allclose(run(name).step_size[: len(want)][sure], want[sure], rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_which_images_stay_correct(name):
    sure = rounding(name, "success") == 0
    want = golden()[f"apgd/{name}/still_correct"]
    np.testing.assert_array_equal(~run(name).success[sure], want[sure])


def test_the_adversarial_images_are_the_stored_ones():
    if "apgd/ce/x_best_adv" not in golden():
        pytest.skip("only the full golden file holds the images")
    got, broken = run("ce").images, run("ce").success
    want = np.where(broken[:, None, None, None], golden()["apgd/ce/x_best_adv"], golden()["apgd/x"])
    sure = rounding("ce", "images") < 1e-5
    assert sure.any()  # 100 steps fork somewhere in most images
    np.testing.assert_allclose(got[sure], want[sure], rtol=0, atol=1e-5)


def test_checkpoints():
    lengths = checkpoint_lengths(100)
    assert np.flatnonzero(lengths).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert lengths[lengths > 0].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
