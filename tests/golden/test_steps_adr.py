"""Six steps of IGDM on its bases, of SAAD and of ADR against the published code (make_slice_steps_adr.py).

Tolerances as the golden README asks: step 1 within 5 times the stored spread and 3e-6 of the scale, later
steps within 20 times the largest spread and 1e-3 of the scale, because one flipped pixel is a jump.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import steps_common
from shared_files import load

from ard_jax import attacks, losses, methods
from ard_jax.methods import adr, base, igdm, saad

pytestmark = pytest.mark.golden
SLICE = "steps_adr_slice.npz"
KEEPS = {"attack_bn": "train", "attack_bn_stats": "keep"}
# Run -> our metric -> what is stored; of values of each image the mean.
SCALARS = {
    "igdm_adaad": {"loss": "total", "loss_robust": "kl_adv", "loss_igdm": "igdm"},
    "igdm_rslad": {
        "loss": "total", "loss_robust": "kl_adv", "loss_clean": "kl_nat", "loss_igdm": "igdm",
    },
    "igdm_ard": {"loss": "total", "loss_distill": "kl_adv", "loss_igdm": "igdm"},
    "intended/igdm_ard": {"loss": "total", "loss_distill": "kl_adv", "loss_igdm": "igdm"},
    "igdm_repo": {"loss": "total", "loss_robust": "kl_adv", "loss_igdm": "igdm"},
    "intended/igdm_repo": {"loss": "total", "loss_robust": "kl_adv", "loss_igdm": "igdm"},
    "saad": {
        "loss": "total", "loss_robust": "kl_adv", "weight": "weight",
        "teacher_entropy": "teacher_entropy",
    },
    "adr_at": {
        "loss": "total", "label_temperature": "T", "label_share": "lam",
        "label_share_used": "lam_per_image",
    },
    "adr_trades": {
        "loss": "total", "loss_ce": "loss_nat", "loss_kl": "loss_robust", "label_temperature": "T",
        "label_share": "lam", "label_share_used": "lam_per_image",
    },
}  # fmt: skip


class Settings:
    """The golden run's hyper-parameters."""

    def __init__(self, golden):
        self.golden = golden

    def __getitem__(self, name):
        return float(self.golden[f"setting/{name}"])

    def attack(self, name, **more):
        return attacks.make(
            name,
            eps=self["epsilon"],
            step_size=self["step_size"],
            steps=int(self["num_steps"]),
            **more,
        )

    def optimiser(self):
        return {"lr": self["lr"], "weight_decay": self["weight_decay"]}

    def uniform_start(self):
        """What takes x to clip(x + eps u)."""
        x = self.golden["images_u8"].astype(np.float32) / np.float32(255)
        u = np.float32(self["epsilon"]) * (self.golden["uniform_k"] / np.float32(128))
        return (np.clip(x + u, 0, 1) - x).astype(np.float32)


def igdm_case(base_method, golden):
    """IGDM as the copy of its code has it, on this base, or as SAAD's code ("repo")."""
    of, variant = Settings(golden), "saad" if base_method == "repo" else "released"
    method = {"repo": "adaad"}.get(base_method, base_method)
    points = {} if base_method == "repo" else {"beta": of["beta"], "gamma": of["gamma"]}
    arguments = {}
    if base_method == "ard":
        points["gamma"] = of["beta"]
        arguments = {"noise": of.uniform_start()}
    options = {
        "adaad": {"kl_reduction": "batchmean"},
        "rslad": {"kl_scale": 10.0},
        "ard": {"kl_reduction": "batchmean", "temperature": 1.0},
    }[method]
    arguments |= {
        "options": options, "optim_options": of.optimiser(), "epoch": golden["setting/epoch_emulated"],
        "igdm": methods.Igdm(
            weight=of["alpha"], ramp_epochs=int(of["ramp_length"]), variant=variant, **points
        ),
    }  # fmt: skip
    return method, of.attack(f"{method}_train"), arguments


def saad_case(golden):
    of = Settings(golden)
    options = {
        "entropy_order": of["renyi_order"], "beta": of["beta"], "igdm_weight": of["igdm_alpha"],
    }  # fmt: skip
    arguments = {
        "options": options, "optim_options": of.optimiser(), "epoch": golden["setting/epoch_emulated"],
        "epochs": int(of["epochs"]),
    }  # fmt: skip
    return "saad", of.attack("saad_train", linear_weight=of["lambda_inner"]), arguments


