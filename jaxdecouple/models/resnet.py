"""The CIFAR residual networks of He et al. (2016), as sequences of layers that can be cut anywhere.

Depth 6n + 2: a stem, three groups of n basic blocks with 16, 32 and 64 channels (the second and third start with stride
2), and a head. Shortcuts have no parameters (option A of section 4.2: subsampled and zero-padded), as in that paper.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdecouple.models.blocks import BasicBlock, as_layers, convolution, normalisation


class Stem(nn.Module):
    """3x3 convolution, normalisation, ReLU: [B, H, W, C] -> [B, H, W, channels]."""

    channels: int = 16
    dtype: Any = None
    param_dtype: Any = jnp.float32
    normalise: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = convolution(self, self.channels, 3)(x)
        return nn.relu(normalisation(self)(x, train))


class Head(nn.Module):
    """Mean over space and a dense layer: [B, H, W, C] -> [B, num_classes]."""

    num_classes: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype)(x.mean(axis=(1, 2)))


def resnet(
    depth: int,
    num_classes: int = 10,
    *,
    split_blocks: bool = False,
    normalise: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> list[nn.Module]:
    """The CIFAR ResNet of ``depth`` = 6n + 2 layers with weights, as 3n + 2 modules.

    Args:
      depth: 8, 14, 20, 32, 44, 56, 110, ...
      num_classes: outputs.
      split_blocks: whether each block is two modules, one for each convolution, so that it can be cut inside too: then
        there are ``depth`` modules. What goes between the two says `BasicBlock.parts`. It is the same network, though
        not from the same seed: initial values depend on a module's position.
      normalise: whether batch normalisation follows each convolution. Without, the convolutions have a bias, and at
        first the variance of the activations about doubles with every block: for networks as shallow as ResNet-8.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.

    Raises:
      ValueError: depth is not 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        below = max(8, depth - (depth - 2) % 6)
        raise ValueError(f"depth is {depth}; a CIFAR ResNet has 6n + 2 layers: write {below} or {below + 6}")
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    common = {"normalise": normalise, **dtypes}
    blocks_per_group = (depth - 2) // 6
    blocks = [
        BasicBlock(channels, stride=2 if group and not index else 1, **common)
        for group, channels in enumerate((16, 32, 64))
        for index in range(blocks_per_group)
    ]
    return [Stem(**common), *as_layers(blocks, split_blocks), Head(num_classes, **dtypes)]


resnet8 = functools.partial(resnet, 8)
resnet20 = functools.partial(resnet, 20)
resnet32 = functools.partial(resnet, 32)
resnet56 = functools.partial(resnet, 56)
resnet110 = functools.partial(resnet, 110)
