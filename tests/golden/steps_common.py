"""Six steps of a method on the recorded batches and noise, beside the authors' numbers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared_files import HERE, SHARED

from ard_jax import attacks, methods, models, optim
from ard_jax.interop import torch_names
from ard_jax.methods import base

WIDTHS = {"student": (8, 16), "robust_teacher": (12, 24), "clean_teacher": (10, 20)}
WIDTHS |= {"guide": WIDTHS["clean_teacher"], "peer": WIDTHS["robust_teacher"]}
AFTER = (1, 3, 6)
STEPS = 6


@dataclasses.dataclass(frozen=True)
class Run:
    """What six steps leave behind.

    Attributes:
      states: RunState after each step.
      metrics: the method's metrics of each step (numpy).
      clean: images [6,B,H,W,C].
      adversarial: x' of each step, as images.
    """

    states: list
    metrics: list
    clean: np.ndarray
    adversarial: np.ndarray


def slow_but(fast: str, rows) -> list:
    """The rows of a parametrisation: one run is fast, the others are slow, as each compiles its own step."""
    rows = [row if isinstance(row, tuple) else (row,) for row in rows]
    return [pytest.param(*r, marks=() if r[0] == fast else pytest.mark.slow) for r in rows]


def load(method: str, slices: str = "steps_slice.npz", prefix: str = "") -> dict[str, np.ndarray]:
    """The golden arrays of a method under the names of the full file, with its inputs.

    `slices` is the file in this folder that holds a part of them, `prefix` that of one run among several.

    Inputs: `images_u8` [6,32,32,32,3], `labels` [6,32], `gauss_k`, `uniform_k`; `init/{net}/...`
    for all three networks.
    """
    ciard, part = np.load(HERE / "ciard_slice.npz"), np.load(HERE / slices)
    arrays = {k: ciard[k] for k in ciard.files if k.startswith("init/")}
    arrays |= {k: ciard[k][:STEPS] for k in ("images_u8", "labels", "gauss_k")}
    arrays["uniform_k"] = np.load(HERE / "steps_slice.npz")["uniform_k"]
    full = SHARED / "golden" / f"{method}_steps.npz"
    if full.is_file():
        found = np.load(full)
        return arrays | {k.removeprefix(prefix): found[k] for k in found if k.startswith(prefix)}
    run = f"{prefix}{method}/"
    own = {k.removeprefix(run): k for k in part.files if k.startswith(run)}
    for key, stored in own.items():
        if key.startswith("after"):
            arrays |= _tensors(part[stored], key, arrays)
        else:
            arrays[key] = part[stored]
    return arrays


def _tensors(flat, prefix, arrays):
    """The joined tensors of a student apart again, `{prefix}/{torch name}`."""
    found, at = {}, 0
    for key, value in arrays.items():
        if key.startswith("init/student/"):
            name = key.removeprefix("init/student/")
            found[f"{prefix}/{name}"] = flat[at : at + value.size].reshape(value.shape)
            at += value.size
    assert at == flat.size
    return found


def weights(golden: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Our variables of the network at `prefix`, such as "init/robust_teacher" or "after3/student"."""
    state = {
        k.removeprefix(prefix + "/"): v for k, v in golden.items() if k.startswith(prefix + "/")
    }
    widths = WIDTHS.get(prefix.split("/")[1], WIDTHS["student"])  # averages of the student
    found = torch_names.from_torch("small_cnn", state, widths=widths)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), found)


