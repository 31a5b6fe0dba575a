"""One network in JAX and in PyTorch, from the same weights, for side-by-side measurements.

"cnn_a": a small adversarially trained CIFAR-10 network of Verified-Intelligence/alpha-beta-CROWN, two 4x4
convolutions of stride 2 and two dense layers. "plain": a network as a user writes it, channels first and in
`lax.conv_general_dilated`, four 3x3 convolutions. Any other name: a network of `ard_jax.models`, as the
product runs it. An imported or trained one: the folder of its checkpoint.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import models
from ard_jax.checkpoints import networks
from ard_jax.interop import torch_names
from ard_jax.models import canonical_conv
from ard_jax.models.bundle import normalization_constants

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "attacks_slice.npz"
_PLAIN = ((3, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2))  # channels in and out, stride
MEAN, STD = (np.array(v, np.float32) for v in ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)))


class Pair(NamedTuple):
    """Both forms: predict takes images [B,32,32,3], module images [B,3,32,32]; both give logits."""

    predict: Any
    module: Any


def make(name: str) -> Pair:
    """Returns a network in both forms, in evaluation mode.

    Raises:
      ValueError: unknown name.
    """
    if name == "cnn_a":
        golden, prefix = np.load(GOLDEN), "cnn_a/weights/"
        weights = {k.removeprefix(prefix): golden[k] for k in golden if k.startswith(prefix)}
        return Pair(jax_cnn_a(weights), _ready(torch_cnn_a(weights)))
    if name == "plain":
        return _plain()
    kwargs = {}
    if Path(name).is_dir():
        bundle, variables, _, _ = networks.load(name)
        kwargs = networks.describe_checkpoint(name)[0]["kwargs"]
    else:
        bundle = models.create(name)
        variables = jax.jit(bundle.init)(jax.random.key(0))
    twin = _twin(bundle, variables, kwargs)
    return Pair(lambda x: bundle.apply(variables, x, False)[0], _ready(twin))


def _twin(bundle, variables, kwargs):
    import torch

    from ard_jax.interop import torch_modules

    tensors = torch_names.to_torch(bundle, variables)
    constants = normalization_constants(bundle.normalization, 3)
    mean, std = (np.zeros(3), np.ones(3)) if constants is None else constants
    tensors |= {"normalization.mean": mean, "normalization.std": std}
    module = torch_modules.create(bundle.name, bundle.num_classes, list(bundle.image_shape), kwargs)
    module.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in tensors.items()})
    return module


def _ready(module):
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def _plain() -> Pair:
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = []
    for inputs, outputs, stride in _PLAIN:
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU()]
    body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 8 * 8, 10))
    w = {name: jnp.asarray(value.detach().numpy()) for name, value in body.state_dict().items()}

    def predict(images):
        x = jnp.transpose((images - MEAN) / STD, (0, 3, 1, 2))
        for i, (_, _, stride) in enumerate(_PLAIN):
            x = jax.lax.conv_general_dilated(
                x, w[f"{2 * i}.weight"], (stride, stride), ((1, 1), (1, 1)),
                dimension_numbers=("NCHW", "OIHW", "NCHW"),
            )  # fmt: skip
            x = jax.nn.relu(x + w[f"{2 * i}.bias"][:, None, None])
        return x.reshape(x.shape[0], -1) @ w["9.weight"].T + w["9.bias"]

    return Pair(predict, _ready(nn.Sequential(_normalise(MEAN, STD), body)))


def _normalise(mean, std):
    import torch
    from torch import nn

    class Normalise(nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in (("mean", mean), ("std", std)):
                self.register_buffer(name, torch.tensor(value)[:, None, None])

        def forward(self, x):
            return (x - self.mean) / self.std

    return Normalise()


def jax_cnn_a(weights):
    """Images [B,32,32,3] -> logits [B,10]."""
    w = {k: jnp.asarray(v) for k, v in weights.items()}
    kernels = {k: jnp.transpose(w[k], (2, 3, 1, 0)) for k in ("m.0.weight", "m.2.weight")}
    # torch flattens channel-first; the dense kernel is reordered once instead of every activation.
    width = w["m.2.weight"].shape[0]
    dense = w["m.5.weight"].reshape(-1, width, 8, 8).transpose(2, 3, 1, 0).reshape(64 * width, -1)

    def conv(x, name):
        x = canonical_conv(
            x, kernels[f"{name}.weight"], (2, 2), ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return jax.nn.relu(x + w[f"{name}.bias"])

    def predict(images):
        x = conv(conv((images - w["mean"]) / w["std"], "m.0"), "m.2")
        x = jax.nn.relu(x.reshape(x.shape[0], -1) @ dense + w["m.5.bias"])
        return x @ w["m.7.weight"].T + w["m.7.bias"]

    return predict


def torch_cnn_a(weights):
    """The same as a torch module on images [B,3,32,32]."""
    import torch
    from torch import nn

    body = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    body.load_state_dict(
        {k.removeprefix("m."): torch.tensor(np.asarray(v)) for k, v in weights.items() if "m." in k}
    )
    return nn.Sequential(_normalise(weights["mean"], weights["std"]), body)
