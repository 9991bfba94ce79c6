"""The ResNeXts of Xie et al. (2017) for CIFAR, as sequences of layers that can be cut anywhere.

Section 5.3 of that paper: a 3x3 convolution with 64 channels, three groups of n bottlenecks with 256, 512 and 1024
channels (the second and third start with stride 2), mean and a dense layer; depth 9n + 2. The 3x3 convolution of a
bottleneck is divided into groups, ``cardinality`` of them, of ``width`` channels in the first three, twice and four
times as many later (form c of the paper's Figure 3). A projection is where the channels change.
"""

from __future__ import annotations

import functools
from typing import Unpack

import flax.linen as nn

from jaxdecouple.models.blocks import Bottleneck, Options
from jaxdecouple.models.depths import blocks_of_depth, residual_layers
from jaxdecouple.models.resnet import Head, Stem


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
