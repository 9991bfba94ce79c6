"""The CIFAR residual networks of He et al. (2016a, 2016b), as sequences of layers that can be cut anywhere.

Depth 6n + 2 (2016a): a stem, three groups of n basic blocks with 16, 32 and 64 channels (the second and third start
with stride 2), and a head. Shortcuts have no parameters (option A of section 4.2: subsampled and zero-padded), as in
that paper.

Depth 9n + 2 (2016b, the "original" units there): n bottlenecks in each group, with 64, 128 and 256 channels, and a
projection where the channels change. The pre-activated units of that paper are in `preactivation`.

ResNet-164 is both. With basic blocks it has 2.6 M parameters and is that of Huo's thesis, section 6.5. With bottlenecks
it has 1.7 M; the errors that DSP and ADL report of their ResNet-164 (5.6 % and 5.4 % on CIFAR-10 for back-propagation,
24.3 % on CIFAR-100) are those of He et al. (2016b, 5.5 % and 24.3 %), and 1 % and 4 % better than the thesis's, so
these are most likely bottlenecks, pre-activated ones; neither paper says so.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdecouple.models.blocks import BasicBlock, Bottleneck, as_layers, convolution, normalisation


class Stem(nn.Module):
    """3x3 convolution, normalisation, ReLU: [B, H, W, C] -> [B, H, W, channels]."""

    channels: int = 16
    dtype: Any = None
    param_dtype: Any = jnp.float32
    normalise: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
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
    bottleneck: bool = False,
    split_blocks: bool = False,
    normalise: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> list[nn.Module]:
    """The CIFAR ResNet of ``depth`` layers with weights, as 3n + 2 modules: [B, H, W, C] -> [B, num_classes].

    With 10 classes, ResNet-20 has 0.27 M parameters, 56 0.85 M, 110 1.73 M, 164 2.60 M or, of bottlenecks, 1.70 M,
    1202 19.4 M, and 1001, of bottlenecks, 10.3 M.

    Args:
      depth: 8, 14, 20, 32, 44, 56, 98, 110, 164, 1202, ...: 6n + 2; of bottlenecks 11, 20, 29, 164, 1001, ...: 9n + 2.
      num_classes: outputs.
      bottleneck: whether the blocks are `Bottleneck`, rather than `BasicBlock`.
      split_blocks: whether each block is one module for each convolution, two or three, so that it can be cut inside
        too: then there are ``depth`` modules. What goes between them says `BasicBlock.parts`. It is the same network,
        though not from the same seed: initial values depend on a module's position.
      normalise: whether batch normalisation follows each convolution. Without, the convolutions have a bias, and at
        first the variance of the activations about doubles with every block: for networks as shallow as ResNet-8.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.

    Raises:
      ValueError: depth is not 6n + 2, or, for bottlenecks, 9n + 2.
    """
    convolutions = 9 if bottleneck else 6
    if depth < 2 + convolutions or (depth - 2) % convolutions:
        below = max(2 + convolutions, depth - (depth - 2) % convolutions)
        kind = " of bottlenecks" if bottleneck else ""
        other = "" if bottleneck or not is_bottleneck_depth(depth) else "; or bottleneck=True, which has 9n + 2"
        raise ValueError(
            f"depth is {depth}; a CIFAR ResNet{kind} has {convolutions}n + 2 layers: write {below} or "
            f"{below + convolutions}{other}"
        )
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    common = {"normalise": normalise, **dtypes}
    blocks: list[BasicBlock | Bottleneck] = []
    for group, width in enumerate((16, 32, 64)):
        stride = 2 if group else 1
        if bottleneck:
            first, other = Bottleneck(4 * width, stride, projection=True, **common), Bottleneck(4 * width, **common)
        else:
            first, other = BasicBlock(width, stride, **common), BasicBlock(width, **common)
        blocks += [first, *[other] * ((depth - 2) // convolutions - 1)]
    return [Stem(**common), *as_layers(blocks, split_blocks), Head(num_classes, **dtypes)]


def is_bottleneck_depth(depth: int) -> bool:
    """Whether bottlenecks can make a CIFAR ResNet of that depth, and basic blocks cannot: 9n + 2, but not 6n + 2."""
    return depth > 2 and (depth - 2) % 9 == 0 and (depth - 2) % 6 != 0


resnet8 = functools.partial(resnet, 8)
resnet20 = functools.partial(resnet, 20)
resnet32 = functools.partial(resnet, 32)
resnet56 = functools.partial(resnet, 56)
resnet98 = functools.partial(resnet, 98)
resnet110 = functools.partial(resnet, 110)
resnet164 = functools.partial(resnet, 164)
resnet164_bottleneck = functools.partial(resnet, 164, bottleneck=True)
resnet1001 = functools.partial(resnet, 1001, bottleneck=True)
resnet1202 = functools.partial(resnet, 1202)
