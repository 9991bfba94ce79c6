"""Auxiliary networks, with which stages learn locally. Any Flax module of the same form can replace them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


class MLPClassifier(nn.Module):
    """The auxiliary classifier "MLP-SR-aux" of decoupled greedy learning: [B, H, W, C] or [B, D] -> [B, num_classes].

    Belilovsky et al. (2020), section 4.1: the activations are averaged to a quarter of their height and width, go
    through pointwise convolutions of as many channels, are averaged to 2 x 2, and classified by a small multi-layer
    perceptron, with batch normalisation and ReLU after each layer but the last. Of activations without space, [B, D],
    there is only the perceptron. Of a stage that ends within a residual block and puts out several arrays, each is
    averaged and convolved by itself, and the perceptron sees all of them.

    Attributes:
      num_classes: outputs.
      convolutions: pointwise ones.
      dense: layers of the perceptron, the last included; the published code has one more.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.
    """

    num_classes: int
    convolutions: int = 3
    dense: int = 3
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, activations: PyTree, train: bool = False) -> jax.Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def pooled(x: jax.Array) -> jax.Array:
            if x.ndim == 4:
                height, width, channels = x.shape[1:]
                x = _average(x, -(-height // 4), -(-width // 4))
                for _ in range(self.convolutions):
                    x = nn.Conv(channels, (1, 1), use_bias=False, **dtypes)(x)
                    x = nn.relu(_normalisation(train, **dtypes)(x))
                x = _average(x, 2, 2)
            return x.reshape(len(x), -1)

        x = jnp.concatenate([pooled(leaf) for leaf in jax.tree.leaves(activations)], axis=-1)
        features = x.shape[-1]
        for _ in range(self.dense - 1):
            x = nn.Dense(features, use_bias=False, **dtypes)(x)
            x = nn.relu(_normalisation(train, **dtypes)(x))
        return nn.Dense(self.num_classes, **dtypes)(x)


class GradientPredictor(nn.Module):
    """The gradient predictor of decoupled neural interfaces: ([B, H, W, C], [B] labels) -> [B, H, W, C].

    Two hidden convolutions and one for the output, 5 x 5, of as many channels as the activations, with batch
    normalisation and ReLU after the hidden ones (thesis, sections 5.5.1 and 6.5.1; Jaderberg et al. 2017). What the
    label contributes, as in section 5.5.1, is added after the first; section 6.5.1 and DSP speak of no label. The
    output starts as zero. For activations without space, ([B, D], [B]) -> [B, D], dense layers take the convolutions'
    place. Of a stage that ends within a residual block and puts out several arrays, the gradient of each is predicted
    from that array.

    Attributes:
      num_classes: of the labels; ``None``: it is not told them.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.
    """

    num_classes: int | None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, activations_and_labels: tuple[PyTree, jax.Array], train: bool = False) -> PyTree:
        activations, labels = activations_and_labels
        return jax.tree.map(lambda x: self._predicted(x, labels, train), activations)

    def _predicted(self, x: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        channels = x.shape[-1]

        def layer(**options: Any) -> nn.Module:
            if x.ndim == 4:
                return nn.Conv(channels, (5, 5), padding=2, **options, **dtypes)
            return nn.Dense(channels, **options, **dtypes)

        y = layer(use_bias=False)(x)
        if self.num_classes is not None:
            label = nn.Embed(self.num_classes, channels, **dtypes)(labels)
            y += label.reshape(len(x), *(1,) * (x.ndim - 2), channels)
        y = layer(use_bias=False)(nn.relu(_normalisation(train, **dtypes)(y)))
        y = nn.relu(_normalisation(train, **dtypes)(y))
        return layer(kernel_init=nn.initializers.zeros)(y)


def _normalisation(train: bool, **dtypes: Any) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, **dtypes)


def _average(x: jax.Array, height: int, width: int) -> jax.Array:
    """[B, H, W, C] -> [B, height, width, C]: means over windows of about equal size, as PyTorch's adaptive pooling."""
    rows, columns = (_windows(size, out) for size, out in zip(x.shape[1:3], (height, width), strict=True))
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows.astype(x.dtype), columns.astype(x.dtype))


def _windows(size: int, out: int) -> np.ndarray:
    """[out, size]: each row averages over one window, from floor(i size / out) to ceil((i + 1) size / out)."""
    matrix = np.zeros((out, size))
    for i in range(out):
        start, stop = i * size // out, -(-(i + 1) * size // out)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix
