"""Six steps of RSLAD, MTARD, B-MTARD and AdaAD against the authors' loop bodies (make_slice_steps.py)."""

import jax
import numpy as np
import pytest
import steps_common

pytestmark = pytest.mark.golden

# Golden file -> method, attack, and the names of its per-step scalars (ours: theirs).
CASES = {
    "rslad": (
        "rslad",
        "rslad_train",
        {"loss_robust": "kl_adv", "loss_clean": "kl_nat", "loss": "total"},
    ),
    "mtard": (
        "mtard",
        "ciard_train",
        {"loss_robust": "L_adv", "loss_clean": "L_nat", "loss": "total", "w_adv": "w_adv_used",
         "w_nat": "w_nat_used"},
    ),
    "bmtard": (
        "b_mtard",
        "ciard_train",
        {"loss_robust": "L_adv", "loss_clean": "L_nat", "loss": "total", "w_adv": "w_adv_used",
         "w_nat": "w_nat_used", "temp_adv": "T_adv_after", "temp_nat": "T_nat_after",
         "entropy_adv": "H_adv", "entropy_nat": "H_nat"},
    ),
    "adaad": (
        "adaad",
        "adaad_train",
        {"loss_robust": "kl_adv", "loss_clean": "kl_nat", "loss": "total"},
    ),
}  # fmt: skip
SCALARS = [(name, ours, theirs) for name, case in CASES.items() for ours, theirs in case[2].items()]


def options_of(name, golden):
    """The golden run's hyper-parameters as options of our method."""
    if name == "mtard":
        return {"weight_rate": float(golden["setting/weight_lr"])}
    if name == "bmtard":
        rates = {"weight_rate": "weight_lr", "temp_rate": "temp_lr"}
        return {ours: float(golden[f"setting/{theirs}"]) for ours, theirs in rates.items()}
    if name == "adaad":
        reduction = "batchmean" if golden["setting/batchmean"] else "mean_classes"
        return {"alpha": float(golden["setting/alpha"]), "kl_reduction": reduction}
    return {}


_RUNS = {}


def run(name):
    """(golden arrays, our six steps); each method runs once."""
    if name not in _RUNS:
        golden = steps_common.load(name)
        method, attack, _ = CASES[name]
        _RUNS[name] = (
            golden,
            steps_common.run(method, golden, attack, options=options_of(name, golden)),
        )
    return _RUNS[name]


@pytest.mark.parametrize(("name", "ours", "theirs"), steps_common.slow_but("rslad", SCALARS))
def test_scalars(name, ours, theirs):
    golden, result = run(name)
    error, tolerance = steps_common.scalar_errors(result, golden, ours, theirs)
    assert np.all(error <= tolerance), (error, tolerance)


@pytest.mark.parametrize(("name", "ours", "theirs"), steps_common.slow_but("rslad", SCALARS))
def test_first_step_agrees_to_rounding(name, ours, theirs):
    """Equal weights and no pixel on the edge of a sign: what remains is rounding of terms of order 1."""
    golden, result = run(name)
    expected = float(golden[f"step/{theirs}"][0])
    assert abs(float(result.metrics[0][ours]) - expected) <= 1e-7 + 2e-7 * abs(expected)


@pytest.mark.parametrize("name", steps_common.slow_but("rslad", CASES))
def test_adversarial_fingerprints(name):
    golden, result = run(name)
    for key, (error, tolerance) in steps_common.fingerprint_errors(result, golden).items():
        assert np.all(error <= tolerance), (key, error, tolerance)


@pytest.mark.parametrize("after", steps_common.AFTER)
@pytest.mark.parametrize("name", steps_common.slow_but("rslad", CASES))
def test_parameters_and_statistics(name, after):
    golden, result = run(name)
    for part, (error, noise) in steps_common.network_errors(result, golden, after).items():
        assert error <= steps_common.network_tolerance(noise), (part, error, noise)


@pytest.mark.parametrize("name", steps_common.slow_but("rslad", CASES))
def test_teachers_never_change(name):
    golden, result = run(name)
    for role, teacher in result.states[-1].teachers.items():
        before = steps_common.weights(golden, f"init/{role}_teacher")
        assert steps_common.largest_difference(teacher.variables, before) == 0.0


@pytest.mark.slow
def test_b_mtard_uses_the_temperatures_of_the_step_before():
    """At step 2 the clean teacher's temperature is 1.001, and its entropy tells the two apart."""
    golden, result = run("bmtard")
    state, batch = result.states[0], golden["images_u8"][1].astype(np.float32) / np.float32(255)
    clean, net = state.teachers["clean"], steps_common.models.create("small_cnn", widths=(10, 20))
    logits = net.apply(clean.variables, batch, False)[0]
    p = {t: jax.nn.softmax(logits / t) for t in (1.0, 1.001, 1.002)}
    h = {t: float(np.mean(q * np.log(q + 1e-5))) for t, q in p.items()}
    error = {t: abs(value - float(golden["step/H_nat"][1])) for t, value in h.items()}
    assert error[1.001] < 2e-7 < 1e-5 < min(error[1.0], error[1.002])
    assert abs(float(result.metrics[1]["entropy_nat"]) - h[1.001]) < 2e-7
