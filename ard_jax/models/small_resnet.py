"""A small residual network for handwritten digits and for CIFAR runs on a CPU (ours, no paper)."""

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers
from ard_jax.models.resnet import ResNet
from ard_jax.models.small_cnn import check_positive_ints


def small_resnet(
    layers: Layers,
    num_classes: int,
    *,
    widths: tuple[int, ...] = (16, 32),
    blocks: int = 1,
    stem_stride: int = 1,
) -> Architecture:
    """3x3 stem, one stage of BasicBlocks per width, global average pool, linear.

    The first stage keeps the image size, each following one halves it.

    Args:
      layers: makes the layers.
      num_classes: number of logits.
      widths: channels of each stage.
      blocks: residual blocks in each stage.
      stem_stride: 2 halves the image in the stem already, which makes everything four times cheaper.

    Returns:
      The architecture.

    Raises:
      ValueError: widths empty, or widths, blocks or stem_stride not positive ints.
    """
    widths = check_positive_ints("widths", widths)
    (blocks,) = check_positive_ints("blocks", (blocks,))
    (stem_stride,) = check_positive_ints("stem_stride", (stem_stride,))
    module = ResNet(layers, num_classes, widths, (blocks,) * len(widths), stem_stride=stem_stride)
    return Architecture(module, min_size=stem_stride * 2 ** (len(widths) - 1))
