"""A two-layer convolutional network for tests and examples: SmallNet(a, b)."""

import operator
from typing import Any

import flax.linen as nn
import jax

from ard_jax.models.bundle import Architecture
from ard_jax.models.layers import Layers, global_average_pool


def check_positive_ints(what: str, values: Any, length: int | None = None) -> tuple[int, ...]:
    """Returns values as a tuple of ints.

    Args:
      what: name of the option, for the message.
      values: iterable of ints.
      length: how many there must be; None: at least one.

    Returns:
      The ints.

    Raises:
      ValueError: anything else.
    """
    try:
        ints = tuple(operator.index(v) for v in values)
    except TypeError:
        ints = ()
    if not ints or min(ints) < 1 or length not in (None, len(ints)):
        count = "" if length is None else f"{length} "
        several = (
            f"; give a tuple, such as {(values,) * (length or 1)}"
            if isinstance(values, int)
            else ""
        )
        raise ValueError(f"{what}={values!r} must be {count}positive int(s){several}")
    return ints


class SmallCNN(nn.Module):
    """conv3x3-BN-ReLU, conv3x3(stride 2)-BN-ReLU, global average pool, linear.

    Attributes:
      layers: makes the layers.
      num_classes: number of logits.
      widths: channels of the two convolutions.
    """

    layers: Layers
    num_classes: int
    widths: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """Normalised images [B, H, W, C] float32 -> logits [B, num_classes] float32."""
        x = self.layers.conv("conv1", self.widths[0])(x)
        x = nn.relu(self.layers.norm("bn1")(x, train))
        x = self.layers.conv("conv2", self.widths[1], stride=2)(x)
        x = nn.relu(self.layers.norm("bn2")(x, train))
        return self.layers.linear("fc", self.num_classes)(global_average_pool(x))


def small_cnn(
    layers: Layers, num_classes: int, *, widths: tuple[int, int] = (8, 16)
) -> Architecture:
    """SmallCNN; widths: channels of the two convolutions. Raises ValueError on other widths."""
    a, b = check_positive_ints("widths", widths, 2)
    return Architecture(SmallCNN(layers, num_classes, (a, b)), min_size=2)
