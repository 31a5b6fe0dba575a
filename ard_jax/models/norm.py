"""Batch normalisation exactly as PyTorch's `BatchNorm2d` does it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's semantics.

    In training the BIASED variance of the batch normalises, and the UNBIASED one (n / (n - 1)) feeds the
    running variance; `flax.linen.BatchNorm` stores the biased one. The variance is E[(x - mean)^2], not
    E[x^2] - E[x]^2. Statistics are float32 whatever the compute type. Under `jit` on global arrays the
    statistics are those of the global batch, on any number of devices (synchronised BatchNorm).

    With `groups` above 1 the batch falls into that many equal runs of consecutive images, and each is
    normalised by its own statistics: per-device BatchNorm, as PyTorch's DataParallel and
    DistributedDataParallel have it without SyncBatchNorm. The running statistics follow the first group,
    as theirs follow the first device. Where the groups lie on devices of their own, normalising and its
    gradient need no communication; only the first group's statistics are sent around.

    Parameters: `scale` [C] ones, `bias` [C] zeros. Collection "batch_stats": `mean` [C] zeros, `var` [C]
    ones. All float32.

    Attributes:
      momentum: share of the old running value that is kept (PyTorch's momentum is 1 - this).
      epsilon: added to the variance.
      dtype: dtype of the output.
      groups: parts of the batch with statistics of their own in training; 1: the whole batch.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        """Normalises x.

        Args:
          x: [..., C], any float dtype.
          train: True: statistics of x, and updates the running ones (the collection must be mutable).
            False: running statistics.

        Returns:
          [..., C] in `dtype`.

        Raises:
          ValueError: train is True, and a group has only one value per channel, or the batch does not
            divide by the groups.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        shape, grouped = x.shape, train and self.groups > 1
        x = x.astype(jnp.float32)
        if train:
            count = self._count(shape)
            if grouped:
                x = x.reshape(self.groups, shape[0] // self.groups, *shape[1:])
            axes = tuple(range(int(grouped), x.ndim - 1))
            mean = jnp.mean(x, axes, keepdims=grouped)
            centered = x - mean
            var = jnp.mean(jnp.square(centered), axes, keepdims=grouped)
            self._update(running_mean, mean)
            self._update(running_var, var * (count / (count - 1)))
        else:
            mean, var = running_mean.value, running_var.value
            centered = x - mean
        y = centered * (lax.rsqrt(var + self.epsilon) * scale) + bias
        return y.reshape(shape).astype(self.dtype)

    def _count(self, shape: tuple[int, ...]) -> int:
        """Values per channel and group of a batch; checked."""
        if shape[0] % self.groups:
            raise ValueError(
                f"BatchNorm with bn_groups={self.groups}: a batch of {shape[0]} images does not divide by "
                "it; use a batch size that does, and drop a last batch that does not"
            )
        count = math.prod(shape[:-1]) // self.groups
        if count < 2:
            raise ValueError(
                f"BatchNorm in training needs more than one value per channel, but got an input of "
                f"shape {shape} in {self.groups} group(s); use at least 2 images for each"
            )
        return count

    def _update(self, running: nn.Variable, value: jax.Array):
        """Moves a running statistic, [C], by [C] or by the first of [G,1,...,C]; without gradient."""
        if self.groups > 1:
            value = value[0].reshape(running.value.shape)
        kept = self.momentum * running.value
        running.value = kept + (1.0 - self.momentum) * lax.stop_gradient(value)
