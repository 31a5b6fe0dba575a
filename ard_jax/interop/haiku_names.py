"""DeepMind's Haiku WideResNet under the names and layouts of its PyTorch twin.

google-deepmind/deepmind-research, adversarial_robustness, jax/model_zoo.py; its .npy files hold (params,
state), which arrive here flat:

    params/wide_res_net/~/init_conv/w                      ->  init_conv.weight
    params/wide_res_net/~/resnet_lay_0_block_1/~/conv_0/w  ->  layer.0.block.1.conv_0.weight
    params/wide_res_net/~/batchnorm/scale, offset          ->  batchnorm.weight, bias
    params/wide_res_net/~/logits/w, b                      ->  logits.weight, bias
    state/wide_res_net/~/batchnorm/~/mean_ema/average      ->  batchnorm.running_mean
    state/wide_res_net/~/batchnorm/~/var_ema/average       ->  batchnorm.running_var

Haiku's convolutions are [kh, kw, in, out], linear kernels [in, out], everything of BatchNorm [1, 1, 1, C].

The two twins compute the same: Haiku's "SAME" pads a 3x3 convolution of stride 2 by (0, 1) at an even size,
as the PyTorch code does by hand; BatchNorm's epsilon is 1e-5 in both; in evaluation Haiku uses `average`, the
running mean corrected for its start at zero, so that `hidden` (uncorrected) and `counter` are left out. They
differ for width 1 alone, where Haiku's first block has a shortcut that PyTorch's has not; such a network is
refused. The normalisation is outside the Haiku network, with the mean and std of DeepMind's PyTorch code.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

_BLOCK = re.compile(r"resnet_lay_(\d+)_block_(\d+)")
_DEAD = re.compile(r"state/.*/(mean|var)_ema/(hidden|counter)")
# (collection, last parts of the name) -> torch leaf
_LEAVES = {
    ("params", "w"): "weight",
    ("params", "b"): "bias",
    ("params", "scale"): "weight",
    ("params", "offset"): "bias",
    ("state", "mean_ema", "average"): "running_mean",
    ("state", "var_ema", "average"): "running_var",
}


def is_haiku(names: Iterable[str]) -> bool:
    """True for the names of a flattened Haiku tree (params/..., state/...)."""
    names = list(names)
    return (
        bool(names)
        and all(name.startswith(("params/", "state/")) for name in names)
        and any(name.endswith(("/w", "/mean_ema/average")) for name in names)
    )


def to_torch_names(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Renames and transposes.

    Args:
      tensors: Haiku name -> array, see the module's docstring.

    Returns:
      (torch name -> array in torch layout, names of the tensors that evaluation does not use).

    Raises:
      ValueError: a name that is not of this form, or two that mean the same.
    """
    state, ignored = {}, []
    for name, value in tensors.items():
        if _DEAD.fullmatch(name):
            ignored.append(name)
            continue
        new = _torch_name(name)
        if new in state:
            raise ValueError(f"two tensors of the Haiku file mean {new}, the second is {name}")
        state[new] = _torch_layout(np.asarray(value))
    return state, tuple(ignored)


def _torch_name(name: str):
    # "~" marks modules made in a constructor; the first module is the network itself.
    collection, *parts = (part for part in name.split("/") if part != "~")
    length = 2 if collection == "state" else 1
    leaf = _LEAVES.get((collection, *parts[-length:]))
    modules = parts[1:-length]
    if leaf is None or not modules:
        raise ValueError(
            f"{name} is not a tensor of DeepMind's Haiku WideResNet; it should be like "
            "params/wide_res_net/~/init_conv/w or state/wide_res_net/~/batchnorm/~/mean_ema/average"
        )
    return ".".join([*(_BLOCK.sub(r"layer.\1.block.\2", m) for m in modules), leaf])


def _torch_layout(value: np.ndarray):
    if value.ndim == 4 and value.shape[:3] == (1, 1, 1):
        return value.reshape(-1)
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