def adr_case(form, golden):
    of = Settings(golden)
    options = {
        "temperature_first": of["T_high"], "temperature_last": of["T_low"],
        "share_first": of["lam_low"], "share_last": of["lam_high"], "decay": of["ema_decay"],
    }  # fmt: skip
    config = adr.AdrConfig(**options)

    def attacked(parts, state, batch, key):
        soft, _ = adr.soft_labels(config, parts, state, batch)
        return base.attack(parts, state, batch, key, teacher_logits=losses.as_logits(soft))

    u = golden["uniform_k"] / np.float32(128)
    one_sided = (np.float32(0.001) * (u + 1) / 2).astype(np.float32)
    name = "adr" if form == "at" else "adr_trades"
    arguments = {
        "options": options | ({} if form == "at" else {"beta": of["beta"]}),
        "optim_options": of.optimiser() | {"nesterov": bool(of["nesterov"])},
        "noise": of.uniform_start() if form == "at" else one_sided, "attacked": attacked,
        "epochs": int(of["schedule_epochs"]), "steps_per_epoch": int(of["schedule_steps_per_epoch"]),
    }  # fmt: skip
    return name, of.attack(f"{name}_train"), arguments | KEEPS


@functools.cache
def run(name):
    """(golden arrays, our six steps)."""
    file = name.removeprefix("intended/")
    golden = steps_common.load(file, SLICE, name.removesuffix(file))
    kind, _, form = file.partition("_")
    make = {"igdm": igdm_case, "adr": adr_case}.get(kind)
    method, attack, arguments = make(form, golden) if make else saad_case(golden)
    return golden, steps_common.run(method, golden, attack, **arguments)


def tolerance(spread, scale, first):
    """The golden README's; `spread`: of the step, or of all of them where it is not the first."""
    scale = max(1.0, scale)
    return 5 * float(spread) + 3e-6 * scale if first else 20 * float(spread) + 1e-3 * scale


def assert_steps_agree(golden, theirs, values):
    """[6] values, or means of values of each image, against `step/{theirs}`."""
    expected = np.float64(golden[f"step/{theirs}"])
    scale, spread = np.max(np.abs(expected)), np.float64(golden[f"spread/step/{theirs}"])
    error = np.abs(values - expected.reshape(len(expected), -1).mean(1))
    assert error[0] <= tolerance(spread[0], scale, True), (theirs, error)
    assert np.all(error[1:] <= tolerance(spread.max(), scale, False)), (theirs, error)


def assert_networks_agree(golden, net, after, ours):
    """Parameters and statistics after a step, array by array."""
    theirs = steps_common.weights(golden, f"after{after}/{net}")
    for part, stored in (("params", "params"), ("batch_stats", "bn_stats")):
        key = f"{net}_{stored}_max_abs"
        spread = max(golden[f"spread/after{n}/{key}"] for n in ((1,) if after == 1 else (1, 3, 6)))
        pairs = zip(*map(jax.tree.leaves, (ours[part], theirs[part])), strict=True)
        for mine, other in pairs:
            error = float(jnp.max(jnp.abs(mine - other)))
            limit = tolerance(spread, float(jnp.max(jnp.abs(other))), after == 1)
            assert error <= limit, (net, part, other.shape, error, limit)


@pytest.mark.parametrize(
    ("name", "ours"),
    steps_common.slow_but(
        "saad", [(name, ours) for name, found in SCALARS.items() for ours in found]
    ),
)
def test_scalars(name, ours):
    golden, result = run(name)
    values = np.array([m[ours] for m in result.metrics], np.float64)
    assert_steps_agree(golden, SCALARS[name][ours], values)


def test_the_gradient_matching_of_saad():
    golden, result = run("saad")
    of, epochs = Settings(golden), np.float64(golden["setting/epoch_emulated"])
    ramp = of["igdm_alpha"] * epochs / of["epochs"]
    values = ramp * np.array([m["loss_igdm"] for m in result.metrics], np.float64)
    assert_steps_agree(golden, "igdm_scaled", values)


@pytest.mark.parametrize("name", steps_common.slow_but("saad", SCALARS))
def test_adversarial_fingerprints(name):
    golden, result = run(name)
    adversarial = np.float64(result.adversarial)
    delta = np.abs(adversarial - result.clean).mean((1, 2, 3, 4))
    assert_steps_agree(golden, "xadv_mean_abs_delta", delta)
    assert_steps_agree(golden, "xadv_sum", adversarial.sum((1, 2, 3, 4)))


@pytest.mark.parametrize("after", steps_common.AFTER)
@pytest.mark.parametrize("name", steps_common.slow_but("saad", SCALARS))
def test_student(name, after):
    golden, result = run(name)
    student = result.states[after - 1].student
    assert_networks_agree(golden, "student", after, student.variables)


@pytest.mark.parametrize("after", steps_common.AFTER)
@pytest.mark.parametrize("name", steps_common.slow_but("saad", ["adr_at", "adr_trades"]))
def test_average(name, after):
    golden, result = run(name)
    assert_networks_agree(golden, "ema", after, result.states[after - 1].method["average"])


