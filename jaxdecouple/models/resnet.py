"""The residual networks for CIFAR of He et al. (2016a, 2016b) and Xie et al. (2017), as layers to cut anywhere.

Depth 6n + 2 (2016a): a stem, three groups of n basic blocks with 16, 32 and 64 channels (the second and third start
with stride 2), and a head. Shortcuts have no parameters (option A of section 4.2: subsampled and zero-padded), as in
that paper.

Depth 9n + 2 (2016b, the "original" units there): n bottlenecks in each group, with 64, 128 and 256 channels, and a
projection where the channels change. The pre-activated units of that paper are in `preactivation`.

ResNet-164 is both. With basic blocks it has 2.6 M parameters and is that of Huo's thesis, section 6.5. With bottlenecks
it has 1.7 M; the errors that DSP and ADL report of their ResNet-164 (5.6 % and 5.4 % on CIFAR-10 for back-propagation,
24.3 % on CIFAR-100) are those of He et al. (2016b, 5.5 % and 24.3 %), and 1 % and 4 % better than the thesis's, so
these are most likely bottlenecks, pre-activated ones; neither paper says so.

ResNeXt (Xie et al. 2017, section 5.3): a 3x3 convolution with 64 channels, three groups of n bottlenecks with 256, 512
and 1024 channels (the second and third start with stride 2), mean and a dense layer; depth 9n + 2. The 3x3 convolution
of a bottleneck is divided into groups, ``cardinality`` of them, of ``width`` channels in the first three, twice and
four times as many later (form c of the paper's Figure 3). A projection is where the channels change.
"""

from __future__ import annotations

import functools
from typing import Unpack

import flax.linen as nn
import jax

from jaxdecouple.models.blocks import (
    BasicBlock,
    Bottleneck,
    ConvModule,
    Options,
    blocks_of_depth,
    convolution,
    normalisation,
    residual_layers,
)


class Stem(ConvModule):
    """3x3 convolution, normalisation, ReLU: [B, H, W, C] -> [B, H, W, channels]."""

    channels: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = convolution(self, self.channels, 3)(x)
        return nn.relu(normalisation(self)(x, train))


class Head(ConvModule):
    """Mean over space and a dense layer: [B, H, W, C] -> [B, num_classes]."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype)(x.mean(axis=(1, 2)))


def resnet(
    depth: int,
    num_classes: int = 10,
    *,
    bottleneck: bool = False,
    split_blocks: bool = False,
    **options: Unpack[Options],
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
      options: see `Options`.

    Raises:
      ValueError: depth is not 6n + 2, or, for bottlenecks, 9n + 2.
    """
    if bottleneck:
        block, channels = Bottleneck, (64, 128, 256)
        n = blocks_of_depth(depth, 9, 2, "a CIFAR ResNet of bottlenecks has 9n + 2 layers")
    else:
        block, channels = BasicBlock, (16, 32, 64)
        advice = "; or bottleneck=True, which has 9n + 2" if is_bottleneck_depth(depth) else ""
        n = blocks_of_depth(depth, 6, 2, "a CIFAR ResNet has 6n + 2 layers", advice)
    build = functools.partial(block, **options)
    blocks = residual_layers(build, 16, channels, (n,) * 3, split=split_blocks, project=bottleneck)
    return [Stem(**options), *blocks, Head(num_classes, **options)]


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


def resnext(
    depth: int = 29,
    num_classes: int = 10,
    *,
    cardinality: int = 8,
    width: int = 64,
    split_blocks: bool = False,
    **options: Unpack[Options],
) -> list[nn.Module]:
    """ResNeXt-``depth``, ``cardinality`` x ``width`` d, as 3n + 2 modules: [B, H, W, C] -> [B, num_classes].

    ResNeXt-29, 8x64d, has 34.4 M parameters with 10 classes, 16x64d 68.1 M.

    Args:
      depth: 11, 20, 29, ...: 9n + 2 layers with weights.
      num_classes: outputs.
      cardinality: groups of each 3x3 convolution.
      width: channels of each of them in the first three blocks.
      split_blocks: whether each block is three modules, one for each convolution; see `resnet`.
      options: see `Options`.

    Raises:
      ValueError: depth is not 9n + 2, or cardinality or width is below 1.
    """
    n = blocks_of_depth(depth, 9, 2, "a CIFAR ResNeXt has 9n + 2 layers")
    if min(cardinality, width) < 1:
        raise ValueError(f"cardinality is {cardinality} and width {width}; write 1 or more, such as 8 and 64")

    def block(channels: int, stride: int = 1, projection: bool = False) -> Bottleneck:
        inner = cardinality * width * channels // 256
        return Bottleneck(channels, stride, projection=projection, width=inner, groups=cardinality, **options)

    blocks = residual_layers(block, 64, (256, 512, 1024), (n,) * 3, split=split_blocks)
    return [Stem(64, **options), *blocks, Head(num_classes, **options)]


resnext29_8x64d = functools.partial(resnext, 29, cardinality=8, width=64)
resnext29_16x64d = functools.partial(resnext, 29, cardinality=16, width=64)
