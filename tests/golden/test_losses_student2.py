"""MAIL's, GAIRAT's and DGAD's losses and weights, HAT's schedules, as the authors' code (README: 2e-6)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared_files import load

from ard_jax import losses, optim
from ard_jax.methods import base, dgad, gairat, mail

pytestmark = pytest.mark.golden
CLASSES = ("c10", pytest.param("c100", marks=pytest.mark.slow))
MAIL = {
    "at": (mail.MailConfig, mail.at_loss),
    "trades": (mail.MailTradesConfig, mail.trades_loss),
    "mart": (mail.MailMartConfig, mail.mart_loss),
}
DGAD = ("full", "short_batch", "no_alp", "mnv2_released", "mnv2_intended", "none_wrong")


@functools.cache
def golden():
    """The losses' inputs, and what is stored of these methods."""
    inputs = dict(load("losses.npz", "losses_slice.npz")[0])
    inputs = {k: v for k, v in inputs.items() if "/in/" in k}
    return inputs | dict(load("losses2.npz", "losses_hat_slice.npz")[0])


def entries(prefix):
    return {k.removeprefix(prefix): v for k, v in golden().items() if k.startswith(prefix)}


def close(value, reference):
    """Two right float32 programs: 2e-6 of the largest entry. The slice has some gradients' first rows."""
    value, reference = np.atleast_1d(value), np.atleast_1d(reference)
    largest = np.max(np.abs(reference))
    np.testing.assert_allclose(value[: len(reference)], reference, rtol=0, atol=2e-6 * largest)


def values_and_gradients(objective, config, given, soft):
    """(loss, metrics, gradients by zs_nat and zs_adv) of a method's loss."""
    batch = {"label": jnp.asarray(given["y"]), "epoch": jnp.asarray(77)}

    def loss(zs_nat, zs_adv):
        return objective(config, base.Views(zs_nat, zs_adv), soft, batch)

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (total, metrics), (grad_nat, grad_adv) = gradient(given["zs_nat"], given["zs_adv"])
    return total, metrics, {"grad_zs_nat": grad_nat, "grad_zs_adv": grad_adv}


def test_margin():
    given = entries("c10/in/")
    close(losses.probability_margin(given["zs_adv"], given["y"]), golden()["c10/mail/margin"])


@pytest.mark.parametrize("form", MAIL)
def test_mail(form):
    given, want = entries("c10/in/"), entries(f"c10/mail/{form}/")
    bias, slope, beta = (float(v) for v in want["bias_slope_beta"])
    record, objective = MAIL[form]
    options = {"variant": "released", "bias": bias, "slope": slope}
    config = record(**options | ({} if form == "at" else {"beta": beta}))
    total, _, gradients = values_and_gradients(objective, config, given, base.Views())
    close(total, want["total"])
    weights = mail.example_weights(config, given["zs_adv"], given["y"], jnp.asarray(77))
    close(weights, want["weight"])
    for name, gradient in gradients.items():
        if name in want:
            close(gradient, want[name])


@pytest.mark.parametrize("form", ["tanh", "sigmoid", "discrete"])
@pytest.mark.parametrize(("steps", "middle"), [(10, ""), (9, "_K9")])
def test_gairat_weights(form, steps, middle):
    prefix = f"c10/gairat/{form}{middle}_lambda"
    stored = entries(prefix)
    assert stored or middle and form != "tanh"
    for value, want in stored.items():
        config = gairat.GairatConfig(form=form, lambda_value=float(value))
        close(gairat.example_weights(config, jnp.arange(steps + 1.0), steps), want)


@pytest.mark.parametrize("case", DGAD)
@pytest.mark.parametrize("classes", CLASSES)
def test_dgad(classes, case):
    given, want = entries(f"{classes}/in/"), entries(f"{classes}/dgad/{case}/")
    full, beta = want["bs_beta"]
    if case == "no_alp":  # the code's switch for the term; the stored beta is not used
        beta = 0.0
    zt_nat = want.get("in_zt_nat", given["zt_dgad"])
    repaired = [losses.corrected_logits(z, given["y"]) for z in (zt_nat, given["zr_adv"])]
    for logits, name in zip(repaired, ("zt_nat_repaired", "zr_adv_repaired"), strict=True):
        np.testing.assert_array_equal(logits, want[name])
    form = "mobilenet_v2" if case.startswith("mnv2") else "resnet"
    variant = "released" if case == "mnv2_released" else "paper"
    config = dgad.DgadConfig(
        beta=float(beta), full_batch=int(full), student_form=form, variant=variant
    )
    soft = base.Views(zt_nat, given["zr_adv"])
    total, metrics, gradients = values_and_gradients(dgad.objective, config, given, soft)
    close(total, want["total"])
    names = {"loss_clean": "loss_clean", "loss_robust": "loss_adv", "loss_consistency": "loss_alp"}
    for ours, theirs in names.items():
        if theirs in want:
            close(metrics[ours], want[theirs])
    wrong = len(given["y"]) * (1 - metrics["teacher_accuracy"])
    np.testing.assert_allclose(wrong, want["n_misclassified"], atol=1e-4)
    for name, gradient in gradients.items():
        close(gradient, want[name])


@pytest.mark.parametrize(("name", "share"), [("hat_cyclic", 0.25), ("hat_cosinew", 0.025)])
def test_one_cycle_of_hat(name, share):
    """Per step of 5 epochs of 7, and per epoch; the rise takes this share of them."""
    stored = load("schedules2.npz", "losses_hat_slice.npz")[0]
    *counts, largest = stored[f"{name}/setting"]
    count = int(np.prod(counts))
    rate, added = optim.one_cycle(jnp.arange(count), share * count - 1, count - 1)
    np.testing.assert_allclose(largest * rate, stored[f"{name}/lr"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(0.9 + added, stored[f"{name}/momentum"], rtol=0, atol=1e-7)
