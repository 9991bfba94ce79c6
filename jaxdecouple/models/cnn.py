"""A small convolutional network, as a sequence of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdecouple.models.mlp import mlp


class ConvLayer(nn.Module):
    """5x5 convolution, activation, 2x2 mean: [B, H, W, C] -> [B, H / 2, W / 2, channels].

    Odd sizes are rounded up; the last row or column is then the mean of fewer values.
    """

    channels: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim != 4:
            raise ValueError(f"the input is {x.shape}; write images [B, H, W, C], grey ones with C = 1")
        x = nn.Conv(self.channels, (5, 5), padding=2, dtype=self.dtype, param_dtype=self.param_dtype)(x)
        x = self.activation(x)
        # Flax divides by counts in JAX's default precision, which may be higher than that of x.
        return nn.avg_pool(x, (2, 2), (2, 2), padding="SAME", count_include_pad=False).astype(x.dtype)


def cnn(
    num_classes: int = 10,
    *,
    channels: Sequence[int] = (32, 64, 64),
    hidden: Sequence[int] = (128,),
    activation: Callable[[jax.Array], jax.Array] = nn.relu,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> list[nn.Module]:
    """``len(channels)`` convolutional layers, and ``len(hidden) + 1`` dense ones: [B, H, W, C] -> [B, num_classes].

    By default five layers, for MNIST: its images of 28x28 become 14x14, 7x7 and 4x4. All start as Flax's.

    Args:
      num_classes: outputs.
      channels: of each convolutional layer.
      hidden: width of each hidden dense layer.
      activation: of all layers but the last.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.
    """
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    dense = mlp(num_classes, hidden=hidden, activation=activation, **dtypes)
    return [*(ConvLayer(width, activation, **dtypes) for width in channels), *dense]
