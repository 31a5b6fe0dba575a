"""Losses against numbers that the papers' PyTorch code produced (golden README: how closely)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared_files import load

from ard_jax import losses

pytestmark = pytest.mark.golden


@functools.cache
def golden():
    """All entries: of the full file where it is at hand, else of the slice in this folder."""
    return dict(load("losses.npz", "losses_slice.npz")[0])


def entries(prefix):
    return {k.removeprefix(prefix): v for k, v in golden().items() if k.startswith(prefix)}


def close(value, reference, absolute=1e-6):
    np.testing.assert_allclose(value, reference, rtol=1e-5, atol=absolute)


def close_gradient(value, reference):
    np.testing.assert_allclose(value, reference, rtol=0, atol=1e-6)


CLASSES = ("c10", "c100")
PUSH_CASES = (
    "mixed", "none_wrong", "all_wrong", "one_wrong", "small_kd", "tiny_kd", "exact_kd", "large_kd",
    "tiny_push", "decade_below", "decade_above",
)  # fmt: skip
# Here the total is a difference of terms of order 1 (or the loss a residual of the 1e-5 constant).
DELICATE = ("exact_kd", "tiny_kd", "tiny_push")


def test_every_stored_push_case_is_tested():
    stored = {k.split("/")[2] for k in golden() if k.startswith("c10/push/")}
    assert stored == set(PUSH_CASES)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("temperature", ["T1.0", "T1.5"])
def test_kl(classes, temperature):
    given, want = entries(f"{classes}/in/"), entries(f"{classes}/kl/{temperature}/")

    def loss(zs):
        kl = losses.kl_divergence(zs, given["zr_adv"], float(temperature[1:]))
        return losses.reduce_kl(kl, zs.shape[-1])

    value, gradient = jax.jit(jax.value_and_grad(loss))(given["zs_adv"])
    close(value, want["value"])
    close_gradient(gradient, want["grad_zs_adv"])


def ciard_terms(zs_nat, zs_adv, zr_adv, zn_nat, zn_adv, y):
    """L1 + L2 - s L3 and its parts, as eminentgu/CIARD assembles them."""
    num_classes = zs_nat.shape[-1]
    l1 = losses.reduce_kl(losses.kl_divergence(zs_adv, zr_adv), num_classes)
    l2 = losses.reduce_kl(losses.kl_divergence(zs_nat, zn_nat), num_classes)
    kl, wrong = losses.push_loss(zs_adv, zn_adv, y)
    l3 = losses.masked_class_mean(kl, wrong, num_classes)
    s = jnp.where(jnp.any(wrong), losses.decade_scale(l1, l2, l3), 0.0)
    total = l1 + l2 - s * l3
    return total, {"L1": l1, "L2": l2, "L3": l3, "s": s, "n_wrong": jnp.sum(wrong), "total": total}


@jax.jit
def ciard_gradients(zs_nat, zs_adv, *rest):
    """The terms, d total / d both student logits, d L3 / d adversarial student logits."""
    gradients, terms = jax.grad(ciard_terms, (0, 1), has_aux=True)(zs_nat, zs_adv, *rest)
    return terms, gradients, jax.grad(lambda z: ciard_terms(zs_nat, z, *rest)[1]["L3"])(zs_adv)


@jax.jit
def temperature_step(teachers, temp_adv, temp_nat, rate):
    """One balance step: entropies at the old temperatures, then the new temperatures."""
    h_adv, h_nat = (
        jnp.mean(losses.negative_entropy(z, t)) / z.shape[-1]
        for z, t in zip(teachers, (temp_adv, temp_nat), strict=True)
    )
    return h_adv, h_nat, *losses.balance_temperatures(temp_adv, temp_nat, h_adv, h_nat, rate)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("case", PUSH_CASES)
def test_push(classes, case):
    want = entries(f"{classes}/push/{case}/")
    names = ("zs_nat", "zs_adv", "zr_adv", "zn_nat", "zn_adv", "y")
    given = entries(f"{classes}/in/") | {k: v for k, v in want.items() if k in names}
    inputs = [given[n] for n in names]
    terms, (grad_nat, grad_adv), grad_l3 = ciard_gradients(*inputs)
    for name in ("L1", "L2", "L3", "total"):
        close(terms[name], want[name], absolute=1e-7 if case in DELICATE else 1e-6)
    assert terms["s"] == want["s"]
    assert terms["n_wrong"] == want["n_wrong"]
    close_gradient(grad_adv, want["grad_total_zs_adv"])
    close_gradient(grad_nat, want["grad_total_zs_nat"])
    if "grad_L3_zs_adv" in want:
        close_gradient(grad_l3, want["grad_L3_zs_adv"])


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("case", ["start1", "mid", "top", "fast"])
def test_temperature_balance(classes, case):
    want = entries(f"{classes}/temps/{case}/")
    temp_adv, temp_nat, rate = (jnp.float32(v) for v in want["start_adv_nat_lr"])
    for teachers, expected in zip(want["teacher_logits"], want["Hadv_Hnat_Tadv_Tnat"], strict=True):
        found = temperature_step(teachers, temp_adv, temp_nat, rate)
        _, _, temp_adv, temp_nat = found
        close(jnp.stack(found), expected)


@pytest.mark.parametrize("stored, rule", [("mtard", "mtard"), ("bmtard_ciard", "ciard")])
@pytest.mark.parametrize("rate", ["0.025", "0.5"])
def test_weight_balance(stored, rule, rate):
    pairs = golden()["weights/L_adv_L_nat"]
    want = golden()[f"weights/{stored}_lr{rate}/w_adv_w_nat"]
    w_adv, w_nat = jnp.float32(0.5), jnp.float32(0.5)
    update = jax.jit(functools.partial(losses.balance_weights, rate=float(rate), rule=rule))
    for (loss_adv, loss_nat), expected in zip(pairs, want, strict=True):
        w_adv, w_nat = update(w_adv, w_nat, loss_adv, loss_nat, *pairs[0])
        close(jnp.stack([w_adv, w_nat]), expected)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", ["trades", "trades_kl"])
def test_trades(classes, name):
    given, want = entries(f"{classes}/in/"), entries(f"{classes}/{name}/")

    def loss(zs_nat, zs_adv):
        kl = jnp.mean(losses.trades_kl(zs_nat, zs_adv))
        if name == "trades_kl":
            return kl
        return jnp.mean(losses.cross_entropy(zs_nat, given["y"])) + want["beta"] * kl

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(given["zs_nat"], given["zs_adv"])
    close(value, want["value"])
    close_gradient(gradients[0], want["grad_zs_nat"])
    close_gradient(gradients[1], want["grad_zs_adv"])


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("confidence", [50, 0])
def test_cw(classes, confidence):
    given, want = entries(f"{classes}/in/"), entries(f"{classes}/cw/conf{confidence}/")
    loss = lambda z: -jnp.mean(losses.cw_margin(z, given["y"], confidence))  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(given["zs_adv"])
    close(value, want["value"])
    close_gradient(gradient, want["grad_zs_adv"])


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", ["dlr", "dlr_targeted"])
def test_dlr(classes, name):
    given, want = entries(f"{classes}/in/"), entries(f"{classes}/{name}/")

    def loss(z):
        if name == "dlr":
            return losses.dlr(z, given["y"])
        return losses.targeted_dlr(z, given["y"], want["y_target"])

    close(jax.jit(loss)(given["zs_adv"]), want["per_sample"])
    gradient = jax.grad(lambda z: jnp.sum(loss(z)))(given["zs_adv"])
    # These gradients reach 46, where 1e-6 is less than the spacing of float32.
    np.testing.assert_allclose(gradient, want["grad_sum"], rtol=5e-7, atol=1e-6)
