"""PreActResNet-18/34 (He et al. 2016, "Identity Mappings"), in three published forms.

The forms share a name but not their weights; numbers for ResNet-18 and 10 classes:
  "rice" (default): locuslab/robust_overfitting, preactresnet.py. 1x1 shortcut convolution of the ACTIVATED
    input, final BN-ReLU. 11,172,170 parameters.
  "robustbench": RobustBench, architectures/resnet.py. 1x1 shortcut convolution of the RAW input, no final
    BN and no final ReLU. 11,171,146 parameters.
  "deepmind": RobustBench, dm_wide_resnet.py, DMPreActResNet. SiLU, mean/std inside, convolutions of
    stride 2 padded (0, 1), 3x3 shortcut convolution of the raw input, final BN. 12,548,426 parameters.

Deviation from all: the average pool of size 4 is a global one: the same at 32x32, and 64x64 images
(Tiny-ImageNet) work.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers, global_average_pool
from ard_jax.models.wide_resnet import deepmind_normalization


class Form(NamedTuple):
    """What the forms differ in; the strings are the original names of the layers."""

    activation: Callable = nn.relu
    padding: tuple[int, int] = (1, 1)
    shortcut_kernel: int = 1
    shortcut_of_activated: bool = True
    last_norm: str | None = "bn"
    stem: str = "conv1"
    block: str = "layer{stage_from_1}__{index}"
    norms: tuple[str, str] = ("bn1", "bn2")
    convs: tuple[str, str] = ("conv1", "conv2")
    shortcut: str = "shortcut__0"
    head: str = "linear"


FORMS = {
    "rice": Form(),
    "robustbench": Form(shortcut_of_activated=False, last_norm=None),
    "deepmind": Form(
        activation=nn.silu,
        padding=(0, 1),
        shortcut_kernel=3,
        shortcut_of_activated=False,
        last_norm="batchnorm",
        stem="conv_2d",
        block="layer_{stage}__{index}",
        norms=("batchnorm_0", "batchnorm_1"),
        convs=("conv_2d_1", "conv_2d_2"),
        shortcut="shortcut",
        head="logits",
    ),
}


class PreActBlock(nn.Module):
    """BN-act-conv3x3(stride)-BN-act-conv3x3, plus shortcut (no BN in it).

    Attributes:
      layers: makes the layers.
      form: one of FORMS.
      features: output channels.
      stride: stride of the first convolution and of the shortcut.
    """

    layers: Layers
    form: Form
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """[B, H, W, C] -> [B, H', W', features]."""
        form = self.form
        pad = form.padding if self.stride == 2 else (1, 1)
        y = form.activation(self.layers.norm(form.norms[0])(x, train))
        if self.stride != 1 or x.shape[-1] != self.features:
            convolution = self.layers.conv(
                form.shortcut,
                self.features,
                form.shortcut_kernel,
                self.stride,
                padding=(0, 0) if form.shortcut_kernel == 1 else pad,
            )
            x = convolution(y if form.shortcut_of_activated else x)
        y = self.layers.conv(form.convs[0], self.features, 3, self.stride, padding=pad)(y)
        y = form.activation(self.layers.norm(form.norms[1])(y, train))
        return x + self.layers.conv(form.convs[1], self.features)(y)


class PreActResNet(nn.Module):
    """3x3 stem, stages of 64/128/256/512 channels with strides 1/2/2/2, global pool, linear.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
      form: one of FORMS.
      blocks: blocks of each stage.
    """

    layers: Layers
    num_classes: int
    form: Form
    blocks: tuple[int, int, int, int]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32."""
        form = self.form
        x = self.layers.conv(form.stem, 64)(x)
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                name = form.block.format(stage=stage, stage_from_1=stage + 1, index=index)
                block = self.layers.block(PreActBlock)
                x = block(self.layers, form, 64 * 2**stage, stride, name=name)(x, train)
        if form.last_norm is not None:
            x = form.activation(self.layers.norm(form.last_norm)(x, train))
        return self.layers.linear(form.head, self.num_classes)(global_average_pool(x))


def _preact_resnet(layers: Layers, num_classes: int, blocks: tuple[int, int, int, int], form: str):
    if form not in list(FORMS):
        raise ValueError(f"form={form!r} is unknown; choose one of {list(FORMS)}")
    normalization = deepmind_normalization(num_classes) if form == "deepmind" else "none"
    module = PreActResNet(layers, num_classes, FORMS[form], blocks)
    return Architecture(module, min_size=8, normalization=normalization)


def preact_resnet18(layers: Layers, num_classes: int, *, form: str = "rice") -> Architecture:
    """PreActResNet-18; form: see the module's docstring. Raises ValueError on another form."""
    return _preact_resnet(layers, num_classes, (2, 2, 2, 2), form)


def preact_resnet34(layers: Layers, num_classes: int, *, form: str = "rice") -> Architecture:
    """PreActResNet-34; form: see the module's docstring. Raises ValueError on another form."""
    return _preact_resnet(layers, num_classes, (3, 4, 6, 3), form)
