"""Batch normalisation exactly as PyTorch's `BatchNorm2d` does it."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's semantics.

    In training the BIASED variance of the batch normalises, and the UNBIASED one (n / (n - 1)) feeds the
    running variance; `flax.linen.BatchNorm` stores the biased one. The variance is E[(x - mean)^2], not
    E[x^2] - E[x]^2. Statistics are float32 whatever the compute type. Under `jit` on global arrays the
    statistics are those of the global batch.

    Parameters: `scale` [C] ones, `bias` [C] zeros. Collection "batch_stats": `mean` [C] zeros, `var` [C]
    ones. All float32.

    Attributes:
      momentum: share of the old running value that is kept (PyTorch's momentum is 1 - this).
      epsilon: added to the variance.
      dtype: dtype of the output.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """Normalises x.

        Args:
          x: [..., C], any float dtype.
          train: True: statistics of x, and updates the running ones (the collection must be mutable).
            False: running statistics.

        Returns:
          [..., C] in `dtype`.

        Raises:
          ValueError: train is True and there is only one value per channel.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        x = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            count = math.prod(x.shape[:-1])
            if count < 2:
                raise ValueError(
                    f"BatchNorm in training needs more than one value per channel, but got an input of "
                    f"shape {x.shape}; use a batch of at least 2 images"
                )
            mean = jnp.mean(x, axes)
            centered = x - mean
            var = jnp.mean(jnp.square(centered), axes)
            self._update(running_mean, mean)
            self._update(running_var, var * (count / (count - 1)))
        else:
            mean, var = running_mean.value, running_var.value
            centered = x - mean
        y = centered * (lax.rsqrt(var + self.epsilon) * scale) + bias
        return y.astype(self.dtype)

    def _update(self, running, value):
        """Moves a running statistic; no gradient flows into it."""
        kept = self.momentum * running.value
        running.value = kept + (1.0 - self.momentum) * lax.stop_gradient(value)
