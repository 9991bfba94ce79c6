"""The wide residual networks of Zagoruyko & Komodakis (2016) for CIFAR, as sequences of layers to cut anywhere.

Table 1 of that paper: a convolution, three groups of pre-activated basic blocks with 16, 32 and 64 times ``width``
channels (the second and third start with stride 2), normalisation, ReLU, mean and a dense layer. Where a block changes
the number of channels, the shortcut is a 1x1 convolution of the activated input. Without the optional dropout.
"""

from __future__ import annotations

import functools
from typing import Unpack

import flax.linen as nn

from jaxdecouple.models.blocks import Options
from jaxdecouple.models.depths import blocks_of_depth, residual_layers
from jaxdecouple.models.preactivation import ActivationHead, PlainStem, PreActivationBlock


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
