"""The parametrised layers all networks are made of, with their initialisers."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ard_jax.convolutions.canonical_conv import canonical_conv, exported_form
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
    """Fully connected layer: kernel [in, out], bias [out].

    Attributes:
      features: number of outputs.
      init: "torch", "flax" or "normal", see `Layers`.
      dtype: compute type.
    """

    features: int
    init: str = "torch"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array):
        """[..., in], any float dtype -> [..., features] in `dtype`."""
        fan_in = x.shape[-1]
        kernel_init, bias_init = _kernel_init(self.init), nn.initializers.zeros
        if self.init == "torch":
            bias_init = torch_uniform(fan_in)
        kernel = self.param("kernel", kernel_init, (fan_in, self.features), jnp.float32)
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        x, kernel, bias = (a.astype(getattr(jnp, self.dtype)) for a in (x, kernel, bias))
        return x @ kernel + bias


def _kernel_init(init: str):
    if init == "torch":
        return torch_uniform()
    return nn.initializers.normal(0.02) if init == "normal" else nn.initializers.lecun_normal()


class SqueezeExcitation(nn.Module):
    """Channels weighted by what two 1x1 convolutions make of their means (Hu et al. 2018; torchvision).

    Attributes:
      layers: makes the layers.
      squeezed: channels between the convolutions.
      activation: between them.
      gate: of the weights.
    """

    layers: "Layers"
    squeezed: int
    activation: Callable[[jax.Array], jax.Array]
    gate: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array):
        """[B, H, W, C] -> [B, H, W, C]."""
        y = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True).astype(x.dtype)
        y = self.activation(self.layers.conv("fc1", self.squeezed, 1, bias=True)(y))
        return x * self.gate(self.layers.conv("fc2", x.shape[-1], 1, bias=True)(y))


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of one network.

    Call its methods inside a compact `__call__`: the layer becomes a child of the calling module. A name
    is the PyTorch name with "__" for ".", so that interop.torch_names needs no tables.

    Attributes:
      init: "torch" (PyTorch's defaults, see `torch_uniform`), or "flax" (lecun_normal kernels, zero bias).
        Biases of convolutions begin at 0 in both.
      dtype: compute type, "float32" or "bfloat16". Parameters are float32 in both.
      bn_groups: parts of the batch that BatchNorm normalises by themselves in training (`BatchNorm`).
      remat: a block's activations are not kept for the backward pass but computed again, see `block`.
      normal: init="torch" means kernels of a normal distribution of standard deviation 0.02 and zero
        biases, as the code of ConvNeXt and ViT has them.
    """

    init: str = "torch"
    dtype: str = "float32"
    bn_groups: int = 1
    remat: bool = False
    normal: bool = False

    def __post_init__(self):
        """Checks the values.

        Raises:
          ValueError: unknown init or dtype, bn_groups under 1, or a remat that is neither True nor False.
        """
        if self.init not in INITIALISERS:
            raise ValueError(f"init={self.init!r} is unknown; choose one of {INITIALISERS}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is unknown; choose one of {DTYPES}")
        checks.count(self.bn_groups, "bn_groups", 1)
        checks.flag(self.remat, "remat")

    @property
    def _init(self) -> str:
        return "normal" if self.normal and self.init == "torch" else self.init

    def conv(
        self,
        name: str,
        features: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        padding: tuple[int, int] | None = None,
        groups: int = 1,
        bias: bool = False,
    ):
        """A kernel x kernel convolution.

        Args:
          name: name of the layer.
          features: output channels.
          kernel: kernel size.
          stride: stride in both directions.
          padding: (before, after) in both directions; None: kernel // 2 on each side, as in PyTorch.
            ("SAME" would pad 0 and 1 where the stride is 2.)
          groups: feature groups; the number of input channels for a depthwise convolution.
          bias: whether it has one; not where a BatchNorm follows.

        Returns:
          A module: [B, H, W, C] -> [B, H', W', features] in `dtype`.
        """
        pad = (kernel // 2, kernel // 2) if padding is None else padding
        return nn.Conv(
            features,
            (kernel, kernel),
            strides=(stride, stride),
            padding=(pad, pad),
            feature_group_count=groups,
            use_bias=bias,
            dtype=getattr(jnp, self.dtype),
            param_dtype=jnp.float32,
            kernel_init=_kernel_init(self._init),
            conv_general_dilated=canonical_conv,
            name=name,
        )

    def block(self, kind: type[nn.Module]) -> type[nn.Module]:
        """The module of a network's blocks, called as (x) or (x, train): `kind`, or its form with `remat`."""
        if not self.remat:
            return kind
        static = (2,) if "train" in inspect.signature(kind.__call__).parameters else ()
        return nn.remat(kind, static_argnums=static)

    def norm(self, name: str, momentum: float = 0.9, epsilon: float = 1e-5):
        """A BatchNorm: (x [..., C], train) -> [..., C] in `dtype`."""
        return BatchNorm(momentum, epsilon, getattr(jnp, self.dtype), self.bn_groups, name=name)

    def layer_norm(self, name: str):
        """A LayerNorm over the channels, epsilon 1e-6 as in timm: [..., C] -> [..., C] in `dtype`."""
        return nn.LayerNorm(
            1e-6, dtype=getattr(jnp, self.dtype), use_fast_variance=False, name=name
        )

    def linear(self, name: str, features: int):
        """The last Linear: [..., in] -> [..., features] float32."""
        return Linear(features, init=self._init, name=name)

    def dense(self, name: str, features: int):
        """A Linear inside the network: [..., in] -> [..., features] in `dtype`."""
        return Linear(features, init=self._init, dtype=self.dtype, name=name)


def conv_norm(
    layers: Layers,
    name: str,
    features: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
) -> Callable[..., jax.Array]:
    """A convolution NAME.0 and a BatchNorm NAME.1, as torchvision names them.

    Args:
      layers: makes the layers.
      name: of both.
      features: output channels.
      kernel: kernel size.
      stride: stride in both directions.
      groups: see `Layers.conv`.
      momentum: see `BatchNorm`.
      epsilon: see `BatchNorm`.

    Returns:
      (x [B, H, W, C], train, activation=identity) -> [B, H', W', features].
    """

    def apply(x: jax.Array, train: bool, activation: Callable = lambda y: y) -> jax.Array:
        y = layers.conv(f"{name}__0", features, kernel, stride, groups=groups)(x)
        return activation(layers.norm(f"{name}__1", momentum, epsilon)(y, train))

    return apply


def max_pool(x: jax.Array):
    """Maximum of 3x3 pixels with stride 2 and one pixel of padding: [B, H, W, C] -> [B, H', W', C]."""
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    if exported_form() != "stock":
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)
    # jax2onnx 0.17 exports a padded pooling as another one.
    rows, columns = (x.shape[1] - 1) // 2 + 1, (x.shape[2] - 1) // 2 + 1
    x = jnp.pad(x, around, constant_values=-jnp.inf)
    x = functools.reduce(jnp.maximum, (x[:, i : i + 2 * rows - 1 : 2] for i in range(3)))
    return functools.reduce(jnp.maximum, (x[:, :, i : i + 2 * columns - 1 : 2] for i in range(3)))


def global_average_pool(x: jax.Array):
    """Mean over height and width: [B, H, W, C], any float dtype -> [B, C] float32."""
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
