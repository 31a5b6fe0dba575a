"""Six steps of the baselines of Why Robust Teachers Fail against their code (make_slice_icml26.py).

Tolerances as the golden README asks, see test_steps_adr.py.
"""

import functools

import numpy as np
import pytest
import steps_common
from test_steps_adr import Settings, assert_networks_agree, assert_steps_agree

from ard_jax import methods

pytestmark = pytest.mark.golden
# Run -> method, its objective, its attack.
CASES = {
    "pgd": ("icml26_at", "pgd", "sat_train"),
    "trades": ("icml26_at", "trades", "icml26_trades_train"),
    "ard": ("icml26", "ard", "sat_train"),
    "rslad": ("icml26", "rslad", "icml26_rslad_train"),
    "iad": ("icml26", "iad", "sat_train"),
    "adaad": ("icml26", "adaad", "icml26_adaad_train"),
    "igdm": ("icml26", "adaad", "icml26_adaad_train"),
}


@functools.cache
def run(name):
    """(golden arrays, our six steps)."""
    golden = steps_common.load("icml26", "steps_icml26_slice.npz", f"{name}/")
    of, (method, objective, attack) = Settings(golden), CASES[name]
    noise = of.uniform_start()
    if "start='gauss'" in str(of.attack(attack)):
        x = golden["images_u8"].astype(np.float32) / np.float32(255)
        n = np.float32(0.001) * (golden["gauss_k"] / np.float32(32))
        noise = (np.clip(x + n, 0, 1) - x).astype(np.float32)
    matching = methods.Igdm(weight=1.0, variant="saad") if name == "igdm" else None
    return golden, steps_common.run(
        method, golden, of.attack(attack), options={"objective": objective}, noise=noise,
        optim_options=of.optimiser(), epoch=golden["setting/epoch_emulated"],
        epochs=int(of["epochs"]), igdm=matching,
    )  # fmt: skip


@pytest.mark.parametrize("name", steps_common.slow_but("adaad", CASES))
def test_losses(name):
    golden, result = run(name)
    assert_steps_agree(golden, "total", np.array([m["loss"] for m in result.metrics], np.float64))


@pytest.mark.parametrize("name", steps_common.slow_but("adaad", CASES))
def test_adversarial_fingerprints(name):
    golden, result = run(name)
    adversarial = np.float64(result.adversarial)
    delta = np.abs(adversarial - result.clean).mean((1, 2, 3, 4))
    assert_steps_agree(golden, "xadv_mean_abs_delta", delta)
    assert_steps_agree(golden, "xadv_sum", adversarial.sum((1, 2, 3, 4)))


@pytest.mark.parametrize("after", (1, 6))
@pytest.mark.parametrize("name", steps_common.slow_but("adaad", CASES))
def test_student(name, after):
    """Its statistics hold the pass at x after the update, too."""
    golden, result = run(name)
    student = result.states[after - 1].student
    assert_networks_agree(golden, "student", after, student.variables)
