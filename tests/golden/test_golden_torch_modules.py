"""The exported PyTorch code against the code that the networks come from: logits of models_slice.npz."""

import pytest
from test_golden_models import (
    OURS,
    SHAPES_ONLY,
    STATES,
    filled_state,
    golden,
    relative_error,
)

pytestmark = pytest.mark.golden


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(arch, marks=pytest.mark.slow if "wrn" in arch else ())
        for arch in OURS
        if arch not in SHAPES_ONLY
    ],
)
def test_logits_of_the_torch_modules(arch):
    torch = pytest.importorskip("torch", reason="the exported code is PyTorch's")
    from ard_jax.interop import torch_modules

    name, options = OURS[arch]
    network = torch_modules.create(name, 10, [32, 32, 3], options)
    state = {key: torch.from_numpy(value) for key, value in filled_state(arch).items()}
    if "silu" in arch:
        # The golden file's DeepMind networks normalise inside, by CIFAR-10's statistics.
        network.normalization.mean.copy_(torch.tensor([0.4914, 0.4822, 0.4465]))
        network.normalization.std.copy_(torch.tensor([0.2471, 0.2435, 0.2616]))
    missing, unexpected = network.load_state_dict(state, strict=False)
    # PyTorch fills in num_batches_tracked itself; only our two constants are not in the originals.
    assert set(missing) == {"normalization.mean", "normalization.std"} and not unexpected
    images = torch.from_numpy(golden()["input"].transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        in_eval = network.eval()(images).numpy()
        in_training = network.train()(images).numpy()
    # The originals ran in PyTorch as well: only the order of sums may differ.
    assert relative_error(in_eval, golden()[f"{arch}/logits_eval"]) < 1e-5
    assert relative_error(in_training, golden()[f"{arch}/logits_train"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(SHAPES_ONLY))
def test_shapes_of_the_torch_modules(arch):
    torch = pytest.importorskip("torch", reason="the exported code is PyTorch's")
    from ard_jax.interop import torch_modules

    name, options = OURS[arch]
    options = dict(options)
    classes = options.pop("num_classes", 10)
    with torch.device("meta"):
        network = torch_modules.create(name, classes, [32, 32, 3], options)
    tensors = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    for tensor, shape in STATES[arch]["state"]:
        assert tensors.pop(tensor) == tuple(shape), tensor
    assert all("num_batches_tracked" in key or "normalization." in key for key in tensors)
