"""Wide residual networks (Zagoruyko and Komodakis 2016) in the two forms that robust teachers come in.

trades: yaodongyu/TRADES, models/wideresnet.py. ReLU, raw pixels, symmetric padding. WRN-34-10: 46,160,474
  parameters for 10 classes (without the `sub_block1` that the original builds and never uses).
deepmind: google-deepmind/deepmind-research, adversarial_robustness (RobustBench, dm_wide_resnet.py). SiLU
  (Swish), mean/std inside, 3x3 convolutions of stride 2 padded (0, 1), that is, not at all at the top and
  left. WRN-28-10: 36,479,194; WRN-70-16 for 100 classes: 266,888,756.

Deviation from both: the average pool of size 8 is a global one, the same at 32x32.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers, global_average_pool


class Form(NamedTuple):
    """What the two forms differ in: the activation, padding at stride 2, and the original names."""

    activation: Callable
    padding: tuple[int, int]
    stem: str
    block: str
    norms: tuple[str, str]
    convs: tuple[str, str]
    shortcut: str
    last_norm: str
    head: str


TRADES = Form(
    activation=nn.relu,
    padding=(1, 1),
    stem="conv1",
    block="block{stage_from_1}__layer__{index}",
    norms=("bn1", "bn2"),
    convs=("conv1", "conv2"),
    shortcut="convShortcut",
    last_norm="bn1",
    head="fc",
)
DEEPMIND = Form(
    activation=nn.silu,
    padding=(0, 1),
    stem="init_conv",
    block="layer__{stage}__block__{index}",
    norms=("batchnorm_0", "batchnorm_1"),
    convs=("conv_0", "conv_1"),
    shortcut="shortcut",
    last_norm="batchnorm",
    head="logits",
)


class WideBlock(nn.Module):
    """BN-act-conv3x3(stride)-BN-act-conv3x3, plus shortcut.

    The shortcut is x where the widths agree, else a 1x1 convolution of act(BN(x)).

    Attributes:
      layers: makes the layers.
      form: TRADES or DEEPMIND.
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
        if x.shape[-1] != self.features:
            x = self.layers.conv(form.shortcut, self.features, 1, self.stride)(y)
        y = self.layers.conv(form.convs[0], self.features, 3, self.stride, padding=pad)(y)
        y = form.activation(self.layers.norm(form.norms[1])(y, train))
        return x + self.layers.conv(form.convs[1], self.features)(y)


class WideResNet(nn.Module):
    """WRN-depth-width: 16-channel stem, 3 stages of 16/32/64 * width channels, strides 1/2/2.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
      form: TRADES or DEEPMIND.
      depth: 6 n + 4 for n blocks in each stage.
      width: widening factor.
    """

    layers: Layers
    num_classes: int
    form: Form
    depth: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32."""
        form = self.form
        x = self.layers.conv(form.stem, 16)(x)
        for stage in range(3):
            features = 16 * 2**stage * self.width
            for index in range((self.depth - 4) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                name = form.block.format(stage=stage, stage_from_1=stage + 1, index=index)
                block = self.layers.block(WideBlock)
                x = block(self.layers, form, features, stride, name=name)(x, train)
        x = form.activation(self.layers.norm(form.last_norm)(x, train))
        return self.layers.linear(form.head, self.num_classes)(global_average_pool(x))


def _check(name: str, depth: int, width: int):
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise ValueError(
            f"{name}: the depth of a wide ResNet must be 6 n + 4 (10, 16, 22, 28, 34, 40, ...) and "
            f"the width at least 1, but they are {depth} and {width}"
        )


def wrn(layers: Layers, num_classes: int, *, depth: int, width: int) -> Architecture:
    """WRN-depth-width in the form of TRADES. Raises ValueError on a depth other than 6 n + 4."""
    _check(f"wrn_{depth}_{width}", depth, width)
    return Architecture(WideResNet(layers, num_classes, TRADES, depth, width), min_size=4)


def dm_wrn(layers: Layers, num_classes: int, *, depth: int, width: int) -> Architecture:
    """WRN-depth-width in DeepMind's form.

    Normalisation by default: CIFAR-100's mean and std for 100 classes, CIFAR-10's otherwise. (MTARD feeds
    CIFAR-100 networks with CIFAR-10's; ask for that with normalization="cifar10".)

    Args:
      layers: makes the layers.
      num_classes: number of logits.
      depth: 6 n + 4.
      width: widening factor.

    Returns:
      The architecture. Image sides must be multiples of 4: with this form's padding, block and shortcut
      would disagree about the size otherwise.

    Raises:
      ValueError: a depth other than 6 n + 4, a width below 1.
    """
    _check(f"dm_wrn_{depth}_{width}", depth, width)
    module = WideResNet(layers, num_classes, DEEPMIND, depth, width)
    return Architecture(module, 4, multiple_of=4, normalization=deepmind_normalization(num_classes))


def deepmind_normalization(num_classes: int) -> str:
    """Default normalisation of DeepMind's networks: "cifar100" for 100 classes, else "cifar10"."""
    return "cifar100" if num_classes == 100 else "cifar10"
