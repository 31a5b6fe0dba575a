"""The networks of ard_jax in plain PyTorch: what lies as model.py beside an exported student.pt.

    from model import load

    network = load("student.pt")      # torch.nn.Module in evaluation mode
    logits = network(images)          # [B, C, H, W] float32 in [0, 1] -> [B, num_classes] float32

Needs PyTorch and nothing of ard_jax, which never imports this file; MobileNetV3, EfficientNet and
ShuffleNetV2 need torchvision, ConvNeXt and ViT need timm. Tensors have the names and shapes of the published
code (CIARD, TRADES, robust_overfitting, RobustBench, akamaster, chenyaofo, torchvision, timm): the state dict
loads there too without its "normalization.mean" and "normalization.std". Pooling is global.
"""
# ruff: noqa: D102, D107
# pyright: reportMissingImports=false

import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional


def load(path: str | os.PathLike, map_location: str = "cpu"):
    """Network of an exported file: a Module in evaluation mode, normalisation of the pixels inside."""
    file = torch.load(path, map_location=map_location, weights_only=True)
    network = create(**file["architecture"])
    network.load_state_dict(file["state_dict"])
    return network.to(map_location).eval()


def create(model: str, num_classes: int, image_shape: Sequence[int], kwargs: dict | None = None):
    """An untrained network by its name and options in ard_jax; image_shape is (H, W, C)."""
    wide = re.fullmatch(r"(dm_)?wrn_(\d+)_(\d+)", model)
    if wide:
        form, blocks, width = DEEPMIND if wide[1] else WRN, (int(wide[2]) - 4) // 6, int(wide[3])
        widths, blocks = [16 * width, 32 * width, 64 * width], [blocks] * 3
        layers = preact(image_shape, num_classes, form, 16, widths, blocks)
    elif model in PUBLISHED:
        return PUBLISHED[model](image_shape, num_classes, **(kwargs or {}))
    elif model in BUILDERS:
        layers = BUILDERS[model](image_shape, num_classes, **(kwargs or {}))
    else:
        known = [*BUILDERS, *PUBLISHED]
        raise ValueError(f"unknown model {model!r}; known: wrn_D_W, dm_wrn_D_W, {known}")
    return Network(image_shape[-1], layers)


class Normalization(nn.Module):
    """(images - mean) / std, per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, images: torch.Tensor):
        return (images - self.mean[:, None, None]) / self.std[:, None, None]


class Network(nn.Module):
    """Images [B, C, H, W] in [0, 1] -> logits: normalisation, then each layer of {dotted name: module}."""

    def __init__(self, channels: int, layers: dict[str, nn.Module]):
        super().__init__()
        self.normalization = Normalization(channels)
        self.order = list(layers)
        for path, layer in layers.items():
            place(self, path, layer)

    def forward(self, images: torch.Tensor):
        x = self.normalization(images)
        for path in self.order:
            x = self.get_submodule(path)(x)
        return x


def place(parent: nn.Module, path: str, module: nn.Module):
    """Adds a submodule under a dotted path, with empty modules on the way where they are missing."""
    *folders, name = path.split(".")
    for folder in folders:
        if not hasattr(parent, folder):
            setattr(parent, folder, nn.Module())
        parent = getattr(parent, folder)
    setattr(parent, name, module)


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    corner: bool = False,
    **options: Any,
):
    """A convolution without bias, padded by kernel // 2 on every side; or see CornerConv2d."""
    if corner and kernel == 3:
        return CornerConv2d(inputs, outputs)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False, **options)


class CornerConv2d(nn.Conv2d):
    """3x3 convolution of stride 2 that pads at the bottom and the right only, as DeepMind's do."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, 2, bias=False)

    def forward(self, x: torch.Tensor):
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


def head(name: str, inputs: int, classes: int):
    """Global average pool, linear layer of that name."""
    return {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), name: nn.Linear(inputs, classes)}


def stages(name: str, block: Callable, inputs: int, widths: Sequence[int], blocks: Sequence[int]):
    """Residual blocks by name; the first of each stage after the first has stride 2."""
    layers = {}
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            path = name.format(zero=stage, one=stage + 1, index=index)
            layers[path], inputs = block(inputs, width, stride), width
    return layers


class BasicBlock(nn.Module):
    """conv3x3-BN-ReLU-conv3x3-BN plus shortcut, ReLU; shortcut None: zero padding, no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str | None):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs
        self.projection = shortcut if self.extra or stride != 1 else None
        if self.projection:
            layers = conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            place(self, self.projection, nn.Sequential(*layers))

    def forward(self, x: torch.Tensor):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.projection:
            x = getattr(self, self.projection)(x)
        elif self.extra or self.stride != 1:
            before, step = self.extra // 2, self.stride
            x = functional.pad(x[:, :, ::step, ::step], (0, 0, 0, 0, before, self.extra - before))
        return functional.relu(y + x)


