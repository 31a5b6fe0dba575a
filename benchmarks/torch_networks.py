"""One network in JAX and in PyTorch, from the same weights, for side-by-side measurements.

cnn_a is a small adversarially trained CIFAR-10 network of Verified-Intelligence/alpha-beta-CROWN: two
4x4 convolutions of stride 2 and two dense layers. Weights are torch-named arrays in torch layouts.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax.models import canonical_conv


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
    """The same as a torch module on images [B,3,32,32], in eval mode."""
    import torch
    from torch import nn

    class Normalise(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("mean", "std"):
                self.register_buffer(name, torch.tensor(weights[name])[:, None, None])

        def forward(self, x):
            return (x - self.mean) / self.std

    body = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    body.load_state_dict(
        {k.removeprefix("m."): torch.tensor(np.asarray(v)) for k, v in weights.items() if "m." in k}
    )
    module = nn.Sequential(Normalise(), body).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module
