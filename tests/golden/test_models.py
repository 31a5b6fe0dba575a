"""Every architecture against the PyTorch code it comes from: shapes, counts, logits, input gradients.

models_slice.json / .npz hold what the original code produced. The weights are not stored: both sides fill
them by the same integer hash, so that nothing but the architecture can differ.
"""

import functools
import hashlib
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import interop, models

pytestmark = pytest.mark.golden

HERE = Path(__file__).parent
STATES = json.loads((HERE / "models_slice.json").read_text())

# golden name -> (our name, options)
OURS = {
    "ciard_resnet18": ("resnet18", {}),
    "ciard_mobilenet_v2": ("mobilenet_v2", {}),
    "ciard_wrn34_10": ("wrn_34_10", {}),
    "ciard_resnet56": ("resnet56", {}),
    "akamaster_resnet56": ("resnet56", {"shortcut": "A"}),
    "rice_preact_resnet18": ("preact_resnet18", {}),
    "rb_preact_resnet18": ("preact_resnet18", {"form": "robustbench"}),
    "dm_preact_resnet18_silu": ("preact_resnet18", {"form": "deepmind"}),
    "dm_wrn28_10_silu": ("dm_wrn_28_10", {}),
    "dm_wrn34_10_silu_c10": ("dm_wrn_34_10", {}),
    "dm_wrn70_16_silu_c100": ("dm_wrn_70_16", {"num_classes": 100}),
    "dm_wrn22_6_silu_c100": ("dm_wrn_22_6", {"num_classes": 100}),
}
SHAPES_ONLY = {"dm_wrn34_10_silu_c10", "dm_wrn70_16_silu_c100", "dm_wrn22_6_silu_c100"}
LARGE = {"ciard_wrn34_10", "dm_wrn28_10_silu"}


@functools.cache
def golden():
    with np.load(HERE / "models_slice.npz") as file:
        return dict(file)


def hashed(count, ordinal, salt):
    """The deterministic filling: hash of 0 .. count-1, uint32, all arithmetic modulo 2^32."""
    h = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1)
    offset = (ordinal + 1) * 0x85EBCA77 + salt * 0xC2B2AE3D
    h += np.uint32(offset & 0xFFFFFFFF)
    h ^= h >> 16
    h *= np.uint32(0x7FEB352D)
    h ^= h >> 15
    h *= np.uint32(0x846CA68B)
    h ^= h >> 16
    return h


def filled(name, shape, ordinal, salt):
    u = (hashed(int(np.prod(shape)), ordinal, salt) + 0.5) / 2.0**31 - 1.0
    fan_in = np.prod(shape[1:])
    kind = name.rsplit(".", 1)[-1]
    if len(shape) == 4:
        u *= np.sqrt(4.5 / fan_in)
    elif len(shape) == 2:
        u *= np.sqrt(12.0 / fan_in)
    elif kind == "running_mean" or kind == "bias":
        u *= 0.1
    elif kind == "running_var":
        u = 1.0 + 0.5 * u
    else:
        u = 1.0 + 0.2 * u
    return u.astype(np.float32).reshape(shape)


def filled_state(arch):
    salt = int(golden()["salt"])
    return {
        name: filled(name, shape, ordinal, salt)
        for ordinal, (name, shape) in enumerate(STATES[arch]["state"])
    }


def test_filling_has_the_published_check_values():
    assert hashed(4, 0, 0).tolist() == [3298878556, 39170614, 1056058362, 2670740862]
    assert hashed(3, 3, 7).tolist() == [3729955492, 2061654838, 2873217841]
    x = np.floor(hashed(4 * 32 * 32 * 3, 1_000_000, int(golden()["salt"])) / 256) / 2**24
    np.testing.assert_array_equal(x.astype(np.float32).reshape(4, 32, 32, 3), golden()["input"])


def test_every_stored_architecture_is_checked():
    assert set(OURS) == set(STATES)
    assert {key.split("/")[0] for key in golden() if key.endswith("logits_train")} == (
        set(OURS) - SHAPES_ONLY
    )


@pytest.mark.parametrize("arch", OURS)
def test_parameter_count_and_shapes(arch):
    name, options = OURS[arch]
    bundle = models.create(name, **options)
    assert models.num_params(bundle) == STATES[arch]["n_params"]
    expected = {tensor: tuple(shape) for tensor, shape in STATES[arch]["state"]}
    assert interop.torch_layout(bundle) == expected


def relative_error(actual, expected):
    return float(np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(arch, marks=pytest.mark.slow if arch in LARGE else ())
        for arch in OURS
        if arch not in SHAPES_ONLY
    ],
)
def test_logits_and_input_gradient(arch):
    name, options = OURS[arch]
    bundle = models.create(name, **options)
    variables = interop.from_torch(name, filled_state(arch), **options)
    x = jnp.asarray(golden()["input"])

    @jax.jit
    def evaluate(variables, x):
        def difference(x):
            logits, _ = bundle.apply(variables, x, False)
            return jnp.sum(logits[:, 1] - logits[:, 7]), logits

        (_, logits), gradient = jax.value_and_grad(difference, has_aux=True)(x)
        return logits, gradient[0], bundle.apply(variables, x, True)[0]

    with jax.default_matmul_precision("highest"):
        logits, gradient, logits_train = evaluate(variables, x)
    errors = {
        "logits_eval": relative_error(logits, golden()[f"{arch}/logits_eval"]),
        "logits_train": relative_error(logits_train, golden()[f"{arch}/logits_train"]),
        "gradient": relative_error(gradient, golden()[f"{arch}/grad_input_z1_minus_z7_img0"]),
    }
    print(arch, errors)
    assert all(error < 1e-5 for error in errors.values()), errors
