"""Every architecture against the PyTorch code it comes from: shapes, counts, logits, input gradients.

models_slice.json / .npz hold what the original code produced: the published golden files models.json
(without the buffer counts) and models.npz, compressed. The weights are not stored: both sides fill them by
the same integer hash, so that nothing but the architecture can differ.
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
from filling import filled, hashed, pixels
from float64 import in_float64

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
MOVE = 3e-7  # of running means, by test_input_gradient
# How far the stored float32 logits in train mode are from ours in float64 (with `in_float64`), of their
# largest, where that is more than a third of 1e-5.
TRAIN_ROUNDING = {"ciard_mobilenet_v2": 7.2e-6}


@functools.cache
def golden():
    with np.load(HERE / "models_slice.npz") as file:
        return dict(file)


def filled_state(arch):
    salt = int(golden()["salt"])
    return {
        name: filled(name, shape, ordinal, salt)
        for ordinal, (name, shape) in enumerate(STATES[arch]["state"])
    }


def test_filling_has_the_published_check_values():
    assert hashed(4, 0, 0).tolist() == [3298878556, 39170614, 1056058362, 2670740862]
    assert hashed(3, 3, 7).tolist() == [3729955492, 2061654838, 2873217841]
    np.testing.assert_array_equal(pixels((4, 32, 32, 3), int(golden()["salt"])), golden()["input"])


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


# One network is fast, the others are slow, as each compiles its own programs.
RUNNABLE = [
    pytest.param(arch, marks=() if arch == "ciard_resnet18" else pytest.mark.slow)
    for arch in OURS
    if arch not in SHAPES_ONLY
]


@pytest.mark.parametrize("arch", RUNNABLE)
def test_logits_in_both_modes(arch):
    name, options = OURS[arch]
    bundle = models.create(name, **options)
    variables = interop.from_torch(name, filled_state(arch), **options)
    x = jnp.asarray(golden()["input"])
    both = jax.jit(lambda v, x: (bundle.apply(v, x, False)[0], bundle.apply(v, x, True)[0]))
    with jax.default_matmul_precision("highest"):
        logits_eval, logits_train = both(variables, x)
    assert relative_error(logits_eval, golden()[f"{arch}/logits_eval"]) < 1e-5
    # Ours may be off by twice as much as the reference.
    allowed = max(1e-5, 3 * TRAIN_ROUNDING.get(arch, 0.0))
    assert relative_error(logits_train, golden()[f"{arch}/logits_train"]) < allowed


@pytest.mark.parametrize("arch", RUNNABLE)
def test_input_gradient(arch):
    """d(logit 1 - logit 7)/dx of image 0 in eval mode, ours in float64 against the stored float32.

    In float64 the result depends on no processor, and what remains is the rounding of the stored one, at
    most 6.8e-6 (dm_wrn28_10_silu). Float32 programs of ours are compared by their logits.

    A ReLU network is piecewise linear. Where one of its millions of pre-activations is zero up to rounding,
    the gradients on both sides are right. That is so on this input for MobileNetV2 and WRN-34-10, which
    differ from the reference by 0.2 % and 0.9 % as they stand, and by 1.5e-6 once the unit has fallen on the
    other side. So the reference must be the gradient of our network itself or of one whose running means
    are moved by what the float32 sums before them are rounded by, 3e-7.
    """
    name, options = OURS[arch]
    bundle = models.create(name, **options)
    expected = golden()[f"{arch}/grad_input_z1_minus_z7_img0"]

    @jax.jit
    def gradient(variables, x, key, size):
        flat, tree = jax.tree_util.tree_flatten_with_path(variables["batch_stats"])
        moved = [
            leaf + size * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
            if path[-1].key == "mean"
            else leaf
            for i, (path, leaf) in enumerate(flat)
        ]
        variables = {**variables, "batch_stats": jax.tree.unflatten(tree, moved)}

        def difference(x):
            logits, _ = bundle.apply(variables, x, False)
            return logits[0, 1] - logits[0, 7]

        return jax.grad(difference)(x)[0]

    errors = []
    with in_float64(), jax.default_matmul_precision("highest"):
        variables = interop.from_torch(name, filled_state(arch), **options)
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        x = jnp.asarray(golden()["input"][:1], jnp.float64)
        for attempt in range(40 if "silu" not in arch else 1):
            size = MOVE if attempt else 0.0
            actual = gradient(variables, x, jax.random.key(attempt), size)
            assert actual.dtype == jnp.float64
            errors.append(relative_error(actual, expected))
            if errors[-1] < 1e-5:
                break
    assert errors[-1] < 1e-5, f"smallest relative errors of {len(errors)}: {sorted(errors)[:5]}"
    # A wrong gradient, unlike one flipped unit, is not near the reference to begin with.
    assert errors[0] < 0.02


def shared_data():
    default = Path(__file__).resolve().parents[3] / "shared"
    return Path(os.environ.get("ARD_SHARED", default)) / "data"


@pytest.mark.data
@pytest.mark.slow
def test_real_akamaster_checkpoint_on_cifar10_test_images():
    torch = pytest.importorskip("torch", reason="reading the .th file needs torch")
    tfds = pytest.importorskip("tensorflow_datasets")
    real = STATES["akamaster_resnet56"]["real_weights"]
    file = shared_data() / "weights" / "resnet56-4bfd9763.th"
    if not file.exists() or not (shared_data() / "tfds" / "cifar10").exists():
        pytest.skip(f"{file} or {shared_data() / 'tfds' / 'cifar10'} is not there")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == real["sha256"]
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    state = {name: value.numpy() for name, value in checkpoint["state_dict"].items()}
    options = {
        "shortcut": "A",
        "normalization": {"mean": real["input_mean"], "std": real["input_std"]},
    }
    bundle = models.create("resnet56", **options)
    variables = interop.from_torch("resnet56", state, **options)

    key = "akamaster_resnet56_real"
    first, end = golden()[f"{key}/acc_range"]
    wanted = set(range(first, end)) | set(golden()[f"{key}/test_index"].tolist())
    source = tfds.data_source(
        "cifar10", split="test", data_dir=shared_data() / "tfds", download=False
    )
    images, labels = {}, {}
    for example in source:
        index = int(example["id"].decode().rsplit("_", 1)[1])
        if index in wanted:
            images[index], labels[index] = example["image"], int(example["label"])

    predict = jax.jit(lambda x: bundle.apply(variables, x, False)[0])

    def logits_of(indices):
        batch = np.stack([images[i] for i in indices]).astype(np.float32) / 255.0
        with jax.default_matmul_precision("highest"):
            return np.concatenate([predict(part) for part in np.split(batch, len(batch) // 8)])

    logits = logits_of(golden()[f"{key}/test_index"].tolist())
    assert relative_error(logits, golden()[f"{key}/logits"]) < 1e-5
    correct = logits_of(range(first, end)).argmax(-1) == [labels[i] for i in range(first, end)]
    np.testing.assert_array_equal(correct, golden()[f"{key}/correct_mask_2000"])
    assert correct.mean() == pytest.approx(float(golden()[f"{key}/acc_2000"]), abs=1e-6)
