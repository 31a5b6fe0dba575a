"""Makes steps_two_slice.npz: `python tests/golden/make_slice_two.py GOLDEN_FOLDER`.

LBGAT's and PeerAiD's six steps and their losses with gradients. Left out are what other slices have, `noise`,
of which `spread` is the better measure, the average of PeerAiD's student, which is no part of a step, and the
gradients at 100 classes but for their first rows.

`lbgat/rounding/...` is ours: how far a right float32 program may be from float64 after the first step. The
attack begins near the minimum of its loss, where rounding decides the sign of some gradients, and `spread`
has six programs of one kind of processor. So our step runs here in float64, as it is and MEMBERS times from
a start that is moved by SIZE, which turns as many pixels as rounding does (`spread/xadv_step1_frac_px`).
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import steps_common
from float64 import in_float64

from ard_jax import attacks, methods, models, optim
from ard_jax.methods import base

METHODS = ("lbgat", "peeraid")
HERE = Path(__file__).parent
ROWS = 8
MEMBERS = 32
SIZE = 3e-6
SCALARS = {"loss": "total", "loss_mse": "mse", "loss_guide": "ce_guide", "loss_kl": "kl"}


def first_step(golden):
    """(the start's Gaussian noise, a function of it -> the state and all numbers of the first step)."""
    value = lambda key: float(golden[f"setting/{key}"])  # noqa: E731
    nets = {
        n: models.create("small_cnn", widths=steps_common.WIDTHS[n]) for n in ("student", "guide")
    }
    sgd = optim.OptimConfig(lr=value("lr"), weight_decay=value("weight_decay"))
    parts = methods.Parts(
        student=nets["student"],
        student_optim=optim.make(sgd, 300),
        attack=attacks.make(
            "trades_train", eps=value("epsilon"), step_size=value("step_size"),
            steps=int(golden["setting/num_steps"]),
        ),
        teachers={"guide": nets["guide"]},
    )  # fmt: skip
    method, key = methods.create("lbgat", parts, beta=value("beta")), jax.random.key(0)
    exact = lambda tree: jax.tree.map(np.float64, tree)  # noqa: E731
    guide = exact(steps_common.weights(golden, "init/clean_teacher"))
    state = method.init(exact(steps_common.weights(golden, "init/student")), {"guide": guide})
    batch = {"image": jnp.asarray(np.float64(golden["images_u8"][0]) / 255),
             "label": jnp.asarray(golden["labels"][0]), "epoch": jnp.asarray(1)}  # fmt: skip

    @jax.jit
    def step(start):
        given = batch | {"start_noise": start}
        images = base.attack(parts, state, given, key).images
        new, metrics = method.step(state, given, key)
        found = {f"step/{theirs}": metrics[ours] for ours, theirs in SCALARS.items()}
        found["step/xadv_sum"] = jnp.sum(images)
        found["step/xadv_mean_abs_delta"] = jnp.mean(jnp.abs(images - batch["image"]))
        for net, trained in {"student": new.student, "guide": new.teachers["guide"]}.items():
            found[f"after1/{net}_params_max_abs"] = trained.params
            found[f"after1/{net}_bn_stats_max_abs"] = trained.batch_stats
        return images, found

    return 0.001 * np.float64(golden["gauss_k"][0]) / 32, step


def rounding(golden):
    """Name as of `spread` -> the largest distance of a member from the float64 run."""
    with in_float64():
        start, step = first_step(golden)
        images, exact = jax.device_get(step(start))
        rng, largest, turned = np.random.default_rng(0), dict.fromkeys(exact, 0.0), []
        for _ in range(MEMBERS):
            moved, found = jax.device_get(step(start + SIZE * rng.standard_normal(start.shape)))
            turned.append(np.mean(np.abs(moved - images) > 1e-5))
            for name, value in found.items():
                distance = steps_common.largest_difference(value, exact[name])
                largest[name] = max(largest[name], distance)
    print(f"turned pixels: {np.mean(turned):.3f}, rounding: {golden['spread/xadv_step1_frac_px']}")
    assert np.mean(turned) > golden["spread/xadv_step1_frac_px"]
    return largest


def main(folder: Path) -> None:
    arrays = {}
    for method in METHODS:
        steps = np.load(folder / f"{method}_steps.npz")
        kept = {k: v for k, v in steps.items() if k.split("/")[0] != "noise" and "swa" not in k}
        arrays |= {f"{method}/{key}": value for key, value in kept.items()}
    for name, value in rounding(steps_common.load("lbgat")).items():
        arrays[f"lbgat/rounding/{name}"] = np.float32(value)
    for key, value in np.load(folder / "losses2.npz").items():
        if key.split("/")[1] in METHODS or key.endswith("in/zg_nat"):
            cut = key.startswith("c100/") and "/grad_" in key
            arrays[f"losses/{key}"] = value[:ROWS] if cut else value
    np.savez_compressed(HERE / "steps_two_slice.npz", **arrays)
    print("steps_two_slice.npz", (HERE / "steps_two_slice.npz").stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
