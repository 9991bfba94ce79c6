"""The pre-activation networks of He et al. (2016b) for CIFAR, as sequences of layers that can be cut anywhere.

Normalisation and ReLU come before each convolution, so that nothing but sums lies on the way along the shortcuts: the
stem is a convolution alone, and a normalisation and a ReLU come after the last block. Depth 9n + 2: three groups of n
bottlenecks with 64, 128 and 256 channels (the second and third start with stride 2). Where a block changes the number
of channels, the activation is before the fork, and the shortcut is a 1x1 convolution. The stride of a bottleneck is
that of its 3x3 convolution, as everywhere here; in the authors' code it is the first one's.

Wide residual networks (Zagoruyko & Komodakis 2016, Table 1) are of the same kind: a convolution, three groups of
pre-activated basic blocks with 16, 32 and 64 times ``width`` channels (the second and third start with stride 2),
normalisation, ReLU, mean and a dense layer. Where a block changes the number of channels, the shortcut is a 1x1
convolution of the activated input. Without the optional dropout.
"""

from __future__ import annotations

import functools
from typing import Any, Unpack

import flax.linen as nn
import jax

from jaxdecouple.models.blocks import (
    BasicBlock,
    Block,
    Bottleneck,
    ConvModule,
    Options,
    blocks_of_depth,
    convolution,
    normalisation,
    residual_layers,
)
from jaxdecouple.models.resnet import Head


class _PreActivation(Block):
    """What blocks with normalisation and ReLU before each convolution share; parts and shortcuts are as a block's."""

    def _apply_part(self, part: int, y: jax.Array, shortcut: Any, train: bool) -> tuple[jax.Array, Any]:
        x, y = y, nn.relu(normalisation(self, name=f"_Norm_{part}")(y, train))
        if part == 0:
            shortcut = self._shortcut_of_first_part(y if self.projection else x, train)
        y = convolution(self, *self.convolutions[part], name=f"Conv_{part}")(y)
        if part == len(self.convolutions) - 1:
            y = self._sum(y, shortcut, train)
        return y, shortcut

    def _project(self, x: jax.Array, train: bool) -> jax.Array:
        # Not normalised: the next block does that to the sum.
        return convolution(self, self.channels, 1, self.stride, name="projection")(x)


class PreActivationBlock(_PreActivation, BasicBlock):
    """Two 3x3 convolutions after normalisation and ReLU: [B, H, W, C] -> [B, H / stride, W / stride, channels].

    Attributes: as those of `BasicBlock`; a projection is a convolution of the first activations.
    """


class PreActivationBottleneck(_PreActivation, Bottleneck):
    """1x1, 3x3, 1x1 convolutions after normalisation and ReLU: [B, H, W, C] -> [B, H / stride, W / stride, channels].

    Attributes: as those of `Bottleneck`; a projection is a convolution of the first activations.
    """


class PlainStem(ConvModule):
    """3x3 convolution alone: [B, H, W, C] -> [B, H, W, channels]."""

    channels: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return convolution(self, self.channels, 3)(x)


class ActivationHead(ConvModule):
    """Normalisation, ReLU, mean over space and a dense layer: [B, H, W, C] -> [B, num_classes]."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(normalisation(self)(x, train))
        return Head(self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype, name="head")(x)


def preact_resnet(
    depth: int,
    num_classes: int = 10,
    *,
    split_blocks: bool = False,
    **options: Unpack[Options],
) -> list[nn.Module]:
    """The pre-activation ResNet of ``depth`` = 9n + 2 layers with weights: [B, H, W, C] -> [B, num_classes].

    With 10 classes, ResNet-164 has 1.70 M parameters and ResNet-1001 10.3 M (the paper's tables say 1.7 M and 10.2 M).

    Args:
      depth: 11, 20, 29, 164, 1001, ...
      num_classes: outputs.
      split_blocks: whether each block is three modules, one for each convolution; see `resnet`.
      options: see `Options`.

    Raises:
      ValueError: depth is not 9n + 2.
    """
    n = blocks_of_depth(depth, 9, 2, "a pre-activation ResNet has 9n + 2 layers")
    block = functools.partial(PreActivationBottleneck, **options)
    blocks = residual_layers(block, 16, (64, 128, 256), (n,) * 3, split=split_blocks)
    return [PlainStem(**options), *blocks, ActivationHead(num_classes, **options)]


preact_resnet164 = functools.partial(preact_resnet, 164)
preact_resnet1001 = functools.partial(preact_resnet, 1001)


def wide_resnet(
    depth: int = 28,
    width: int = 10,
    num_classes: int = 10,
    *,
    split_blocks: bool = False,
    **options: Unpack[Options],
) -> list[nn.Module]:
    """WRN-``depth``-``width``, as 3n + 2 modules: [B, H, W, C] -> [B, num_classes].

    WRN-28-10 has 36.5 M parameters with 10 classes, WRN-16-8 11.0 M, WRN-40-4 8.9 M.

    Args:
      depth: 10, 16, 22, 28, 34, 40, ...: 6n + 4 convolutions, three of which are projections.
      width: how many times as many channels as ResNet-110 has; at least 1.
      num_classes: outputs.
      split_blocks: whether each block is two modules, one for each convolution; see `resnet`.
      options: see `Options`.

    Raises:
      ValueError: depth is not 6n + 4, or width is below 1.
    """
    n = blocks_of_depth(depth, 6, 4, "a wide ResNet has 6n + 4 convolutions")
    if width < 1:
        raise ValueError(f"width is {width}; write how many times as many channels, 1 or more")
    block, channels = functools.partial(PreActivationBlock, **options), [16 * width * 2**group for group in range(3)]
    blocks = residual_layers(block, 16, channels, (n,) * 3, split=split_blocks)
    return [PlainStem(**options), *blocks, ActivationHead(num_classes, **options)]


wrn28_10 = functools.partial(wide_resnet, 28, 10)
