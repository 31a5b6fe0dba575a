"""The benchmark's PyTorch twins compute our steps: same weights, batch and start, same loss and networks."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks are no part of the installation

from benchmarks import step_cases

pytestmark = pytest.mark.slow
torch = pytest.importorskip(
    "torch", reason="the twins are PyTorch's: pip install -e '.[reference]'"
)


def one_step(name):
    """(our metrics, our state, the twin's loss, the twin) after one update without augmentation."""
    from benchmarks import step_torch

    nets = {
        "student": "small_resnet/4-8",
        "robust": "small_resnet/5-7",
        "clean": "small_resnet/6-8",
    }
    rng = np.random.default_rng(1)
    case = step_cases.Case(name, **nets, batch=32, steps=3, size=16)
    built = step_cases.build(case)
    for variables in built.variables.values():  # those of a fresh network hide mistakes: 0 and 1
        variables["batch_stats"] = jax.tree.map(
            lambda v: v + rng.uniform(0.05, 0.3, v.shape).astype(np.float32),
            variables["batch_stats"],
        )
    images = rng.random((case.batch, 16, 16, 3), np.float32)
    start = np.clip(images + rng.uniform(-0.01, 0.01, images.shape).astype(np.float32), 0, 1)
    labels = rng.integers(0, case.classes, case.batch, np.int32)
    batch = {"image": images, "label": labels, "start_noise": start - images, "epoch": np.int32(60)}
    state, metrics = jax.jit(built.method.step)(built.state(), batch, jax.random.key(0))
    twin = step_torch.make_step(built)
    x, first = (torch.from_numpy(a.transpose(0, 3, 1, 2)) for a in (images, start))
    loss = twin.update(x, torch.from_numpy(labels).long(), first)
    return built, state, metrics, loss, twin


@pytest.mark.parametrize("name", sorted(step_cases.WORK))
def test_a_step_of_the_twin_is_ours(name):
    from ard_jax.interop import torch_names

    built, state, metrics, loss, twin = one_step(name)
    assert float(loss) == pytest.approx(float(metrics["loss"]), rel=1e-4)
    for role, bundle in built.nets.items():
        ours = state.student if role == "student" else state.teachers[role]
        expected = torch_names.to_torch(bundle, ours.variables)
        before = torch_names.to_torch(bundle, built.variables[role])
        found = {k.replace("__", "."): v for k, v in twin.nets[role].state_dict().items()}
        assert set(found) == set(expected)
        moved = max(np.abs(v - before[k]).max() for k, v in expected.items())
        apart = max(np.abs(v - found[k].numpy()).max() for k, v in expected.items())
        assert (moved > 0) == (role in ("student", *built.method.trained_teachers))
        # Where rounding decides the sign of a gradient, one pixel of x' differs.
        assert apart <= 0.02 * moved
