"""The wide residual networks of Zagoruyko & Komodakis (2016) for CIFAR, as sequences of layers to cut anywhere.

Table 1 of that paper: a convolution, three groups of pre-activated basic blocks with 16, 32 and 64 times ``width``
channels (the second and third start with stride 2), normalisation, ReLU, mean and a dense layer. Where a block changes
the number of channels, the shortcut is a 1x1 convolution of the activated input. Without the optional dropout.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdecouple.models.blocks import as_layers
from jaxdecouple.models.preactivation import ActivationHead, PlainStem, PreActivationBlock


def wide_resnet(
    depth: int = 28,
    width: int = 10,
    num_classes: int = 10,
    *,
    split_blocks: bool = False,
    normalise: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> list[nn.Module]:
    """WRN-``depth``-``width``, as 3n + 2 modules: [B, H, W, C] -> [B, num_classes].

    WRN-28-10 has 36.5 M parameters with 10 classes, WRN-16-8 11.0 M, WRN-40-4 8.9 M.

    Args:
      depth: 10, 16, 22, 28, 34, 40, ...: 6n + 4 convolutions, three of which are projections.
      width: how many times as many channels as ResNet-110 has; at least 1.
      num_classes: outputs.
      split_blocks: whether each block is two modules, one for each convolution; see `resnet`.
      normalise: whether there is batch normalisation; without, the convolutions have a bias.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.

    Raises:
      ValueError: depth is not 6n + 4, or width is below 1.
    """
    if depth < 10 or (depth - 4) % 6:
        below = max(10, depth - (depth - 4) % 6)
        raise ValueError(f"depth is {depth}; a wide ResNet has 6n + 4 convolutions: write {below} or {below + 6}")
    if width < 1:
        raise ValueError(f"width is {width}; write how many times as many channels, 1 or more")
    common = {"normalise": normalise, "dtype": dtype, "param_dtype": param_dtype}
    blocks: list[PreActivationBlock] = []
    below = 16
    for group in range(3):
        channels = 16 * width * 2**group
        # With width 1, the stem's channels fit the first group.
        blocks.append(PreActivationBlock(channels, 2 if group else 1, projection=channels != below, **common))
        blocks += [PreActivationBlock(channels, **common)] * ((depth - 4) // 6 - 1)
        below = channels
    return [PlainStem(**common), *as_layers(blocks, split_blocks), ActivationHead(num_classes, **common)]


wrn28_10 = functools.partial(wide_resnet, 28, 10)
