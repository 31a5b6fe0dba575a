"""What the names and shapes of published networks look like.

Names decide the family, shapes its depth, width and number of classes. What they cannot tell: the activation,
the padding, where a shortcut branches off, the input normalisation. The published code of a family decides
the first three. Where publishers of the same tensors disagree about the last, the family's text says so and
the normalisation is None.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_WIDTHS = (64, 128, 256, 512)  # of the stages of ResNet-18 to 50


class Guess(NamedTuple):
    """An architecture that tensors look like; whether all of them fit is not checked here.

    Attributes:
      model: name for `models.create`, perhaps of a depth that does not exist.
      kwargs: its options.
      family: whose network it is, for people.
      normalization: what all publishers of the family use, as `models.create` takes it; None: unknown.
      side: height and width of the images that its tensors or its publishers are for.
    """

    model: str
    kwargs: dict[str, Any]
    family: str
    normalization: Any
    side: int = 32


def guess(shapes: Mapping[str, tuple[int, ...]], classes: int) -> Guess | None:
    """What tensors of these names and shapes look like; None: like no family known here.

    Args:
      shapes: PyTorch's name without prefixes -> shape.
      classes: number of logits.
    """
    best, most = None, len(shapes) / 2
    for pattern, describe in _FAMILIES.items():
        count = sum(bool(re.fullmatch(pattern, name)) for name in shapes)
        if count > most:
            best, most = describe, count
    return best(shapes, classes) if best else None


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str):
    """How many blocks a stage has: how many different first groups of the pattern there are."""
    return len({m[1] for m in (re.match(pattern, name) for name in shapes) if m})


def _outputs(shapes: Mapping[str, tuple[int, ...]], pattern: str):
    """Output channels of the widest layer of a name; 0 if there is none."""
    found = [s[0] for name, s in shapes.items() if s and re.fullmatch(rf"{pattern}\.weight", name)]
    return int(max(found, default=0))


def _of_deepmind(classes: int):
    return {10: "cifar10", 100: "cifar100"}.get(classes)


def _deepmind_wide(shapes: Mapping[str, tuple[int, ...]], classes: int):
    depth = 6 * _count(shapes, r"layer\.0\.block\.(\d+)\.") + 4
    width = _outputs(shapes, r"layer\.0\.block\.\d+\.conv_0") // 16
    family = "WideResNet of DeepMind (also RobustBench, MTARD), SiLU"
    normalization = _of_deepmind(classes)
    if (depth, width, classes) == (22, 6, 100):
        family = "WideResNet-22-6 of MTARD (DeepMind's form, SiLU), CIFAR-10's normalisation for CIFAR-100"
        normalization = "cifar10"
    return Guess(f"dm_wrn_{depth}_{width}", {}, family, normalization)


def _deepmind_preact(shapes: Mapping[str, tuple[int, ...]], classes: int):
    depth = 34 if _count(shapes, r"layer_1\.(\d+)\.") == 4 else 18
    family = "PreActResNet of DeepMind (also RobustBench), SiLU"
    return Guess(f"preact_resnet{depth}", {"form": "deepmind"}, family, _of_deepmind(classes))


def _trades_wide(shapes: Mapping[str, tuple[int, ...]], classes: int):
    depth = 6 * _count(shapes, r"block1\.layer\.(\d+)\.") + 4
    width = _outputs(shapes, r"block1\.layer\.\d+\.conv1") // 16
    family = "WideResNet of TRADES (also RobustBench, MTARD, RSLAD, CIARD), ReLU, raw pixels"
    return Guess(f"wrn_{depth}_{width}", {}, family, "none")


def _mobilenet(shapes: Mapping[str, tuple[int, ...]], classes: int):
    family = "CIFAR MobileNetV2 of kuangliu (mean and std) and CIARD, MTARD, RSLAD (raw pixels)"
    return Guess("mobilenet_v2", {}, family, None)


def _small_cnn(shapes: Mapping[str, tuple[int, ...]], classes: int):
    widths = tuple(_outputs(shapes, name) for name in ("conv1", "conv2"))
    return Guess("small_cnn", {"widths": widths}, "our small_cnn", None)


def _resnet(shapes: Mapping[str, tuple[int, ...]], classes: int):
    """Networks with stages layer1, layer2, ...: pre-activation, CIFAR ResNets, ResNet-18, ours."""
    blocks = [_count(shapes, rf"layer{stage}\.(\d+)\.") for stage in range(1, 10)]
    blocks = blocks[: max(1, blocks.index(0))] if 0 in blocks else blocks
    stages = range(1, len(blocks) + 1)
    widths = tuple(_outputs(shapes, rf"layer{stage}\.\d+\.conv1") for stage in stages)
    if "bn1.weight" not in shapes:
        form = "rice" if "bn.weight" in shapes else "robustbench"
        depth = 34 if blocks == [3, 4, 6, 3] else 18
        family = {
            "rice": "PreActResNet of robust_overfitting (final BN; mean and std outside) and others (raw)",
            "robustbench": "PreActResNet of RobustBench (no final BN)",
        }[form]
        return Guess(f"preact_resnet{depth}", {"form": form}, family, None)
    if blocks in ([2, 2, 2, 2], [3, 4, 6, 3]) and widths in (
        _WIDTHS,
        tuple(2 * w for w in _WIDTHS),
    ):
        return _four_stages(shapes, blocks, widths)
    depth = 6 * blocks[0] + 2
    if widths == (16, 32, 64) and depth in (20, 32, 44, 56) and "fc.weight" in shapes:
        family = "option-B CIFAR ResNet of chenyaofo (mean and std) or CIARD (raw pixels)"
        return Guess(f"resnet{depth}", {"shortcut": "B"}, family, None)
    if (
        widths == (16, 32, 64)
        and depth in (20, 32, 44, 56)
        and "layer2.0.shortcut.0.weight" not in shapes
    ):
        family = "option-A CIFAR ResNet of akamaster"
        normalization = "imagenet" if classes == 10 else None
        return Guess(f"resnet{depth}", {"shortcut": "A"}, family, normalization)
    family = "our small_resnet (stem_stride cannot be told from tensors: taken to be 1)"
    return Guess("small_resnet", {"widths": widths, "blocks": blocks[0]}, family, None)


def _four_stages(shapes: Mapping[str, tuple[int, ...]], blocks: list[int], widths: tuple[int, ...]):
    model, title = "resnet18", "ResNet-18"
    if "layer1.0.conv3.weight" in shapes:
        wide = widths != _WIDTHS
        model, title = ("wide_resnet50_2", "WRN-50-2") if wide else ("resnet50", "ResNet-50")
    elif blocks == [3, 4, 6, 3]:
        model, title = "resnet34", "ResNet-34"
    if shapes.get("conv1.weight", ())[2:] == (7, 7):
        family = f"{title} of torchvision (also robustness and RobustBench)"
        return Guess(model, {"form": "imagenet"}, family, "imagenet", 224)
    family = f"CIFAR {title} of kuangliu (mean and std) and CIARD, MTARD, RSLAD (raw pixels)"
    return Guess(model, {"form": "cifar"} if "50" in model else {}, family, None)


def _features(shapes: Mapping[str, tuple[int, ...]], classes: int):
    """MobileNetV3 and EfficientNet."""
    model = "mobilenet_v3_large" if "features.16.0.weight" in shapes else "mobilenet_v3_small"
    if "features.1.0.block.0.0.weight" in shapes:
        model = "efficientnet_b0"
    return Guess(model, {}, "torchvision", "imagenet", 224)


def _shufflenet(shapes: Mapping[str, tuple[int, ...]], classes: int):
    return Guess("shufflenet_v2", {}, "torchvision", "imagenet", 224)


def _convnext(shapes: Mapping[str, tuple[int, ...]], classes: int):
    size = {128: "base", 192: "large"}.get(
        _outputs(shapes, r"stages\.0\.blocks\.0\.conv_dw"), "small"
    )
    if size == "small" and _count(shapes, r"stages\.2\.blocks\.(\d+)\.") == 9:
        size = "tiny"
    if "stem.stem.0.weight" in shapes:
        family = "ConvNeXt with ConvStem of Singh et al. 2023 (RobustBench)"
        return Guess(f"convnext_{size}", {"stem": "conv"}, family, "none", 224)
    return Guess(f"convnext_{size}", {"stem": "patch"}, "ConvNeXt of timm", "imagenet", 224)


def _vit(shapes: Mapping[str, tuple[int, ...]], classes: int):
    _, tokens, width = shapes.get("pos_embed", (1, 197, 0))
    size = {192: "tiny", 768: "base"}.get(width, "small")
    patch, stem = shapes.get("patch_embed.proj.weight", (0, 0, 16))[2], "patch"
    family, normalization = "ViT or DeiT of timm", None
    if halvings := _count(shapes, r"patch_embed\.proj\.stem\.(\d+)\."):
        patch, stem = 2 ** (halvings // 2), "conv"
        family = "ViT with ConvStem of Singh et al. 2023 (RobustBench)"
        normalization = "imagenet" if size == "small" else "none"
    side = patch * math.isqrt(max(1, tokens - 1))
    return Guess(f"vit_{size}", {"patch": patch, "stem": stem}, family, normalization, side)


# Names of a family's tensors -> what its shapes say. The family with most of a file's names is the guess.
_FAMILIES: dict[str, Callable[[Mapping, int], Guess]] = {
    r"(init_conv|layer\.\d\.block\.\d+|batchnorm|logits)\..*": _deepmind_wide,
    r"(conv_2d|layer_\d\.\d+|batchnorm|logits)\..*": _deepmind_preact,
    r"(conv1|block\d\.layer\.\d+|bn1|fc)\..*": _trades_wide,
    r"(conv[12]|bn[12]|layers\.\d+|linear)\..*": _mobilenet,
    r"(conv1|bn1?|layer\d\.\d+|fc|linear)\..*": _resnet,
    r"(conv[12]|bn[12]|fc)\..*": _small_cnn,
    r"(features|classifier)\.\d+\..*": _features,
    r"(conv[15]\.[01]|stage\d\.\d+|fc)\..*": _shufflenet,
    r"(stem(\.stem)?\.\d|stages\.\d|head)\..*": _convnext,
    r"((patch_embed|blocks|norm|head)\..*|cls_token|pos_embed)": _vit,
}