def largest_difference(a: Any, b: Any) -> float:
    """Over all leaves of two equal trees."""
    return max(
        float(jnp.max(jnp.abs(x - y))) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


def run(
    method: str,
    golden: dict[str, np.ndarray],
    attack: Any,
    *,
    noise: str | np.ndarray = "gauss",
    options: dict[str, Any] | None = None,
    optim_options: dict[str, Any] | None = None,
    epoch: Any = None,
    attacked: Any = base.attack,
    epochs: int = 300,
    **parts_options: Any,
) -> Run:
    """Six jitted steps from the golden start.

    Args:
      method: registry name.
      golden: `load(...)`.
      attack: name or `PgdAttack` of the inner attack.
      noise: start perturbation: "gauss" 0.001 n, "uniform" eps u, or [6,B,H,W,C].
      options: of the method.
      optim_options: of `OptimConfig`; default SGD 0.1, momentum 0.9, weight decay 2e-4, constant.
      epoch: [6] ints, the epoch (from 1) that each step belongs to; default 1.
      attacked: (parts, state, batch, key) -> `base.Attacked`, the attack of a step.
      epochs: length of the run; for schedules that change at every update their number.
      **parts_options: further fields of `Parts`.
    """
    spec = attacks.make(attack) if isinstance(attack, str) else attack
    # The name of each teacher in the files.
    roles = {r: r if r in WIDTHS else f"{r}_teacher" for r in methods.TEACHERS[method]}
    nets = {n: models.create("small_cnn", widths=w) for n, w in WIDTHS.items()}
    parts = methods.Parts(
        student=nets["student"],
        student_optim=optim.make(optim.OptimConfig(**(optim_options or {})), epochs, 1),
        attack=spec,
        teachers={role: nets[name] for role, name in roles.items()},
        epochs=epochs,
        **parts_options,
    )
    key = jax.random.key(0)  # decides nothing: the start noise is given
    made = methods.create(method, parts, **(options or {}))
    step = jax.jit(made.step)
    make_images = jax.jit(lambda s, b: attacked(parts, s, b, key).images)
    teachers = {role: weights(golden, f"init/{name}") for role, name in roles.items()}
    state = made.init(weights(golden, "init/student"), teachers)
    clean = golden["images_u8"].astype(np.float32) / np.float32(255)
    start = 0.001 * (golden["gauss_k"] / np.float32(32))
    if isinstance(noise, np.ndarray):
        start = noise
    elif noise == "uniform":
        start = np.float32(spec.eps) * (golden["uniform_k"] / np.float32(128))
    states, metrics, images = [], [], []
    with jax.default_matmul_precision("highest"):
        for i in range(STEPS):
            batch = {
                "image": jnp.asarray(clean[i], jnp.float32),
                "label": jnp.asarray(golden["labels"][i]),
                "epoch": jnp.asarray(1 if epoch is None else epoch[i], jnp.int32),
                "start_noise": jnp.asarray(start[i], jnp.float32),
            }
            images.append(np.asarray(make_images(state, batch)))
            state, values = step(state, batch, key)
            state = state.replace(step=state.step + 1)
            states.append(state)
            metrics.append(jax.device_get(values))
    return Run(states, metrics, clean, np.stack(images))


def scalar_errors(
    result: Run, golden: dict[str, np.ndarray], ours: str, theirs: str, factor: float = 10.0
) -> tuple[np.ndarray, np.ndarray]:
    """(|ours - theirs|, tolerance), [6] each, of a metric against `step/{theirs}`.

    Tolerance: `factor` times what the original code itself differs by between float32 and float64 up
    to that step, not less than 1e-6 of 1 + the value.
    """
    values = np.array([m[ours] for m in result.metrics], np.float64)
    expected = np.float64(golden[f"step/{theirs}"])
    spread = np.maximum.accumulate(np.float64(golden[f"noise/step/{theirs}"]))
    return np.abs(values - expected), np.maximum(factor * spread, 1e-6 * (1 + np.abs(expected)))


def fingerprint_errors(
    result: Run, golden: dict[str, np.ndarray], factor: float = 10.0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"xadv_mean_abs_delta" | "xadv_sum": (|ours - theirs|, tolerance)}, [6] each.

    Floors: what 3e-4 of the pixels can change, the share that the original differs by from its float64
    run on most attacks. A pixel whose gradient is at rounding level may flip, and then moves by 2 eps.
    """
    adversarial = np.float64(result.adversarial)
    ours = {
        "xadv_mean_abs_delta": np.abs(adversarial - result.clean).mean((1, 2, 3, 4)),
        "xadv_sum": adversarial.sum((1, 2, 3, 4)),
    }
    found = {}
    flipped = 3e-4 * 8 / 255
    floors = {"xadv_mean_abs_delta": flipped, "xadv_sum": 2 * flipped * result.clean[0].size}
    for name, floor in floors.items():
        spread = np.maximum.accumulate(np.float64(golden[f"noise/step/{name}"]))
        error = np.abs(ours[name] - np.float64(golden[f"step/{name}"]))
        found[name] = (error, np.maximum(factor * spread, floor))
    return found


def network_errors(
    result: Run, golden: dict[str, np.ndarray], after: int
) -> dict[str, tuple[float, float]]:
    """{"params" | "batch_stats": (largest difference, `noise/...`)} of the student after step `after`."""
    student, theirs = result.states[after - 1].student, weights(golden, f"after{after}/student")
    names = {"params": "params", "batch_stats": "bn_stats"}
    return {
        part: (
            largest_difference(getattr(student, part), theirs[part]),
            float(golden[f"noise/after{after}/student_{key}_max_abs"]),
        )
        for part, key in names.items()
    }


def network_tolerance(noise: float) -> float:
    """What parameters or statistics of two right float32 programs may differ by.

    Args:
      noise: what the original code itself differs by between float32 and float64. It is one sample of a
        quantity that chance decides (how many signs of the attack's gradients fall within rounding, and
        when), so ten times that; there is no other limit, or the original would not pass its own test.

    Returns:
      The tolerance, not below 1e-5: one sign that happened not to be decided by rounding in the stored runs.
    """
    return max(10 * noise, 1e-5)
