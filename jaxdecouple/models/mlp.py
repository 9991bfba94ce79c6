"""A multi-layer perceptron, as a sequence of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class DenseLayer(nn.Module):
    """Flattens [B, ...] to [B, D], maps it to [B, features], and applies an activation if there is one."""

    features: int
    activation: Callable[[jax.Array], jax.Array] | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        x = nn.Dense(self.features, dtype=self.dtype, param_dtype=self.param_dtype)(x)
        return x if self.activation is None else self.activation(x)


def mlp(
    num_classes: int = 10,
    *,
    hidden: Sequence[int] = (128, 128, 128),
    activation: Callable[[jax.Array], jax.Array] = nn.relu,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> list[nn.Module]:
    """``len(hidden) + 1`` dense layers; the last has no activation.

    Args:
      num_classes: outputs.
      hidden: width of each hidden layer.
      activation: of the hidden layers.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.
    """
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    return [*(DenseLayer(width, activation, **dtypes) for width in hidden), DenseLayer(num_classes, **dtypes)]
