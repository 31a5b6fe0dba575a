"""Every network of torchvision and timm against it: names, shapes, logits in both modes.

networks_slice.npz (`make_slice_networks.py`) holds what torchvision 0.29.1 and timm 1.0.31 compute in
float64. Both sides fill the weights by the same hash, and ours computes in float64 as well, so that the
result depends on no processor.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filling import filled, pixels
from float64 import in_float64

from ard_jax import interop, models

pytestmark = pytest.mark.golden

IMAGENET = {"form": "imagenet"}
# golden name -> (our name, options)
OURS = {
    **{name: (name, IMAGENET) for name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")},
    "shufflenet_v2_x1_0": ("shufflenet_v2", {}),
    "vit_tiny_patch4_32": ("vit_tiny", {"patch": 4}),
    "vit_small_patch16_64": ("vit_small", {}),
    "vit_base_patch16_64": ("vit_base", {}),
    "deit_small_patch16_64": ("vit_small", {}),
    "vit_small_convstem_64": ("vit_small", {"stem": "conv"}),
    "vit_base_convstem_64": ("vit_base", {"stem": "conv"}),
    **{f"{name}_convstem": (name, {"stem": "conv"}) for name in (
        "convnext_tiny", "convnext_base", "convnext_large",
    )},
    **{name: (name, {}) for name in (
        "mobilenet_v3_large", "mobilenet_v3_small", "efficientnet_b0",
        "convnext_tiny", "convnext_small", "convnext_base", "convnext_large",
    )},
}  # fmt: skip
FAST = ("shufflenet_v2_x1_0", "vit_tiny_patch4_32")


@functools.cache
def golden():
    with np.load(Path(__file__).parent / "networks_slice.npz") as file:
        arrays = dict(file)
    return arrays, json.loads(bytes(arrays["states"]))


def options_of(arch, classes):
    side = golden()[1][arch]["side"]
    return {"num_classes": classes, "image_shape": (side, side, 3), **OURS[arch][1]}


def test_every_stored_network_is_checked():
    assert set(OURS) == set(golden()[1])


# Other sizes of the same code take seconds to trace.
LARGE = [
    a
    for a in OURS
    if a.startswith(("convnext_small", "convnext_base", "convnext_large", "wide", "vit_base"))
]


@pytest.mark.parametrize(
    "arch", [pytest.param(a, marks=pytest.mark.slow if a in LARGE else ()) for a in OURS]
)
def test_names_and_shapes(arch):
    expected = {name: tuple(shape) for name, shape in golden()[1][arch]["state"]}
    assert interop.torch_layout(models.create(OURS[arch][0], **options_of(arch, 1000))) == expected


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(a, marks=() if a in FAST else pytest.mark.slow)
        for a in OURS
        if "convnext_large" not in a
    ],
)
def test_logits_in_both_modes(arch):
    arrays, states = golden()
    name, options = OURS[arch][0], options_of(arch, 10) | {"normalization": "none"}
    state = {
        tensor: filled(tensor, [10 if n == 1000 else n for n in shape], place, int(arrays["salt"]))
        for place, (tensor, shape) in enumerate(states[arch]["state"])
    }
    variables = interop.from_torch(name, state, **options)
    back = interop.to_torch(models.create(name, **options), variables)
    assert back.keys() == state.keys()
    for tensor, value in back.items():
        np.testing.assert_array_equal(value, state[tensor])
    images = pixels((4, *options["image_shape"]), int(arrays["salt"]))
    rounding = 1e-6 if "vit" in name else 1e-9  # jax.nn's attention has float32 weights
    with in_float64(), jax.default_matmul_precision("highest"):
        bundle = models.create(name, **options)
        both = jax.jit(lambda v, x: [bundle.apply(v, x, train)[0] for train in (False, True)])
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        for mode, logits in zip(
            ("eval", "train"), both(variables, jnp.asarray(images, jnp.float64)), strict=True
        ):
            expected = arrays[f"{arch}/logits_{mode}"]
            assert logits.dtype == jnp.float64
            assert np.abs(logits - expected).max() < rounding * np.abs(expected).max()
