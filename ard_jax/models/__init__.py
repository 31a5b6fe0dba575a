"""Networks, as pure functions of explicit variables.

`create` makes a ModelBundle; everything else in the library sees networks only through it. This is the only
folder that imports flax.linen.
"""

import functools
import inspect
import re
from typing import Any

from ard_jax.convolutions.canonical_conv import canonical_conv
from ard_jax.losses import checks
from ard_jax.models import convnext, mobilenet_v3, vision_transformer
from ard_jax.models.bundle import NORMALIZATIONS, ModelBundle, make_bundle, num_params
from ard_jax.models.cifar_resnet import resnet20, resnet32, resnet44, resnet56
from ard_jax.models.efficientnet import efficientnet_b0
from ard_jax.models.layers import Layers
from ard_jax.models.mobilenet_v2 import mobilenet_v2
from ard_jax.models.preact_resnet import preact_resnet18, preact_resnet34
from ard_jax.models.resnet import RESNET18, RESNET34, RESNET50, WIDE_RESNET50_2, resnet
from ard_jax.models.shufflenet_v2 import shufflenet_v2
from ard_jax.models.small_cnn import small_cnn
from ard_jax.models.small_resnet import small_resnet
from ard_jax.models.wide_resnet import dm_wrn, wrn

__all__ = [
    "MODELS",
    "NORMALIZATIONS",
    "ModelBundle",
    "canonical_conv",
    "check_name",
    "create",
    "names",
    "num_params",
]

# name -> function (layers, num_classes, *, options of the architecture) -> Architecture. Any other depth
# and width of a wide ResNet is found by its name, see `_builder`.
MODELS = {
    "small_cnn": small_cnn,
    "small_resnet": small_resnet,
    "resnet18": functools.partial(resnet, depth=RESNET18, form="cifar"),
    "resnet34": functools.partial(resnet, depth=RESNET34, form="cifar"),
    "resnet50": functools.partial(resnet, depth=RESNET50, form="imagenet"),
    "wide_resnet50_2": functools.partial(resnet, depth=WIDE_RESNET50_2, form="imagenet"),
    "mobilenet_v2": mobilenet_v2,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "preact_resnet18": preact_resnet18,
    "preact_resnet34": preact_resnet34,
    "wrn_28_10": functools.partial(wrn, depth=28, width=10),
    "wrn_34_10": functools.partial(wrn, depth=34, width=10),
    "dm_wrn_22_6": functools.partial(dm_wrn, depth=22, width=6),
    "dm_wrn_28_10": functools.partial(dm_wrn, depth=28, width=10),
    "dm_wrn_34_10": functools.partial(dm_wrn, depth=34, width=10),
    "dm_wrn_70_16": functools.partial(dm_wrn, depth=70, width=16),
    "mobilenet_v3_large": functools.partial(mobilenet_v3.mobilenet_v3, size=mobilenet_v3.LARGE),
    "mobilenet_v3_small": functools.partial(mobilenet_v3.mobilenet_v3, size=mobilenet_v3.SMALL),
    "efficientnet_b0": efficientnet_b0,
    "shufflenet_v2": shufflenet_v2,
    "convnext_tiny": functools.partial(convnext.convnext, size=convnext.TINY),
    "convnext_small": functools.partial(convnext.convnext, size=convnext.SMALL),
    "convnext_base": functools.partial(convnext.convnext, size=convnext.BASE),
    "convnext_large": functools.partial(convnext.convnext, size=convnext.LARGE),
    "vit_tiny": functools.partial(vision_transformer.vit, size=vision_transformer.TINY),
    "vit_small": functools.partial(vision_transformer.vit, size=vision_transformer.SMALL),
    "vit_base": functools.partial(vision_transformer.vit, size=vision_transformer.BASE),
}


def names() -> list[str]:
    """Names that `create` takes; besides these, wrn_{depth}_{width} and dm_wrn_{depth}_{width}."""
    return list(MODELS)


