"""The three parametrised layers all networks are made of, with their initialisers."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ard_jax.convolutions.canonical_conv import canonical_conv
from ard_jax.losses import checks
from ard_jax.models.norm import BatchNorm

INITIALISERS = ("torch", "flax")
DTYPES = ("float32", "bfloat16")


def torch_uniform(fan_in: int | None = None):
    """PyTorch's default for convolutions and linear layers: U(-b, b), b = 1 / sqrt(fan_in).

    (`kaiming_uniform_` with a = sqrt(5), torch.nn.modules.conv and .linear.)

    Args:
      fan_in: inputs per output; None: the product of all axes of the kernel but the last.

    Returns:
      An initialiser (key, shape, dtype) -> array.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32):
        bound = 1.0 / math.sqrt(fan_in or math.prod(shape[:-1]))
        # Drawn flat: the values are the same, and XLA:CPU compiles it several times faster.
        flat = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound)
        return flat.reshape(shape)

    return init


class Linear(nn.Module):
    """Fully connected layer in float32: kernel [in, out], bias [out].

    Attributes:
      features: number of outputs.
      init: "torch" or "flax", see `Layers`.
    """

    features: int
    init: str = "torch"

    @nn.compact
    def __call__(self, x: jax.Array):
        """[B, in], any float dtype -> [B, features] float32."""
        fan_in = x.shape[-1]
        if self.init == "torch":
            kernel_init, bias_init = torch_uniform(), torch_uniform(fan_in)
        else:
            kernel_init, bias_init = nn.initializers.lecun_normal(), nn.initializers.zeros
        kernel = self.param("kernel", kernel_init, (fan_in, self.features), jnp.float32)
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        return x.astype(jnp.float32) @ kernel + bias


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of one network.

    Call its methods inside a compact `__call__`: the layer becomes a child of the calling module. A name
    is the PyTorch name with "__" for ".", so that interop.torch_names needs no tables.

    Attributes:
      init: "torch" (PyTorch's defaults, see `torch_uniform`) or "flax" (lecun_normal kernels, zero bias).
      dtype: compute type, "float32" or "bfloat16". Parameters are float32 in both.
      bn_groups: parts of the batch that BatchNorm normalises by themselves in training (`BatchNorm`).
    """

    init: str = "torch"
    dtype: str = "float32"
    bn_groups: int = 1

    def __post_init__(self):
        """Checks the values.

        Raises:
          ValueError: unknown init or dtype, or bn_groups under 1.
        """
        if self.init not in INITIALISERS:
            raise ValueError(f"init={self.init!r} is unknown; choose one of {INITIALISERS}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is unknown; choose one of {DTYPES}")
        checks.count(self.bn_groups, "bn_groups", 1)

    def conv(
        self,
        name: str,
        features: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        padding: tuple[int, int] | None = None,
        groups: int = 1,
    ):
        """A kernel x kernel convolution without bias.

        Args:
          name: name of the layer.
          features: output channels.
          kernel: kernel size.
          stride: stride in both directions.
          padding: (before, after) in both directions; None: kernel // 2 on each side, as in PyTorch.
            ("SAME" would pad 0 and 1 where the stride is 2.)
          groups: feature groups; the number of input channels for a depthwise convolution.

        Returns:
          A module: [B, H, W, C] -> [B, H', W', features] in `dtype`.
        """
        pad = (kernel // 2, kernel // 2) if padding is None else padding
        torch_like = self.init == "torch"
        return nn.Conv(
            features,
            (kernel, kernel),
            strides=(stride, stride),
            padding=(pad, pad),
            feature_group_count=groups,
            use_bias=False,
            dtype=jnp.dtype(self.dtype),
            param_dtype=jnp.float32,
            kernel_init=torch_uniform() if torch_like else nn.initializers.lecun_normal(),
            conv_general_dilated=canonical_conv,
            name=name,
        )

    def norm(self, name: str):
        """A BatchNorm: (x [..., C], train) -> [..., C] in `dtype`."""
        return BatchNorm(dtype=jnp.dtype(self.dtype), groups=self.bn_groups, name=name)

    def linear(self, name: str, features: int):
        """A Linear: [B, in] -> [B, features] float32."""
        return Linear(features, init=self.init, name=name)


def global_average_pool(x: jax.Array):
    """Mean over height and width: [B, H, W, C], any float dtype -> [B, C] float32."""
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
