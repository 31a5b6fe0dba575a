"""Attacks against adversarial images that the papers' PyTorch code produced, on two networks."""

import functools

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from shared_files import HERE, load

from ard_jax import attacks, losses

# Optimised, as these loops run for longer than that takes.
pytestmark = [pytest.mark.golden, pytest.mark.usefixtures("optimised_programs")]

NETS = ("small", "cnn_a")
# Library name -> name in the golden file's hp/ entries (fgsm has none: its step is eps).
HYPER = {
    "fgsm": None, "bim": "bim", "pgd_sat": "pgd_sat", "pgd_trades": "pgd_trades", "cw_inf": "cw",
    "tpgd": "tpgd", "ciard_train": "ciard", "trades_train": "trades", "dpgd": "dpgd",
}  # fmt: skip
# Their losses are rounded where they are small differences (of two predictions that start as one, of a Dice
# over the batch), which no moved network shows: the stored noise of the images, float32 against float64, is
# the measure, and about one forked image beyond.
OWN_ROUNDING, FORKED_VALUES = ("trades_train", "dpgd"), 60
# What the cross-entropy of a float32 network is rounded by, relative to 1 + its value.
CE_ROUNDING = 3e-6


@functools.cache
def golden():
    """Entries of the full files where they are at hand, else of the slice in this folder."""
    arrays, is_full = load("attacks.npz", "attacks_slice.npz")
    if is_full:
        cnn_a, _ = load("cnn_a_adv_weights.npz", "attacks_slice.npz")
        return dict(arrays) | {f"cnn_a/weights/{k}": cnn_a[k] for k in cnn_a}
    entries = dict(arrays)
    levels = {k: v for k, v in entries.items() if v.dtype == np.uint8}  # images in 256 grey levels
    entries |= {k: v.astype(np.float32) / np.float32(255) for k, v in levels.items()}
    return entries | {"x": entries["x_u8"]}


def weights_of(net):
    prefix = f"{net}/weights/"
    return {k.removeprefix(prefix): v for k, v in golden().items() if k.startswith(prefix)}


@functools.cache
def predict_of(net):
    return {"small": nets.small_predict, "cnn_a": nets.cnn_a_predict}[net](weights_of(net))


def batch(name=""):
    """The stored images; DPGD couples its batch and needs all 64, of the others a slice has fewer."""
    count = 64 if name == "dpgd" else len(golden()["start_gauss_k"])
    return jnp.asarray(golden()["x"][:count]), jnp.asarray(golden()["y"][:count])


def spec_of(name):
    eps = "hp/trades_eps" if name == "trades_train" else "hp/eps"
    return attacks.make(name, eps=float(golden()[eps]))


def start_of(name, images, eps):
    """The recorded start; the evaluation attacks cut it to [0,1], the training attacks do not."""
    if name in ("pgd_sat", "pgd_trades", "tpgd"):
        noise = golden()["start_uniform_k"].astype(np.float32) / np.float32(128)
        return jnp.clip(images + np.float32(eps) * noise, 0.0, 1.0)
    if name in ("ciard_train", "trades_train"):
        noise = golden()["start_gauss_k"].astype(np.float32) / np.float32(32)
        return images + np.float32(0.001) * noise
    return None


@functools.cache
def adversarial(net, name):
    """Our adversarial images of the whole stored batch; attacks with one program share it."""
    images, labels = batch(name)
    spec = spec_of(name)
    start = start_of(name, images, spec.eps)
    return program(net, spec.program)(images, labels, start, spec.eps, spec.step_size)


@functools.cache
def program(net, static):
    spec = attacks.PgdAttack("golden", "golden", eps=0.1, step_size=0.1, **dict(static))
    predict = predict_of(net)

    @jax.jit
    def run(images, labels, start, eps, step_size):
        return spec.run(predict, images, labels, start=start, eps=eps, step_size=step_size)

    return run


@pytest.mark.parametrize("net", NETS)
def test_network_and_its_input_gradient(net):
    images, labels = batch()
    predict = predict_of(net)
    np.testing.assert_allclose(predict(images), golden()[f"{net}/logits"], rtol=1e-5, atol=1e-5)
    want = golden()[f"{net}/grad_ce_sum"]
    n = len(want)
    total = lambda x: jnp.sum(losses.cross_entropy(predict(x), labels[:n]))  # noqa: E731
    np.testing.assert_allclose(jax.grad(total)(images[:n]), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HYPER)
def test_steps_and_step_sizes_are_the_papers(name):
    spec = spec_of(name)
    if HYPER[name] is None:
        assert (spec.steps, spec.step_size) == (1, spec.eps)
    else:
        assert spec.steps == golden()[f"hp/{HYPER[name]}_n"]
        np.testing.assert_allclose(spec.step_size, golden()[f"hp/{HYPER[name]}_step"], rtol=2e-7)


@pytest.mark.parametrize("net", NETS)
def test_least_likely_class(net):
    images, labels = batch()
    target = attacks.least_likely_class(predict_of(net)(images), labels)
    np.testing.assert_array_equal(target, golden()[f"{net}/tpgd_target"])


def rounding(net, name, what):
    """How far two right runs may be apart, [B]: each is off the float64 run by at most as much as a member.

    A sign step turns a gradient at rounding level into another pixel value, and from there on that image's
    path forks, by the processor. Which images can comes from make_rounding.py.
    """
    spread = np.load(HERE / "rounding_slice.npz")[f"{net}/{name}/{what}"]
    return 2 * spread[: len(batch(name)[0])]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", HYPER)
def test_adversarial_images(net, name):
    want = golden()[f"{net}/adv/{name}"]
    distance = np.abs(np.asarray(adversarial(net, name))[: len(want)] - want)
    assert np.max(distance) <= 2 * spec_of(name).eps + 1e-6
    if name in OWN_ROUNDING:
        allowed = 3 * golden()[f"{net}/noise_frac_px/{name}"] * want.size + FORKED_VALUES
        assert np.sum(distance > 1e-5) <= allowed
        return
    sure = rounding(net, name, "images")[: len(want)] < 1e-5
    assert np.mean(sure) >= 0.5
    assert np.max(distance[sure]) <= 1e-5


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", HYPER)
def test_scores_of_the_adversarial_images(net, name):
    _, labels = batch(name)
    logits = predict_of(net)(adversarial(net, name))
    stored = jnp.asarray(golden()[f"{net}/adv_logits/{name}"])
    ce, want = (np.asarray(losses.cross_entropy(z, labels)) for z in (logits, stored))
    if name in OWN_ROUNDING:
        allowed = 3 * golden()[f"{net}/noise_ce_abs/{name}"] * (64 / len(labels)) + 1e-5
        assert abs(np.mean(ce - want)) <= allowed
    else:
        allowed = rounding(net, name, "ce") + CE_ROUNDING * (1 + want)
        assert np.all(np.abs(ce - want) <= allowed), (np.abs(ce - want) / allowed).max()
    right, want_right = (np.asarray(jnp.argmax(z, -1) == labels) for z in (logits, stored))
    assert np.sum(right != want_right) <= (1 if name == "trades_train" else 0)
    if f"{net}/adv_ce/{name}" in golden():  # of all 64 images
        np.testing.assert_allclose(
            ce.mean(), golden()[f"{net}/adv_ce/{name}"], rtol=1e-6, atol=np.mean(allowed)
        )
        assert abs(np.mean(right) - golden()[f"{net}/adv_acc/{name}"]) <= np.mean(
            right != want_right
        )
