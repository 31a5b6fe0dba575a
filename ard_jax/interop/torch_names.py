"""PyTorch names and layouts of our networks. Needs numpy arrays, not PyTorch.

Module names in `ard_jax.models` are the names of the published PyTorch code with "__" for ".", so the
mapping is a rule and needs no table per architecture:

    params/layer1__0/conv1/kernel       [kh, kw, in, out]  <-  layer1.0.conv1.weight  [out, in, kh, kw]
    params/fc/kernel                    [in, out]          <-  fc.weight              [out, in]
    params/bn1/scale, bias              [C]                <-  bn1.weight, bn1.bias
    batch_stats/bn1/mean, var           [C]                <-  bn1.running_mean, bn1.running_var
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ard_jax import models
from ard_jax.models.bundle import normalization_constants

_LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Never used by the network: PyTorch's counter, and the block that TRADES' WideResNet builds for nothing.
_UNUSED = re.compile(r"(.*\.)?num_batches_tracked|sub_block1\..*")
_CONSTANTS = ("mean", "std")  # newer DeepMind networks store the normalisation in the checkpoint


def from_torch(model_name: str, state: Mapping[str, np.ndarray], **model_kwargs) -> dict[str, Any]:
    """Converts the state dict of a published PyTorch network to our variables.

    A prefix "module." on all names (torch.nn.DataParallel) is removed; `num_batches_tracked` and TRADES'
    unused `sub_block1.*` are dropped. Stored normalisation constants (`mean`, `std`) are compared with
    the normalisation of the model.

    Args:
      model_name: name for `ard_jax.models.create`.
      state: torch name -> array in torch layout (convolution [out, in, kh, kw], linear [out, in]).
      **model_kwargs: further arguments of `ard_jax.models.create` (num_classes, image_shape, ...).

    Returns:
      {"params": ..., "batch_stats": ...}, nested dicts of new float32 numpy arrays.

    Raises:
      ValueError: tensors are missing, left over or of the wrong shape (the message names them), or the
        stored normalisation differs from the model's.
    """
    bundle = models.create(model_name, **model_kwargs)
    state = _strip(state)
    if set(_CONSTANTS) <= set(state):
        _check_constants(bundle, state.pop("mean"), state.pop("std"))
    layout = torch_layout(bundle)
    _check_tensors(model_name, {name: np.shape(value) for name, value in state.items()}, layout)

    def convert(path, _):
        value = np.asarray(state[_torch_name(path)], np.float32)
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        return np.array(value, order="C")

    return jax.tree_util.tree_map_with_path(convert, _shapes(bundle))


def torch_layout(bundle: models.ModelBundle) -> dict[str, tuple[int, ...]]:
    """Torch name -> torch shape of every tensor of a network, from shapes alone (nothing is allocated)."""
    layout = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(_shapes(bundle)):
        shape = leaf.shape
        shape = (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]
        layout[_torch_name(path)] = tuple(shape)
    return layout


def _shapes(bundle):
    return jax.eval_shape(lambda: bundle.init(jax.random.key(0)))


def _torch_name(path):
    """Key path (collection, module, ..., leaf) -> torch name."""
    _, *modules, leaf = (entry.key for entry in path)
    return ".".join([*(m.replace("__", ".") for m in modules), _LEAF_NAMES[leaf]])


def _strip(state):
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value for name, value in state.items() if not _UNUSED.fullmatch(name)}


def _check_tensors(model_name, given, layout):
    problems = [f"missing {name} {shape}" for name, shape in layout.items() if name not in given]
    problems += [f"not part of it {name} {s}" for name, s in given.items() if name not in layout]
    problems += [
        f"{name} is {given[name]} but must be {shape}"
        for name, shape in layout.items()
        if name in given and given[name] != shape
    ]
    if problems:
        shown = "; ".join(problems[:8])
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"the state dict does not fit {model_name}: {shown}{more}. Check the model's name, its "
            "options (shortcut, form, widths) and num_classes"
        )


def _check_constants(bundle, mean, std):
    stored = [np.ravel(mean), np.ravel(std)]
    ours = normalization_constants(bundle.normalization, bundle.image_shape[-1])
    if ours is None or not np.allclose(ours, stored, rtol=0, atol=1e-6):
        values = {"mean": stored[0].tolist(), "std": stored[1].tolist()}
        raise ValueError(
            f"the state dict was trained with the normalisation {values}, but {bundle.name} uses "
            f"{bundle.normalization!r}; pass normalization={values}"
        )
