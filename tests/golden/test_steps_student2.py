"""Six steps of HAT, MAIL, GAIRAT and DGAD against the authors' code, every run of it (make_slice_hat.py)."""

import jax
import numpy as np
import pytest
import steps_common
from float64 import in_float64
from shared_files import HERE, SHARED

from ard_jax import attacks

pytestmark = pytest.mark.golden
# Run of the golden files -> method, attack, start noise, and its scalars of each step (ours: theirs).
_HAT = {
    "loss": "total",
    "loss_clean": "loss_clean",
    "loss_robust": "loss_adv",
    "loss_helper": "loss_help",
}
_DGAD = {
    "loss": "total",
    "loss_clean": "loss_clean",
    "loss_robust": "loss_adv",
    "loss_consistency": "loss_alp",
}
CASES = {
    "hat": ("hat", "hat_train", "gauss", _HAT),
    "hat_at": ("hat_at", "sat_train", "uniform", _HAT),
    "mail_at": ("mail", "mart_train", "gauss", {"loss": "total"}),
    "mail_trades": ("mail_trades", "trades_train", "gauss", {"loss": "total"}),
    "mail_mart": ("mail_mart", "mart_train", "gauss", {"loss": "total"}),
    "gairat": ("gairat", "gairat_train", "uniform", {"loss": "total"}),
    "gairat/sigmoid": ("gairat", "gairat_train", "uniform", {"loss": "total"}),
    "gairat/discrete": ("gairat", "gairat_train", "uniform", {"loss": "total"}),
    "dgad": ("dgad", "adaad_train", "gauss", _DGAD),
    "dgad/mnv2_released": ("dgad", "adaad_train", "gauss", _DGAD),
    "dgad/mnv2_intended": ("dgad", "adaad_train", "gauss", _DGAD),
    "dgad/iad1": ("dgad", "adaad_train", "gauss", _DGAD),
}  # fmt: skip
AT_MINIMUM = ("hat", "mail_trades")
SCALARS = [(name, ours, theirs) for name, case in CASES.items() for ours, theirs in case[3].items()]
# What is stored of each image, and the mean or the like that our metrics have of it.
OF_IMAGES = {
    "hat": ("y_helper", {"helper_accuracy": lambda y, labels: np.mean(y == labels, axis=1)}),
    "mail": ("weight", {"weight_mean": lambda w, _: w.mean(1), "weight_max": lambda w, _: w.max(1)}),
    "gairat": ("weight", {"weight_max": lambda w, _: w.max(1)}),
}  # fmt: skip
OF_IMAGES["hat_at"] = OF_IMAGES["hat"]
OF_IMAGES["mail_trades"] = OF_IMAGES["mail_mart"] = OF_IMAGES["mail"]


def load(case):
    """The arrays of a run under the names of a file with one run, with its inputs."""
    file, _, run = case.partition("/")
    given = ("init/", "images_u8", "labels", "gauss_k", "uniform_k")
    arrays = {k: v for k, v in steps_common.load(file).items() if k.startswith(given)}
    full = SHARED / "golden" / f"{file}_steps.npz"
    if full.is_file():
        prefix, stored = f"{run}/" if run else "", np.load(full)
    else:
        prefix, stored = f"{case}/", np.load(HERE / "steps_hat_slice.npz")
    own = {k.removeprefix(prefix): stored[k] for k in stored.files if k.startswith(prefix)}
    for key, value in own.items():
        if key in {f"after{after}/student" for after in steps_common.AFTER}:
            arrays |= steps_common._tensors(value, key, arrays)
        elif not key.startswith("init/"):
            arrays[key] = value
    return arrays


def options_of(case, golden):
    """(options of our method, the epoch that each step belongs to) of a golden run."""
    value = lambda key: float(golden[f"setting/{key}"])  # noqa: E731
    method, run, epoch = CASES[case][0], case.partition("/")[2], None
    if method.startswith("hat"):
        options = {name: value(name) for name in ("h", "beta", "gamma")}
    elif method.startswith("mail"):
        options = {"variant": "released", "slope": value("slope"), "bias": value("bias")}
        if method != "mail":
            options["beta"] = value("beta")
        first = int(golden["setting/first_weighted_step"])
        epoch = np.where(np.arange(1, 7) >= first, 77, 76)
    elif method == "gairat":
        options = {"form": run or "tanh", "lambda_value": value("Lambda")}
        options["begin_epoch"] = int(golden["setting/begin_epoch"])
        epoch = golden["setting/epoch_emulated_zero_based"] + 1
    else:
        options = {"beta": value("alp_beta")}
        options["full_batch"] = int(golden["setting/configured_batch_size"])
        if run.startswith("mnv2"):
            options["student_form"] = "mobilenet_v2"
            options["variant"] = "released" if run == "mnv2_released" else "paper"
        elif run == "iad1":
            options["iad_begin"] = int(golden["setting/iad_begin"])
            epoch = golden["setting/epoch_emulated"]
    return options, epoch


def six_steps(case, golden):
    """Ours, with the settings of a golden run."""
    method, attack, noise, _ = CASES[case]
    setting = {k.removeprefix("setting/"): v for k, v in golden.items() if k.startswith("setting/")}
    spec = attacks.make(
        attack, eps=float(setting["epsilon"]), step_size=float(setting["step_size"]),
        steps=int(setting["num_steps"]),
    )  # fmt: skip
    rates = {name: float(setting[name]) for name in ("lr", "weight_decay")}
    rates["nesterov"] = bool(setting.get("nesterov", False))
    if noise == "uniform":
        x = golden["images_u8"].astype(np.float32) / np.float32(255)
        u = np.float32(spec.eps) * (golden["uniform_k"] / np.float32(128))
        noise = np.clip(x + u, 0, 1) - x  # the start itself is cut to [0,1]
    options, epoch = options_of(case, golden)
    return steps_common.run(
        method, golden, spec, noise=noise, options=options, optim_options=rates, epoch=epoch
    )


