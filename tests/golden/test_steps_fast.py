"""FGSM-RS and N-FGSM, the losses of IKL and GKL, and the cyclic schedule (see make_slice_fast.py).

Tolerances are those that golden/README2.md derives from the stored `spread`: the largest distance among the
original in float64 and five runs of an independent program.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import steps_common
from shared_files import HERE, load

from ard_jax import attacks, optim
from ard_jax.methods import dkl

pytestmark = pytest.mark.golden
SLICES = "steps_fast_slice.npz"
TRAIN_MODE_ATTACK = {"attack_bn": "train", "attack_bn_stats": "keep"}


def sgd(golden):
    """The schedule of the golden run as options."""
    return {
        "schedule": "cyclic",
        "lr": float(golden["setting/lr_max"]),
        "weight_decay": float(golden["setting/weight_decay"]),
    }


@pytest.fixture(scope="module", params=steps_common.slow_but("n_fgsm", ("fgsm_rs", "n_fgsm")))
def case(request):
    golden = steps_common.load(request.param, SLICES)
    eps, step = (float(golden[f"setting/{key}"]) for key in ("epsilon", "step_size"))
    radius = float(golden.get("setting/start_radius", eps))
    name = f"{request.param}_train"
    spec = attacks.make(name, eps=eps, step_size=step, start_radius=radius / eps)
    images = np.float64(golden["images_u8"]) / 255
    noise = np.clip(images + radius * golden["uniform_k"] / 128, 0, 1) - images
    result = steps_common.run(
        request.param, golden, spec, noise=noise, optim_options=sgd(golden),
        epochs=int(golden["setting/lr_steps"]), **TRAIN_MODE_ATTACK,
    )  # fmt: skip
    return golden, result


def check(values, golden, key):
    """One number of each step."""
    expected, spread = np.float64(golden[f"step/{key}"]), np.float64(golden[f"spread/step/{key}"])
    scale = max(1.0, np.abs(expected).max())
    allowed = np.full(len(expected), 20 * spread.max() + 1e-3 * scale)
    allowed[0] = 5 * spread[0] + 3e-6 * scale
    error = np.abs(np.float64(values) - expected)
    assert np.all(error <= allowed), (key, error, allowed)


def test_losses(case):
    golden, result = case
    check([m["loss"] for m in result.metrics], golden, "total")


def test_rates_and_momenta(case):
    golden, result = case
    check([m["lr"] for m in result.metrics], golden, "lr")
    progress = np.arange(steps_common.STEPS) / int(golden["setting/lr_steps"])
    momenta = optim.cycle(optim.OptimConfig(**sgd(golden)), progress)[1]
    np.testing.assert_allclose(momenta, golden["step/momentum"], rtol=1e-6)


def test_adversarial_images(case):
    golden, result = case
    adversarial = np.float64(result.adversarial)
    check(adversarial.sum((1, 2, 3, 4)), golden, "xadv_sum")
    distance = np.abs(adversarial - result.clean).mean((1, 2, 3, 4))
    check(distance, golden, "xadv_mean_abs_delta")
    differing = np.abs(adversarial[0, :4] - golden["xadv_step1_first4"]) > 1e-6
    assert np.mean(differing) <= 5 * golden["spread/xadv_step1_frac_px"] + 3e-4


@pytest.mark.parametrize("after", steps_common.AFTER)
@pytest.mark.parametrize("part", ("params", "batch_stats"))
def test_parameters_and_statistics(case, after, part):
    golden, result = case
    theirs = steps_common.weights(golden, f"after{after}/student")[part]
    ours = getattr(result.states[after - 1].student, part)
    name = {"params": "params", "batch_stats": "bn_stats"}[part]
    spreads = {a: golden[f"spread/after{a}/student_{name}_max_abs"] for a in steps_common.AFTER}
    scale = max(1.0, *(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs)))
    allowed = 20 * max(spreads.values()) + 1e-3 * scale
    if after == 1:
        allowed = 5 * spreads[1] + 3e-6 * scale
    assert steps_common.largest_difference(ours, theirs) <= allowed


@functools.cache
def arrays(full):
    """All entries of a full file, or those of it in the slice."""
    return dict(load(full, SLICES)[0])


def test_cyclic_schedule():
    golden = arrays("schedules2.npz")
    steps, highest = golden["fgsm_cyclic/setting"]
    rate = golden["fgsm_cyclic/lr"]
    config = optim.OptimConfig(schedule="cyclic", lr=float(highest))
    found = optim.cycle(config, np.arange(len(rate)) / steps)
    np.testing.assert_allclose(found[0], rate, atol=1e-6)
    np.testing.assert_allclose(found[1], golden["fgsm_cyclic/momentum"], rtol=1e-6)


def dkl_cases():
    names = dict.fromkeys(k.split("/")[2] for k in np.load(HERE / SLICES) if "/dkl/v" in k)
    return [(classes, name) for classes in ("c10", "c100") for name in names]


@pytest.mark.parametrize(("classes", "name"), dkl_cases())
def test_decoupled_kl(classes, name):
    """beta M + alpha C and its gradients, whose largest entries they may miss by 2e-6."""
    golden = arrays("losses2.npz")
    form, means, *numbers = re.fullmatch(
        r"v(\d)_(\w+)_alpha([\d.]+)_beta([\d.]+)(?:_gamma([\d.]+))?", name
    ).groups()
    alpha, beta, gamma = (float(n or 0) for n in numbers)
    config = dkl.DklConfig(form={"1": "ikl", "2": "gkl"}[form], alpha=alpha, beta=beta, gamma=gamma)
    given = load("losses.npz", "losses_slice.npz")[0]
    inputs = {n: given[f"{classes}/in/{n}"] for n in ("y", "zs_nat", "zs_adv")}
    prior = golden[f"{classes}/dkl/class_prior"]
    if means == "uniform":
        prior = np.full_like(prior, 1 / len(prior))

    def loss(z_nat, z_adv):
        error, soft = dkl.decoupled_kl(config, z_nat, z_adv, jnp.asarray(prior[inputs["y"]]))
        return config.beta * error + config.alpha * soft

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(inputs["zs_nat"], inputs["zs_adv"])
    want = {n: golden[f"{classes}/dkl/{name}/{n}"] for n in ("total", "grad_zs_nat", "grad_zs_adv")}
    np.testing.assert_allclose(value, want["total"], rtol=2e-6)
    for gradient, key in zip(gradients, ("grad_zs_nat", "grad_zs_adv"), strict=True):
        rows = want[key]
        largest = float(np.abs(gradient).max())
        np.testing.assert_allclose(gradient[: len(rows)], rows, rtol=0, atol=2e-6 * largest)


def test_class_means():
    """Of one batch; the original has NaN for classes that are not in it, ours the row before."""
    golden, given = arrays("losses2.npz"), load("losses.npz", "losses_slice.npz")[0]
    want = golden["c10/dkl/class_prior_of_batch_T4"]
    sums = dkl.class_sums(jnp.asarray(given["c10/in/zs_nat"]), given["c10/in/y"], 4.0)
    found = dkl.class_means(sums, jnp.full_like(sums, 0.25))
    np.testing.assert_allclose(found, np.where(np.isnan(want), 0.25, want), rtol=2e-6)
