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
    """Of gradients at 100 classes the slice holds the first rows."""
    np.testing.assert_allclose(value[: len(reference)], reference, rtol=0, atol=1e-6)


CLASSES = ("c10", pytest.param("c100", marks=pytest.mark.slow))
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
    stored = want["grad_sum"]
    np.testing.assert_allclose(gradient[: len(stored)], stored, rtol=5e-7, atol=1e-6)


def check(classes, name, loss, *inputs):
    """Value and gradients of a loss of the stored logits."""
    given, want = entries(f"{classes}/in/"), entries(f"{classes}/{name}/")
    arrays = [given[i] for i in inputs]
    value, gradients = jax.jit(jax.value_and_grad(loss, tuple(range(len(inputs)))))(*arrays)
    close(value, want["value"])
    for gradient, i in zip(gradients, inputs, strict=True):
        close_gradient(gradient, want[f"grad_{i}"])


def mean_kl(student, teacher, reduction, temperature=1.0, log_eps=0.0):
    kl = losses.kl_divergence(student, teacher, temperature, temperature, log_eps)
    return losses.reduce_kl(kl, student.shape[-1], reduction)


@pytest.mark.parametrize("classes", CLASSES)
def test_mart(classes):
    y, beta = entries(f"{classes}/in/")["y"], entries(f"{classes}/mart/")["beta"]
    bce = lambda z_adv: jnp.mean(losses.boosted_cross_entropy(z_adv, y))  # noqa: E731
    check(classes, "mart_bce", bce, "zs_adv")

    def loss(z_nat, z_adv):
        return bce(z_adv) + beta * jnp.mean(losses.mart_kl(z_nat, z_adv, y))

    check(classes, "mart", loss, "zs_nat", "zs_adv")


@pytest.mark.parametrize("classes", CLASSES)
def test_rslad(classes):
    given, want = entries(f"{classes}/in/"), entries(f"{classes}/rslad/")
    kl = lambda z: mean_kl(z, given["zt_nat"], "mean_classes", log_eps=1e-5)  # noqa: E731
    close(kl(given["zs_adv"]), want["kl_adv"])
    close(kl(given["zs_nat"]), want["kl_nat"])
    loss = lambda z_nat, z_adv: 5 / 6 * kl(z_adv) + 1 / 6 * kl(z_nat)  # noqa: E731
    check(classes, "rslad", loss, "zs_nat", "zs_adv")


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("alpha, t", [(1.0, 30.0), (0.9, 5.0)])
def test_ard(classes, alpha, t):
    given = entries(f"{classes}/in/")

    def loss(z_nat, z_adv):
        kl = t**2 * mean_kl(z_adv, given["zt_nat"], "mean_classes", t)
        return alpha * kl + (1 - alpha) * jnp.mean(losses.cross_entropy(z_nat, given["y"]))

    check(classes, f"ard/alpha{alpha}_temp{t}", loss, "zs_nat", "zs_adv")


def reliability(teacher_logits, labels, beta):
    """IAD's weight: the teacher's probability of the label, to the power beta."""
    return jnp.exp(-beta * losses.cross_entropy(teacher_logits, labels))


@pytest.mark.parametrize("classes", CLASSES)
def test_iad1(classes):
    given, want = entries(f"{classes}/in/"), entries(f"{classes}/iad1/")
    alpha, t, beta = (float(v) for v in want["alpha_temp_beta"])
    weight = reliability(given["zr_adv"], given["y"], beta)
    close(weight, want["weight"])

    def loss(z_nat, z_adv):  # as released: the teacher's term is not weighted
        kl = t**2 * mean_kl(z_adv, given["zt_nat"], "batchmean", t)
        own = jnp.mean((1 - weight) * losses.kl_divergence(z_adv, z_nat, log_eps=0.0))
        ce = jnp.mean(losses.cross_entropy(z_nat, given["y"]))
        return alpha * (kl + own) + (1 - alpha) * ce

    check(classes, "iad1", loss, "zs_nat", "zs_adv")


@pytest.mark.parametrize("classes", CLASSES)
def test_iad2(classes):
    given, want = entries(f"{classes}/in/"), entries(f"{classes}/iad2/")
    a1, a2, t, beta = (float(v) for v in want["alpha1_alpha2_temp_beta"])
    weight = reliability(given["zr_adv"], given["y"], beta)

    def loss(z_nat, z_adv):
        kl = functools.partial(losses.kl_divergence, z_adv, log_eps=0.0)
        mixed = weight * kl(given["zr_adv"], t, t) + (1 - weight) * kl(z_nat, t, t)
        ce = jnp.mean(losses.cross_entropy(z_adv, given["y"]))
        clean = mean_kl(z_adv, given["zn_adv"], "batchmean", t)
        return (1 - a1 - a2) * ce + t**2 * (a1 * jnp.mean(mixed) + a2 * clean)

    check(classes, "iad2", loss, "zs_nat", "zs_adv")


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("stored, reduction", [("mean", "mean_classes"), ("batchmean",) * 2])
@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_adaad(classes, stored, reduction, alpha):
    given = entries(f"{classes}/in/")

    def loss(z_nat, z_adv):
        adversarial = mean_kl(z_adv, given["zr_adv"], reduction)
        return alpha * adversarial + (1 - alpha) * mean_kl(z_nat, given["zt_nat"], reduction)

    check(classes, f"adaad/{stored}_alpha{alpha}", loss, "zs_nat", "zs_adv")


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("form", losses.DICE_FORMS)
def test_dice(classes, form):
    given, want = entries(f"{classes}/in/"), entries(f"{classes}/dice/")
    y, teacher = given["y"], jax.nn.softmax(given["zr_adv"])
    for lam in ("0.0", "0.25", "0.45", "-0.05"):
        j = functools.partial(losses.dpgd_objective, labels=y, lam=float(lam), form=form)
        check(classes, f"dice/lam{lam}", lambda z, j=j: jnp.sum(j(z)), "zs_adv")
    dice = functools.partial(losses.dice_loss, labels=y, form=form)
    check(classes, "dice/all", lambda z: jnp.sum(dice(z)), "zs_adv")
    check(classes, "dice/unsquared_all", lambda z: jnp.mean(dice(z, kind="unsquared")), "zs_adv")
    check(classes, "dice/per_sample_mean", lambda z: jnp.mean(dice(z, kind="per_sample")), "zs_adv")
    soft = lambda z: jnp.mean(losses.soft_dice(z, teacher, form=form))  # noqa: E731
    check(classes, "dice/soft_target_mean", soft, "zs_adv")

    right = jnp.argmax(given["zs_adv"], axis=-1) == y
    assert jnp.sum(right) == want["n_right"]
    for name, mask in (("right", right), ("wrong", ~right), ("empty_set", jnp.zeros(len(y)))):
        close(jnp.sum(dice(given["zs_adv"], mask=mask)), want[f"L_{name}"])