# Losses as functions of the logits.


@functools.cache
def stored_losses():
    stored, full = load("losses2.npz", SLICE)
    return {k if full else k.removeprefix("losses/"): stored[k] for k in stored}


@functools.cache
def inputs(classes):
    found = dict(load("losses.npz", "losses_slice.npz")[0]) | stored_losses()
    prefix = f"{classes}/in/"
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def entries(prefix):
    return {k.removeprefix(prefix): v for k, v in stored_losses().items() if k.startswith(prefix)}


def assert_loss_agrees(want, names, loss, given):
    """Value and gradients; of gradients at 100 classes the slice holds the first rows."""
    arguments = [given[name] for name in names]
    value, gradients = jax.jit(jax.value_and_grad(loss, tuple(range(len(names)))))(*arguments)
    np.testing.assert_allclose(value, want["total"], rtol=2e-6, atol=2e-6)
    for name, gradient in zip(names, gradients, strict=True):
        expected = want[f"grad_{name}"]
        limit = 2e-6 * max(np.max(np.abs(gradient)), 1e-3)
        np.testing.assert_allclose(gradient[: len(expected)], expected, rtol=0, atol=limit)


@pytest.mark.parametrize("classes", ["c10", "c100"])
def test_igdm_loss(classes):
    given = inputs(classes)

    def loss(zs_adv, zs_minus):
        return jnp.mean(igdm.matching(given["zr_adv"], given["zr_minus"], zs_adv, zs_minus))

    assert_loss_agrees(entries(f"{classes}/igdm/"), ("zs_adv", "zs_minus"), loss, given)


@pytest.mark.parametrize("case", ["shannon_beta0", "order2_beta.5", "order.5_beta2"])
@pytest.mark.parametrize("classes", ["c10", "c100"])
def test_saad_loss(classes, case):
    given, want = inputs(classes), entries(f"{classes}/saad/{case}/")
    order, beta, alpha, ramp = map(float, want["order_beta_alpha_ramp"])
    config = saad.SaadConfig(entropy_order=order, beta=beta)
    h = saad.entropy(given["zr_adv"], order)
    w, rest = saad.weights(config, h)
    np.testing.assert_allclose(h, want["entropy"], rtol=2e-6, atol=2e-6)
    # A difference of entropies: what rounds them is the scale of its error.
    np.testing.assert_allclose(w, want["weight"], rtol=2e-6, atol=2e-6 * 5 * np.max(np.abs(h)))
    np.testing.assert_allclose(1 - rest, want["weight_norm"], rtol=0, atol=1e-5)
    soft = saad.Logits(given["zr_adv"], given["zr_minus"], given["zt_nat"])

    def loss(zs_adv, zs_minus, zs_nat):
        return saad.objective(config, saad.Logits(zs_adv, zs_minus, zs_nat), soft, alpha * ramp)[0]

    assert_loss_agrees(want, ("zs_adv", "zs_minus", "zs_nat"), loss, given)


@pytest.mark.parametrize("when", ["start", "mid", "end"])
@pytest.mark.parametrize("classes", ["c10", "c100"])
def test_adr_labels_and_losses(classes, when):
    given, want = inputs(classes), entries(f"{classes}/adr/{when}/")
    high, low, first, last, step, total = want["Thigh_Tlow_lamlow_lamhigh_step_total"]
    temperature = adr.cosine(float(high), float(low), jnp.int32(step), int(total))
    share = adr.cosine(float(first), float(last), jnp.int32(step), int(total))
    np.testing.assert_allclose([temperature, share], want["T_lam"], rtol=1e-6)
    soft, _ = adr.rectified_labels(given["zn_nat"], given["y"], temperature, share)
    np.testing.assert_allclose(soft, want["soft_label"], rtol=0, atol=2e-6)
    assert_loss_agrees(want, ("zs_adv",), lambda z: adr.cross_entropy(z, soft), given)

    def trades(zs_adv, zs_nat):
        kl = jnp.mean(losses.trades_kl(zs_nat, zs_adv))
        return adr.cross_entropy(zs_nat, soft) + 6 * kl

    want = entries(f"{classes}/adr_trades/{when}/")
    assert_loss_agrees(want, ("zs_adv", "zs_nat"), trades, given)


def test_adr_schedule():
    stored, _ = load("schedules2.npz", SLICE)
    first, last, epochs, steps = stored["adr_cosine/setting"]
    total = int(epochs * steps)
    values = adr.cosine(float(first), float(last), jnp.arange(total), total)
    np.testing.assert_allclose(values, stored["adr_cosine/value"], rtol=1e-6)