_RUNS = {}


def run(case):
    """(golden arrays, our six steps); each runs once."""
    if case not in _RUNS:
        golden = load(case)
        _RUNS[case] = golden, six_steps(case, golden)
    return _RUNS[case]


def tolerance(case, golden, key):
    """The golden README's, [6]: sharp in the first step; one flipped pixel is a jump in the later ones.

    A KL attack starts at its own minimum, where rounding decides many pixels, so that how near two runs come
    in one step is a matter of chance: the largest spread of all steps there. `test_float64_run` is sharper.
    """
    spread = np.float64(golden[f"spread/step/{key}"])
    scale = max(1.0, float(np.max(np.abs(golden[f"step/{key}"]))))
    found = np.full(steps_common.STEPS, 20 * spread.max() + 1e-3 * scale)
    found[0] = 5 * (spread.max() if case in AT_MINIMUM else spread[0]) + 3e-6 * scale
    return found


def metric(result, name):
    return np.array([m[name] for m in result.metrics], np.float64)


@pytest.mark.parametrize(("case", "ours", "theirs"), steps_common.slow_but("mail_at", SCALARS))
def test_losses(case, ours, theirs):
    golden, result = run(case)
    error = np.abs(metric(result, ours) - np.float64(golden[f"step/{theirs}"]))
    allowed = tolerance(case, golden, theirs)
    assert np.all(error <= allowed), (error, allowed)


@pytest.mark.parametrize(
    "case", steps_common.slow_but("mail_at", [c for c in CASES if CASES[c][0] in OF_IMAGES])
)
def test_weights_and_labels_of_images(case):
    golden, result = run(case)
    key, reductions = OF_IMAGES[CASES[case][0]]
    allowed = tolerance(case, golden, key)
    if key == "y_helper":  # a share of the images; after the first step two may change sides
        allowed = np.where(np.arange(6) == 0, 1e-6, 2 / 32)
    for name, reduce in reductions.items():
        expected = reduce(golden[f"step/{key}"], golden["labels"])
        error = np.abs(metric(result, name) - expected)
        assert np.all(error <= allowed), (name, error, allowed)


@pytest.mark.parametrize(
    "case", steps_common.slow_but("mail_at", [c for c in CASES if CASES[c][0] == "gairat"])
)
def test_right_iterates(case):
    golden, result = run(case)
    error = np.abs(metric(result, "kappa") - golden["step/kappa"].mean(1))
    assert np.all(error <= tolerance(case, golden, "kappa")), error


@pytest.mark.parametrize(
    "case", steps_common.slow_but("mail_at", [c for c in CASES if CASES[c][0] == "dgad"])
)
def test_images_that_the_teacher_gets_wrong(case):
    """Of clean ones all; of adversarial ones those of the first step, after it one may change sides."""
    golden, result = run(case)
    size = golden["labels"].shape[1]
    wrong = size * (1 - metric(result, "teacher_accuracy"))
    np.testing.assert_allclose(wrong, golden["step/n_misclassified"], atol=1e-4)
    swapped = size * (1 - metric(result, "teacher_robust_accuracy"))
    error = np.abs(swapped - golden["step/n_swapped_adv"])
    assert error[0] <= 1e-4 and np.all(error <= 1 + 1e-4), error


@pytest.mark.parametrize("case", steps_common.slow_but("mail_at", CASES))
def test_adversarial_fingerprints(case):
    golden, result = run(case)
    adversarial = np.float64(result.adversarial)
    delta = np.abs(adversarial - result.clean).mean((1, 2, 3, 4))
    for key, ours in {
        "xadv_mean_abs_delta": delta,
        "xadv_sum": adversarial.sum((1, 2, 3, 4)),
    }.items():
        error = np.abs(ours - np.float64(golden[f"step/{key}"]))
        allowed = tolerance(case, golden, key)
        assert np.all(error <= allowed), (key, error, allowed)


@pytest.mark.parametrize("after", steps_common.AFTER)
@pytest.mark.parametrize("case", steps_common.slow_but("mail_at", CASES))
def test_parameters_and_statistics(case, after):
    golden, result = run(case)
    theirs = steps_common.weights(golden, f"after{after}/student")
    for part, key in {"params": "params", "batch_stats": "bn_stats"}.items():
        spread = [
            float(golden[f"spread/after{a}/student_{key}_max_abs"]) for a in steps_common.AFTER
        ]
        scale = max(1.0, *(float(np.max(np.abs(v))) for v in jax.tree.leaves(theirs[part])))
        allowed = 5 * spread[0] + 3e-6 * scale if after == 1 else 20 * max(spread) + 1e-3 * scale
        ours = getattr(result.states[after - 1].student, part)
        error = steps_common.largest_difference(ours, theirs[part])
        assert error <= allowed, (part, error, allowed)


@pytest.mark.parametrize("case", steps_common.slow_but("mail_at", AT_MINIMUM))
def test_float64_run(case):
    """No processor's rounding takes part here: twice the noise is enough, and ten times would hide faults."""
    golden = load(case)
    with in_float64():
        result = six_steps(case, golden)
        for after in steps_common.AFTER:
            for part, (error, noise) in steps_common.network_errors(result, golden, after).items():
                assert error <= 2 * noise + 1e-6, (after, part, error, noise)
