"""PyTorch names and layouts of our networks. Needs numpy arrays, not PyTorch.

Module names in `ard_jax.models` are the names of the published PyTorch code with "__" for ".", so the
mapping is a rule and needs no table per architecture:

    params/layer1__0/conv1/kernel       [kh, kw, in, out]  <-  layer1.0.conv1.weight  [out, in, kh, kw]
    params/fc/kernel                    [in, out]          <-  fc.weight              [out, in]
    params/blocks__0/norm1/scale        [C]                <-  blocks.0.norm1.weight
    params/pos_embed                    [1, N, D]          <-  pos_embed
    params/bn1/scale, bias              [C]                <-  bn1.weight, bn1.bias
    batch_stats/bn1/mean, var           [C]                <-  bn1.running_mean, bn1.running_var
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import models
from ard_jax.models.bundle import (
    check_fit,
    check_network,
    differences,
    normalization_constants,
    summary,
)

_LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "gamma": "gamma",
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
}
# Axes of kernels; other tensors have the same in both.
_TO_TORCH, _TO_OURS = {4: (3, 2, 0, 1), 2: (1, 0)}, {4: (2, 3, 1, 0), 2: (1, 0)}
# Never used by the network: counters of PyTorch (BatchNorm, AveragedModel), and the block that TRADES'
# WideResNet builds for nothing.
_DEAD = re.compile(r"(.*\.)?(num_batches_tracked|n_averaged)|(.*\.)?sub_block1\..*")
# Buffers of normalisation layers: of DeepMind's newer networks, RobustBench, nn.Sequential(Normalize, net)
# and the `robustness` library.
CONSTANTS = re.compile(r"(?:.*\.)?(mean|std|mu|sigma|new_mean|new_std)")
_KINDS = {"mean": "mean", "mu": "mean", "new_mean": "mean"}


class Tidied(NamedTuple):
    """A state dict, sorted into what the network is made of and the rest.

    Attributes:
      tensors: torch name without common prefixes -> array.
      constants: None, or the stored normalisation {"mean": [...], "std": [...]} of floats.
      ignored: names, as in the file, of tensors that no network uses.
    """

    tensors: dict[str, np.ndarray]
    constants: dict[str, list[float]] | None
    ignored: tuple[str, ...]


def tidy(state: Mapping[str, np.ndarray]) -> Tidied:
    """Takes the network out of a state dict.

    Prefixes common to all of it go ("module." of DataParallel, "model.", "net.", "_orig_mod." of
    torch.compile, "1." of nn.Sequential(Normalize, net)); so do tensors that are known to be dead
    (`num_batches_tracked`, `n_averaged`, TRADES' `sub_block1.*`) and the constants of a normalisation layer.

    Args:
      state: torch name -> array.

    Returns:
      A Tidied.

    Raises:
      ValueError: no dict, or no network in it; several normalisation layers; half of one.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"state is {type(state).__name__}; give a dict of torch name -> array")
    if inner := [name for name, value in state.items() if isinstance(value, Mapping)]:
        raise ValueError(f"state is a checkpoint that holds more dicts; give state[{inner[0]!r}]")
    tensors, constants, ignored = {}, {}, []
    for name, value in state.items():
        match = CONSTANTS.fullmatch(name)
        if _DEAD.fullmatch(name):
            ignored.append(name)
        elif match:
            constants.setdefault(_KINDS.get(match[1], "std"), {})[name] = value
        else:
            tensors[name] = value
    if not tensors:
        raise ValueError(f"there are no tensors of a network in the file, only {list(state)[:8]}")
    while True:
        prefix = next(iter(tensors)).partition(".")[0] + "."
        if not all(name.startswith(prefix) for name in tensors):
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return Tidied(tensors, _read_constants(constants), tuple(ignored))


def _read_constants(found: dict[str, dict[str, Any]]):
    if not found:
        return None
    names = [name for group in found.values() for name in group]
    # A file of `robustness` has them twice, of the network and of its attacker.
    values = {
        kind: {np.ravel(v).tobytes(): v for v in group.values()} for kind, group in found.items()
    }
    if set(values) != {"mean", "std"} or any(len(group) != 1 for group in values.values()):
        raise ValueError(
            f"the tensors {names} look like the mean and std of normalisation layers, but there must be "
            "one mean and one std; take the others out of the file"
        )
    return {
        # By way of str: the shortest number that is this float32, 0.4914 and not 0.49140000343.
        kind: [float(str(x)) for x in np.ravel(np.asarray(value, np.float32))]
        for kind, (value,) in ((kind, values[kind].values()) for kind in ("mean", "std"))
    }


def from_torch(
    model_name: str, state: Mapping[str, np.ndarray], **model_kwargs: Any
) -> dict[str, Any]:
    """Converts the state dict of a published PyTorch network to our variables.

    Prefixes, dead tensors and stored constants are treated as in `tidy`. Stored constants are compared with
    the normalisation of the model.

    Args:
      model_name: name for `ard_jax.models.create`.
      state: torch name -> array in torch layout (convolution [out, in, kh, kw], linear [out, in]), of any
        floating dtype.
      **model_kwargs: further arguments of `ard_jax.models.create` (num_classes, image_shape, ...).

    Returns:
      {"params": ..., "batch_stats": ...}, nested dicts of new float32 numpy arrays.

    Raises:
      ValueError: tensors are missing, left over, of the wrong shape, not floating point or not finite (the
        message names them), or the stored normalisation differs from the model's.
    """
    if not isinstance(model_name, str):
        kind = type(model_name).__name__
        raise ValueError(
            f"model_name is {kind}; give the name first, as from_torch('resnet18', state)"
        )
    bundle = models.create(model_name, **model_kwargs)
    tensors, constants, _ = tidy(state)
    if constants is not None:
        _check_constants(bundle, constants)
    return to_variables(bundle, tensors)