class Bottleneck(nn.Module):
    """conv1x1-BN-ReLU-conv3x3-BN-ReLU-conv1x1-BN plus shortcut, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str, widening: int):
        super().__init__()
        inner = widening * outputs // 4
        self.conv1, self.bn1 = conv(inputs, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv(inner, inner, 3, stride), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
        self.projection = shortcut if inputs != outputs or stride != 1 else None
        if self.projection:
            layers = conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            place(self, self.projection, nn.Sequential(*layers))

    def forward(self, x: torch.Tensor):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(functional.relu(self.bn2(self.conv2(y)))))
        if self.projection:
            x = getattr(self, self.projection)(x)
        return functional.relu(y + x)


def resnet(
    shape: Sequence[int],
    classes: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    names: tuple[str | None, str] = ("shortcut", "linear"),
    stem: tuple[int, int] = (3, 1),
    widening: int = 0,
):
    """Stem (kernel, stride), stages, global pool, linear; names: of shortcut and linear layer.

    A 7x7 stem pools. Blocks are Bottlenecks where there is a widening.
    """
    block, first = functools.partial(BasicBlock, shortcut=names[0]), widths[0]
    layers = {
        "conv1": conv(shape[-1], first, *stem),
        "bn1": nn.BatchNorm2d(first),
        "relu": nn.ReLU(),
    }
    if stem[0] == 7:
        layers["maxpool"] = nn.MaxPool2d(3, 2, 1)
    if widening:
        widths = [4 * width for width in widths]
        block = functools.partial(Bottleneck, shortcut=str(names[0]), widening=widening)
    layers |= stages("layer{one}.{index}", block, first, widths, blocks)
    return layers | head(names[1], widths[-1], classes)


def four_stages(
    shape: Sequence[int],
    classes: int,
    blocks: Sequence[int],
    widening: int = 0,
    form: str = "cifar",
):
    """ResNet-18 to WRN-50-2 in the form of kuangliu ("cifar") or torchvision ("imagenet")."""
    names, stem = {
        "cifar": (("shortcut", "linear"), (3, 1)),
        "imagenet": (("downsample", "fc"), (7, 2)),
    }[form]
    return resnet(shape, classes, [64, 128, 256, 512], blocks, names, stem, widening)


def cifar_resnet(shape: Sequence[int], classes: int, depth: int, shortcut: str = "B"):
    """ResNet-20 to 56, with parameters in the shortcuts ("B") or without ("A")."""
    names = {"A": (None, "linear"), "B": ("downsample", "fc")}[shortcut]
    return resnet(shape, classes, [16, 32, 64], [(depth - 2) // 6] * 3, names)


def small_resnet(
    shape: Sequence[int],
    classes: int,
    widths: Sequence[int] = (16, 32),
    blocks: int = 1,
    stem_stride: int = 1,
):
    """One stage for each width."""
    return resnet(shape, classes, widths, [blocks] * len(widths), stem=(3, stem_stride))


class Form(NamedTuple):
    """What pre-activation networks differ in; the default is locuslab/robust_overfitting's."""

    activation: type = nn.ReLU
    corner: bool = False
    shortcut: str = "shortcut.0"
    shortcut_kernel: int = 1
    shortcut_of_activated: bool = True
    stem: str = "conv1"
    block: str = "layer{one}.{index}"
    norms: tuple = ("bn1", "bn2")
    convs: tuple = ("conv1", "conv2")
    last_norm: str | None = "bn"
    head: str = "linear"


WRN = Form(shortcut="convShortcut", block="block{one}.layer.{index}", last_norm="bn1", head="fc")
DEEPMIND = Form(
    nn.SiLU, True, "shortcut", norms=("batchnorm_0", "batchnorm_1"), last_norm="batchnorm",
    stem="init_conv", block="layer.{zero}.block.{index}", convs=("conv_0", "conv_1"), head="logits",
)  # fmt: skip
PREACT = {
    "rice": Form(),
    "robustbench": Form(shortcut_of_activated=False, last_norm=None),
    "deepmind": DEEPMIND._replace(
        shortcut_kernel=3, shortcut_of_activated=False, stem="conv_2d",
        block="layer_{zero}.{index}", convs=("conv_2d_1", "conv_2d_2"),
    ),
}  # fmt: skip


