"""The ResNeXts of Xie et al. (2017) for CIFAR, as sequences of layers that can be cut anywhere.

Section 5.3 of that paper: a 3x3 convolution with 64 channels, three groups of n bottlenecks with 256, 512 and 1024
channels (the second and third start with stride 2), mean and a dense layer; depth 9n + 2. The 3x3 convolution of a
bottleneck is divided into groups, ``cardinality`` of them, of ``width`` channels in the first three, twice and four
times as many later (form c of the paper's Figure 3). A projection is where the channels change.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdecouple.models.blocks import Bottleneck, as_layers
from jaxdecouple.models.resnet import Head, Stem


def resnext(
    depth: int = 29,
    num_classes: int = 10,
    *,
    cardinality: int = 8,
    width: int = 64,
    split_blocks: bool = False,
    normalise: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> list[nn.Module]:
    """ResNeXt-``depth``, ``cardinality`` x ``width`` d, as 3n + 2 modules: [B, H, W, C] -> [B, num_classes].

    ResNeXt-29, 8x64d, has 34.4 M parameters with 10 classes, 16x64d 68.1 M.

    Args:
      depth: 11, 20, 29, ...: 9n + 2 layers with weights.
      num_classes: outputs.
      cardinality: groups of each 3x3 convolution.
      width: channels of each of them in the first three blocks.
      split_blocks: whether each block is three modules, one for each convolution; see `resnet`.
      normalise: whether batch normalisation follows each convolution; without, they have a bias.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.

    Raises:
      ValueError: depth is not 9n + 2, or cardinality or width is below 1.
    """
    if depth < 11 or (depth - 2) % 9:
        below = max(11, depth - (depth - 2) % 9)
        raise ValueError(f"depth is {depth}; a CIFAR ResNeXt has 9n + 2 layers: write {below} or {below + 9}")
    if min(cardinality, width) < 1:
        raise ValueError(f"cardinality is {cardinality} and width {width}; write 1 or more, such as 8 and 64")
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    common = {"normalise": normalise, **dtypes}
    blocks: list[Bottleneck] = []
    for group in range(3):
        block = functools.partial(
            Bottleneck, 256 * 2**group, width=cardinality * width * 2**group, groups=cardinality, **common
        )
        blocks.append(block(stride=2 if group else 1, projection=True))
        blocks += [block()] * ((depth - 2) // 9 - 1)
    return [Stem(64, **common), *as_layers(blocks, split_blocks), Head(num_classes, **dtypes)]


resnext29_8x64d = functools.partial(resnext, 29, cardinality=8, width=64)
resnext29_16x64d = functools.partial(resnext, 29, cardinality=16, width=64)