def to_variables(bundle: models.ModelBundle, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """As `from_torch`, for tensors that `tidy` has been through. Raises ValueError likewise."""
    given = {name: np.shape(value) for name, value in tensors.items()}
    problems = differences(given, torch_layout(bundle))
    if problems:
        raise ValueError(
            f"the state dict does not fit {bundle.name}: {summary(problems)}. Check the model's name, its "
            "options (shortcut, form, widths), num_classes and the image size"
        )

    def convert(path: Iterable, _: Any):
        name = torch_name(path)
        value = _as_float32(name, tensors[name])
        _check_trained(name, value)
        value = value.transpose(_TO_OURS.get(value.ndim, range(value.ndim)))
        return np.array(value, order="C")

    return jax.tree_util.tree_map_with_path(convert, _shapes(bundle))


def to_torch(bundle: models.ModelBundle, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`, exact: our variables under the published PyTorch names.

    Args:
      bundle: the network.
      variables: {"params": ..., "batch_stats": ...} of it.

    Returns:
      Torch name -> new float32 array in torch layout, in the order of our variables. The normalisation is
      not among them, nor is `num_batches_tracked`, which PyTorch fills in itself.

    Raises:
      ValueError: no network, or variables that are not its own.
    """
    check_fit(bundle, variables)
    return {
        torch_name(path): np.array(_to_torch_layout(np.asarray(leaf, np.float32)), order="C")
        for path, leaf in _leaves(variables)
    }


def from_our_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under our own flat names ("params/fc/kernel") -> torch names and layouts.

    Raises:
      ValueError: a name that is not one of ours.
    """
    state = {}
    for name, value in tensors.items():
        *modules, leaf = name.split("/")
        own = leaf in ("cls_token", "pos_embed")  # of the network itself, not of a layer
        if len(modules) < 2 - own or leaf not in _LEAF_NAMES:
            raise ValueError(
                f"{name} is no tensor of a network of ours; it should be like params/fc/kernel"
            )
        state[torch_name(modules + [leaf])] = _to_torch_layout(np.asarray(value))
    return state


def torch_layout(bundle: models.ModelBundle) -> dict[str, tuple[int, ...]]:
    """Torch name -> torch shape of every tensor of a network, from shapes alone (nothing is allocated).

    Raises:
      ValueError: no network.
    """
    check_network(bundle)
    layout = {}
    for path, leaf in _leaves(_shapes(bundle)):
        shape = leaf.shape
        layout[torch_name(path)] = tuple(
            shape[i] for i in _TO_TORCH.get(len(shape), range(len(shape)))
        )
    return layout


def torch_name(path: Iterable) -> str:
    """Key path (collection, module, ..., leaf) of one of our variables -> torch name."""
    _, *modules, leaf = (getattr(entry, "key", entry) for entry in path)
    return ".".join([*(m.replace("__", ".") for m in modules), _LEAF_NAMES[leaf]])


def _shapes(bundle: models.ModelBundle):
    return jax.eval_shape(lambda: bundle.init(jax.random.key(0)))


def _leaves(tree: Any):
    return jax.tree_util.tree_leaves_with_path(tree)


def _to_torch_layout(value: np.ndarray):
    return value.transpose(_TO_TORCH.get(value.ndim, range(value.ndim)))


def _as_float32(name: str, value: Any):
    value = np.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"{name} is of dtype {value.dtype}, not floating point; quantised networks cannot be converted"
        )
    with np.errstate(
        over="ignore"
    ):  # too large for float32 becomes infinite, which is refused below
        value = value.astype(np.float32)
    if not np.all(np.isfinite(value)):
        raise ValueError(f"{name} contains NaN or infinite values; the file is damaged")
    return value


def _check_trained(name: str, value: np.ndarray):
    """Raises ValueError for values that no training leaves, and that a network still computes with."""
    # A channel without variance may be a dead one.
    if name.endswith("running_var") and ((bad := value[value < 0]).size or not value.any()):
        what = (
            f"{bad.size} of {value.size} variances below 0, the first {bad[0]:g}"
            if bad.size
            else "only zeros"
        )
        raise ValueError(
            f"{name} has {what}: no statistics of a trained network; download or save the file again"
        )
    if value.ndim > 1 and not value.any():
        raise ValueError(
            f"{name} is zero everywhere: no weights of a trained network; download or save the file again"
        )


def _check_constants(bundle: models.ModelBundle, stored: dict[str, list[float]]):
    ours = normalization_constants(bundle.normalization, bundle.image_shape[-1])
    values = [stored["mean"], stored["std"]]
    if ours is None or not np.allclose(ours, values, rtol=0, atol=1e-6):
        raise ValueError(
            f"the state dict was trained with the normalisation {stored}, but {bundle.name} uses "
            f"{bundle.normalization!r}; pass normalization={stored}"
        )