class PreActBlock(nn.Module):
    """BN-act-conv3x3-BN-act-conv3x3 plus shortcut."""

    def __init__(self, form: Form, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.form, self.activation = form, form.activation()
        self.changes = stride != 1 or inputs != outputs
        corner = form.corner and stride == 2
        place(self, form.norms[0], nn.BatchNorm2d(inputs))
        place(self, form.convs[0], conv(inputs, outputs, 3, stride, corner))
        place(self, form.norms[1], nn.BatchNorm2d(outputs))
        place(self, form.convs[1], conv(outputs, outputs))
        if self.changes:
            place(self, form.shortcut, conv(inputs, outputs, form.shortcut_kernel, stride, corner))

    def forward(self, x: torch.Tensor):
        form, layer = self.form, self.get_submodule
        y = self.activation(layer(form.norms[0])(x))
        if self.changes:
            x = layer(form.shortcut)(y if form.shortcut_of_activated else x)
        y = self.activation(layer(form.norms[1])(layer(form.convs[0])(y)))
        return x + layer(form.convs[1])(y)


def preact(
    shape: Sequence[int],
    classes: int,
    form: Form,
    stem: int,
    widths: Sequence[int],
    blocks: Sequence[int],
):
    """3x3 stem, stages of PreActBlocks, BN and activation, global pool, linear."""
    block = functools.partial(PreActBlock, form)
    layers = {form.stem: conv(shape[-1], stem)} | stages(form.block, block, stem, widths, blocks)
    if form.last_norm:
        layers |= {form.last_norm: nn.BatchNorm2d(widths[-1]), "activation": form.activation()}
    return layers | head(form.head, widths[-1], classes)


def preact_resnet(shape: Sequence[int], classes: int, blocks: Sequence[int], form: str = "rice"):
    """PreActResNet in one of three forms."""
    return preact(shape, classes, PREACT[form], 64, [64, 128, 256, 512], blocks)


class InvertedResidual(nn.Module):
    """1x1-BN-ReLU, depthwise 3x3-BN-ReLU, 1x1-BN; plus shortcut where the stride is 1."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int):
        super().__init__()
        hidden, self.stride = expansion * inputs, stride
        self.conv1, self.bn1 = conv(inputs, hidden, 1), nn.BatchNorm2d(hidden)
        self.conv2 = conv(hidden, hidden, 3, stride, groups=hidden)
        self.bn2, self.bn3 = nn.BatchNorm2d(hidden), nn.BatchNorm2d(outputs)
        self.conv3, self.shortcut = conv(hidden, outputs, 1), nn.Sequential()
        if stride == 1 and inputs != outputs:
            self.shortcut.extend([conv(inputs, outputs, 1), nn.BatchNorm2d(outputs)])

    def forward(self, x: torch.Tensor):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(functional.relu(self.bn2(self.conv2(y)))))
        return y + self.shortcut(x) if self.stride == 1 else y


def mobilenet_v2(shape: Sequence[int], classes: int):
    """The CIFAR MobileNetV2."""
    layers = {"conv1": conv(shape[-1], 32), "bn1": nn.BatchNorm2d(32), "relu": nn.ReLU()}
    inputs, index = 32, 0
    for expansion, outputs, count, first in (
        (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for stride in [first] + [1] * (count - 1):
            layers[f"layers.{index}"] = InvertedResidual(inputs, outputs, expansion, stride)
            inputs, index = outputs, index + 1
    layers |= {"conv2": conv(inputs, 1280, 1), "bn2": nn.BatchNorm2d(1280), "relu2": nn.ReLU()}
    return layers | head("linear", 1280, classes)


def small_cnn(shape: Sequence[int], classes: int, widths: Sequence[int] = (8, 16)):
    """Two convolutions, the second of stride 2, global pool, linear."""
    a, b = widths
    layers = {"conv1": conv(shape[-1], a), "bn1": nn.BatchNorm2d(a), "relu1": nn.ReLU()}
    layers |= {"conv2": conv(a, b, 3, 2), "bn2": nn.BatchNorm2d(b), "relu2": nn.ReLU()}
    return layers | head("fc", b, classes)


def published(package: str, name: str, options: dict, shape: Sequence[int], classes: int):
    """A network of torchvision.models or timm with our normalisation in front."""
    if package == "torchvision":
        import torchvision

        network = torchvision.models.get_model(name, num_classes=classes, **options)
    else:
        import timm

        network = timm.create_model(name, num_classes=classes, **options)
    if shape[-1] != 3:
        _take_channels(network, shape[-1])
    network.normalization = Normalization(shape[-1])
    network.register_forward_pre_hook(lambda module, images: (module.normalization(images[0]),))
    return network


def _take_channels(network: nn.Module, channels: int):
    """Gives the first convolution another number of input channels."""
    modules = network.named_modules()
    path, old = next((path, m) for path, m in modules if isinstance(m, nn.Conv2d))
    place(
        network,
        path,
        nn.Conv2d(
            channels,
            old.out_channels,
            old.kernel_size,
            old.stride,
            old.padding,
            bias=old.bias is not None,
        ),
    )


class ChannelNorm(nn.LayerNorm):
    """LayerNorm of the channels of [B, C, H, W]."""

    def forward(self, x: torch.Tensor):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvStem(nn.Module):
    """3x3 convolutions of (channels, stride), each with LayerNorm and GELU; 1x1 convolution to `outputs`."""

    def __init__(self, inputs: int, sizes: Sequence[tuple[int, int]], outputs: int = 0):
        super().__init__()
        layers = []
        for channels, stride in sizes:
            layers += [
                nn.Conv2d(inputs, channels, 3, stride, 1),
                ChannelNorm(channels, 1e-6),
                nn.GELU(),
            ]
            inputs = channels
        self.stem = nn.Sequential(*layers, *([nn.Conv2d(inputs, outputs, 1)] if outputs else []))

    def forward(self, x: torch.Tensor):
        return self.stem(x)


CONVNEXT_STEMS = {
    "tiny": ((48, 2), (96, 2)),
    "small": ((48, 2), (96, 2)),
    "base": ((64, 2), (96, 2), (128, 1)),
    "large": ((96, 2), (144, 2), (192, 1)),
}
VIT_STEMS = {"tiny": 24, "small": 48, "base": 48}


def convnext(shape: Sequence[int], classes: int, size: str, stem: str = "patch"):
    """ConvNeXt of timm, perhaps with a ConvStem."""
    network = published("timm", f"convnext_{size}", {}, shape, classes)
    if stem == "conv":
        network.stem = ConvStem(shape[-1], CONVNEXT_STEMS[size])
    return network


def vit(shape: Sequence[int], classes: int, size: str, patch: int = 16, stem: str = "patch"):
    """ViT of timm, perhaps with a ConvStem."""
    options = {"img_size": tuple(shape[:2]), "patch_size": patch}
    network = published("timm", f"vit_{size}_patch16_224", options, shape, classes)
    if stem == "conv":
        sizes = [(VIT_STEMS[size] << i, 2) for i in range(patch.bit_length() - 1)]
        network.patch_embed.proj = ConvStem(shape[-1], sizes, network.embed_dim)
    return network


# name -> function (image shape, classes, **options) -> layers
BUILDERS = {
    "resnet18": functools.partial(four_stages, blocks=[2, 2, 2, 2]),
    "resnet34": functools.partial(four_stages, blocks=[3, 4, 6, 3]),
    "resnet50": functools.partial(four_stages, blocks=[3, 4, 6, 3], widening=1, form="imagenet"),
    "wide_resnet50_2": functools.partial(
        four_stages, blocks=[3, 4, 6, 3], widening=2, form="imagenet"
    ),
    **{f"resnet{d}": functools.partial(cifar_resnet, depth=d) for d in (20, 32, 44, 56)},
    "preact_resnet18": functools.partial(preact_resnet, blocks=[2, 2, 2, 2]),
    "preact_resnet34": functools.partial(preact_resnet, blocks=[3, 4, 6, 3]),
    **{f.__name__: f for f in (small_resnet, mobilenet_v2, small_cnn)},
}
# name -> function (image shape, classes, **options) -> network
PUBLISHED = {
    **{
        f"mobilenet_v3_{size}": functools.partial(
            published, "torchvision", f"mobilenet_v3_{size}", {"dropout": 0.0}
        )
        for size in ("large", "small")
    },
    "efficientnet_b0": functools.partial(
        published, "torchvision", "efficientnet_b0", {"dropout": 0.0, "stochastic_depth_prob": 0.0}
    ),
    "shufflenet_v2": functools.partial(published, "torchvision", "shufflenet_v2_x1_0", {}),
    **{f"convnext_{size}": functools.partial(convnext, size=size) for size in CONVNEXT_STEMS},
    **{f"vit_{size}": functools.partial(vit, size=size) for size in VIT_STEMS},
}
