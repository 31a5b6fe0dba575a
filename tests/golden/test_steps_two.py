"""LBGAT and PeerAiD, whose second network learns too: six steps and the losses (make_slice_two.py).

Tolerances are those of the files: at the first step 5 times the spread of right float32 programs, and 3e-6
of the largest value or of 1, or twice what rounding does to LBGAT's attack (make_slice_two.py) where that
is more; later, where one pixel that falls otherwise is a jump, 20 times the largest spread, and 1e-3.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import steps_common
from shared_files import HERE, SHARED, load

from ard_jax import attacks
from ard_jax.methods import lbgat, peeraid

pytestmark = pytest.mark.golden

# Method -> attack, partner, its name in the initial networks, options (ours: theirs), scalars (ours: theirs).
CASES = {
    "lbgat": (
        "trades_train", "guide", "clean_teacher", {"beta": "beta"},
        {"loss": "total", "loss_mse": "mse", "loss_guide": "ce_guide", "loss_kl": "kl"},
    ),
    "peeraid": (
        "rslad_train", "peer", "robust_teacher",
        {"temperature": "temperature", "peer_temperature": "re_kd_temperature", "peer_hard": "gamma1",
         "peer_soft": "gamma2", "hard": "lamb1", "soft": "lamb2", "own": "lamb3"},
        {"loss": "total", "loss_peer": "loss_peer", "loss_student": "loss_student"},
    ),
}  # fmt: skip
SCALARS = [(name, ours, theirs) for name, case in CASES.items() for ours, theirs in case[4].items()]
# A share of pixels whose gradient is at rounding level: that of most attacks (steps_common).
FEW_PIXELS = 3e-4


def stored(prefix):
    """The entries of the slice under a prefix."""
    part = np.load(HERE / "steps_two_slice.npz")
    return {k.removeprefix(prefix): part[k] for k in part.files if k.startswith(prefix)}


@functools.cache
def run(name):
    """(golden arrays, our six steps)."""
    attack, role, file, options, _ = CASES[name]
    golden = steps_common.load(name)
    if not (SHARED / "golden" / f"{name}_steps.npz").is_file():
        golden |= stored(f"{name}/")
    golden |= {f"rounding/{k}": v for k, v in stored(f"{name}/rounding/").items()}
    first = {k: v for k, v in golden.items() if k.startswith(f"init/{file}/")}
    golden |= {k.replace(file, role): v for k, v in first.items()}
    value = lambda key: float(golden[f"setting/{key}"])  # noqa: E731
    chosen = {ours: value(theirs) for ours, theirs in options.items()}
    if name == "peeraid":
        chosen["peer_rate"] = value("lr_peer") / value("lr_student")
    lr = value("lr_student" if name == "peeraid" else "lr")
    spec = attacks.make(
        attack, eps=value("epsilon"), step_size=value("step_size"),
        steps=int(golden["setting/num_steps"]),
    )  # fmt: skip
    return golden, steps_common.run(
        name, golden, spec, options=chosen,
        optim_options={"lr": lr, "weight_decay": value("weight_decay")},
    )  # fmt: skip


def at_first(golden, name, scale):
    """Tolerance of what `spread/{name}` is of, after one step."""
    spread = float(np.ravel(golden[f"spread/{name}"])[0])
    return max(5 * spread + 3e-6 * scale, 2 * float(golden.get(f"rounding/{name}", 0.0)))


def tolerances(golden, key, expected):
    """[6], of `step/{key}`."""
    scale = max(1.0, float(np.abs(expected).max()))
    found = np.full(len(expected), 20 * golden[f"spread/step/{key}"].max() + 1e-3 * scale)
    found[0] = at_first(golden, f"step/{key}", scale)
    return found


@pytest.mark.parametrize(("name", "ours", "theirs"), steps_common.slow_but("lbgat", SCALARS))
def test_scalars(name, ours, theirs):
    golden, result = run(name)
    expected = np.float64(golden[f"step/{theirs}"])
    error = np.abs(np.float64([m[ours] for m in result.metrics]) - expected)
    assert np.all(error <= tolerances(golden, theirs, expected)), error


@pytest.mark.parametrize("key", ["xadv_mean_abs_delta", "xadv_sum"])
@pytest.mark.parametrize("name", steps_common.slow_but("lbgat", CASES))
def test_adversarial_fingerprints(name, key):
    golden, result = run(name)
    adversarial = np.float64(result.adversarial)
    if key == "xadv_sum":
        ours = adversarial.sum((1, 2, 3, 4))
    else:
        ours = np.abs(adversarial - result.clean).mean((1, 2, 3, 4))
    expected = np.float64(golden[f"step/{key}"])
    assert np.all(np.abs(ours - expected) <= tolerances(golden, key, expected)), ours - expected


@pytest.mark.parametrize("name", steps_common.slow_but("lbgat", CASES))
def test_first_adversarial_images(name):
    golden, result = run(name)
    different = np.abs(result.adversarial[0][:4] - golden["xadv_step1_first4"]) > 1e-5
    assert different.mean() <= max(5 * float(golden["spread/xadv_step1_frac_px"]), FEW_PIXELS)


@pytest.mark.parametrize("after", steps_common.AFTER)
@pytest.mark.parametrize(
    ("name", "net"),
    steps_common.slow_but(
        "lbgat", [(name, net) for name, case in CASES.items() for net in ("student", case[1])]
    ),
)
def test_parameters_and_statistics(name, net, after):
    golden, result = run(name)
    state, theirs = result.states[after - 1], steps_common.weights(golden, f"after{after}/{net}")
    ours = state.student if net == "student" else state.teachers[net]
    for part, key in {"params": "params", "batch_stats": "bn_stats"}.items():
        spreads = [
            float(golden[f"spread/after{n}/{net}_{key}_max_abs"]) for n in steps_common.AFTER
        ]
        for a, b in zip(*map(jax.tree.leaves, (getattr(ours, part), theirs[part])), strict=True):
            scale = max(1.0, float(jnp.abs(b).max()))
            allowed = 20 * max(spreads) + 1e-3 * scale
            if after == 1:
                allowed = at_first(golden, f"after1/{net}_{key}_max_abs", scale)
            assert float(jnp.abs(a - b).max()) <= allowed, part


@functools.cache
def losses_of(classes):
    """(inputs of a loss, stored losses) at 10 or 100 classes, gradients perhaps of their first rows."""
    given = {
        k: v
        for k, v in load("losses.npz", "losses_slice.npz")[0].items()
        if k.startswith(f"{classes}/in/")
    }
    given = {k.split("/")[-1]: v for k, v in given.items()}
    found = stored(f"losses/{classes}/")
    full = SHARED / "golden" / "losses2.npz"
    if full.is_file():
        own = {k.removeprefix(f"{classes}/"): v for k, v in np.load(full).items() if classes in k}
        found = {k: own[k] for k in found}
    return given | {"zg_nat": found["in/zg_nat"]}, found


def agree(ours, theirs):
    """Within 2e-6 of the largest entry."""
    ours = np.asarray(ours)[: len(theirs)] if theirs.ndim else np.asarray(ours)
    assert np.all(np.abs(ours - theirs) <= 2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("classes", ["c10", "c100"])
@pytest.mark.parametrize("beta", [0, 6])
def test_loss_of_lbgat(beta, classes):
    given, want = losses_of(classes)

    @jax.jit
    def evaluate(*logits):
        def total(*logits):
            return lbgat.objective(lbgat.LbgatConfig(beta=beta), *logits, given["y"])

        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*logits)

    names = ("zs_adv", "zs_nat", "zg_nat")
    (value, terms), grads = evaluate(*(jnp.asarray(given[n]) for n in names))
    agree(value, want[f"lbgat/beta{beta}/total"])
    agree(terms["loss_mse"] + terms["loss_guide"], want[f"lbgat/beta{beta}/mse_plus_ce"])
    agree(terms["loss_kl"], want[f"lbgat/beta{beta}/kl"])
    for name, gradient in zip(names, grads, strict=True):
        agree(gradient, want[f"lbgat/beta{beta}/grad_{name}"])


@pytest.mark.parametrize("classes", ["c10", "c100"])
@pytest.mark.parametrize("case", ["c10_script", "other"])
def test_loss_of_peeraid(case, classes):
    given, want = losses_of(classes)
    t, tp, g1, g2, l1, l2, l3 = (float(v) for v in want[f"peeraid/{case}/t_tp_g1_g2_l1_l2_l3"])
    config = peeraid.PeeraidConfig(
        temperature=t, peer_temperature=tp, peer_hard=g1, peer_soft=g2, hard=l1, soft=l2, own=l3
    )

    @jax.jit
    def evaluate(*logits):
        def total(peer, target, adv, nat):
            of_peer = peeraid.peer_loss(config, peer, target, given["y"])
            own = peeraid.student_loss(config, adv, nat, peer, given["y"])
            return of_peer + own, (of_peer, own)

        return jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True)(*logits)

    inputs = (given[name] for name in ("zr_adv", "zs_adv", "zs_adv", "zs_nat"))
    (value, (of_peer, own)), grads = evaluate(*map(jnp.asarray, inputs))
    for ours, theirs in ((value, "total"), (of_peer, "loss_peer"), (own, "loss_student")):
        agree(ours, want[f"peeraid/{case}/{theirs}"])
    names = ("peer_adv", "zs_adv_as_target", "zs_adv", "zs_nat")
    for name, gradient in zip(names, grads, strict=True):
        agree(gradient, want[f"peeraid/{case}/grad_{name}"])