def check_name(name: str) -> None:
    """Raises ValueError, naming the choices, unless `create` takes this name."""
    _builder(name)


def create(
    name: str,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    *,
    init: str = "torch",
    dtype: str = "float32",
    normalization: Any = None,
    bn_groups: int = 1,
    remat: bool = False,
    **kwargs: Any,
) -> ModelBundle:
    """Makes a network.

    Args:
      name: one of `names()`, or wrn_{depth}_{width} (form of TRADES), dm_wrn_{depth}_{width} (DeepMind's).
      num_classes: number of logits, at least 2.
      image_shape: (H, W, C) of the images; any number of channels.
      init: initialisation of convolutions and linear layers. "torch": PyTorch's default, kernels and
        biases U(-b, b) with b = 1 / sqrt(fan_in); some originals override it (TRADES' WRN draws from a
        normal distribution), which is not reproduced. "flax": lecun_normal, zero bias. BN scale is 1,
        bias 0.
      dtype: compute type, "float32" ("f32") or "bfloat16" ("bf16"), or such a type. Parameters, BN
        statistics, pooling, the last linear layer and logits are float32 in both.
      normalization: what is done to the pixels inside the network: "none", "cifar10", "cifar100",
        "imagenet", {"mean": [...], "std": [...]}; None: the architecture's own, which is "none" for all
        but DeepMind's ("cifar100" for 100 classes, otherwise "cifar10") and torchvision's and timm's
        ("imagenet", but "none" with a ConvStem).
      bn_groups: 1: BatchNorm in training has the statistics of the whole (global) batch. G: each of G
        equal runs of consecutive images has its own, and the running statistics follow the first run, as
        in training with PyTorch's DataParallel on G devices. Evaluation mode knows no groups.
      remat: compute the activations inside of blocks again in the backward pass, instead of keeping them:
        less memory, about a third more work in it. Results are the same but for rounding. small_cnn has no
        blocks.
      **kwargs: options of the architecture: `shortcut` ("A" or "B") of resnet20 to resnet56, `form`
        ("cifar", "imagenet") of resnet18 to wide_resnet50_2, `form` ("rice", "robustbench" or "deepmind")
        of preact_resnet18/34, `stem` ("patch", "conv") of ConvNeXt and ViT, `patch` of ViT, `widths` of
        small_cnn, `widths`, `blocks` and `stem_stride` of small_resnet.

    Returns:
      A ModelBundle.

    Raises:
      ValueError: unknown name, option or value; an image size or number of channels that does not fit.
    """
    builder = _builder(name)
    options = [
        p.name
        for p in inspect.signature(builder).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in ("depth", "width", "size")
    ]
    unknown = sorted(set(kwargs) - set(options))
    if unknown:
        raise ValueError(
            f"{name} has no option {', '.join(unknown)}; its options are {', '.join(options) or 'none'}"
        )
    classes = checks.count(num_classes, "num_classes", 2)
    if not isinstance(dtype, str):
        dtype = getattr(dtype, "__name__", None) or str(dtype)
    dtype = {"f32": "float32", "bf16": "bfloat16"}.get(dtype, dtype)
    architecture = builder(Layers(init, dtype, bn_groups, remat), classes, **kwargs)
    return make_bundle(name, architecture, classes, image_shape, normalization)


def _builder(name: str):
    if isinstance(name, str) and name in MODELS:
        return MODELS[name]
    wide = re.fullmatch(r"(dm_)?wrn_(\d+)_(\d+)", str(name))
    if wide:
        function = dm_wrn if wide[1] else wrn
        return functools.partial(function, depth=int(wide[2]), width=int(wide[3]))
    raise ValueError(
        f"unknown model {name!r}; choose one of {names()}, or wrn_{{depth}}_{{width}}, "
        "dm_wrn_{depth}_{width}"
    )
