"""ResNet-20/32/44/56 of the CIFAR section of He et al. 2016: three stages of 16/32/64 channels.

Two forms that share a name but not their weights:
  shortcut="B" (default): 1x1 convolution + BN where shapes change (eminentgu/CIARD,
    cifar10_nat_teacher_models/resnet.py; also chenyaofo/pytorch-cifar-models). ResNet-56: 855,770
    parameters for 10 classes.
  shortcut="A": zero padding, no parameters (akamaster/pytorch_resnet_cifar10). ResNet-56: 853,018.
"""

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers
from ard_jax.models.resnet import ResNet

# shortcut -> (name of the shortcut's layers, name of the linear layer), as the two sources call them.
_FORMS = {"A": (None, "linear"), "B": ("downsample", "fc")}


def _cifar_resnet(layers: Layers, num_classes: int, depth: int, shortcut: str):
    if shortcut not in list(_FORMS):
        raise ValueError(f"shortcut={shortcut!r} is unknown; choose one of {sorted(_FORMS)}")
    name, head = _FORMS[shortcut]
    blocks = ((depth - 2) // 6,) * 3
    return Architecture(
        ResNet(layers, num_classes, (16, 32, 64), blocks, shortcut=name, head=head), min_size=4
    )


def resnet20(layers: Layers, num_classes: int, *, shortcut: str = "B") -> Architecture:
    """ResNet-20; shortcut "A" or "B", see the module's docstring. Raises ValueError on another."""
    return _cifar_resnet(layers, num_classes, 20, shortcut)


def resnet32(layers: Layers, num_classes: int, *, shortcut: str = "B") -> Architecture:
    """ResNet-32; shortcut "A" or "B", see the module's docstring. Raises ValueError on another."""
    return _cifar_resnet(layers, num_classes, 32, shortcut)


def resnet44(layers: Layers, num_classes: int, *, shortcut: str = "B") -> Architecture:
    """ResNet-44; shortcut "A" or "B", see the module's docstring. Raises ValueError on another."""
    return _cifar_resnet(layers, num_classes, 44, shortcut)


def resnet56(layers: Layers, num_classes: int, *, shortcut: str = "B") -> Architecture:
    """ResNet-56; shortcut "A" or "B", see the module's docstring. Raises ValueError on another."""
    return _cifar_resnet(layers, num_classes, 56, shortcut)
