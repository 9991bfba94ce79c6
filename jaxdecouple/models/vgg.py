"""The VGG networks of Simonyan & Zisserman (2015) for small images, as sequences of layers that can be cut anywhere.

Configurations A, B, D and E of Table 1 of that paper: five groups of 3x3 convolutions with 64, 128, 256, 512 and 512
channels, and a 2x2 maximum after each group. Images of 32x32 are then 1x1: in place of the three dense layers for
ImageNet stands one. By default each convolution has batch normalisation, which the paper did not know.
"""

from __future__ import annotations

import functools
from typing import Unpack

import flax.linen as nn
import jax

from jaxdecouple.models.blocks import ConvModule, Options, convolution, dtypes_of, form_of_depth, normalisation
from jaxdecouple.models.mlp import DenseLayer

_CHANNELS = (64, 128, 256, 512, 512)
# Depth: convolutions in each group.
_SIZES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
DEPTHS = tuple(_SIZES)


class VGGLayer(ConvModule):
    """3x3 convolution, normalisation, ReLU, and, if it pools, 2x2 maximum: [B, H, W, C] -> [B, H, W, channels].

    If it pools, [B, H // 2, W // 2, channels].

    Attributes:
      channels: of the output.
      pool: whether it pools.
      smallest: what H and W must be at least, for the poolings here and in the layers above.
    """

    channels: int
    pool: bool = False
    smallest: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        smallest = max(self.smallest, 2 if self.pool else 1)
        if x.ndim != 4 or min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"the input is {x.shape}; write images [B, H, W, C] of at least {smallest}x{smallest} pixels"
            )
        x = convolution(self, self.channels, 3)(x)
        x = nn.relu(normalisation(self)(x, train))
        return nn.max_pool(x, (2, 2), strides=(2, 2)) if self.pool else x


def vgg(
    depth: int = 11,
    num_classes: int = 10,
    **options: Unpack[Options],
) -> list[nn.Module]:
    """The VGG network with ``depth`` - 3 convolutions and a dense layer: [B, H, W, C] -> [B, num_classes].

    One module for each. H and W are at least 32; the dense layer has 512 * (H // 32) * (W // 32) inputs.

    Args:
      depth: 11, 13, 16 or 19, as the paper counts, which has three dense layers.
      num_classes: outputs.
      options: see `Options`.

    Raises:
      ValueError: another depth.
    """
    sizes = form_of_depth(depth, _SIZES, "VGG")
    layers: list[nn.Module] = []
    for group, (channels, size) in enumerate(zip(_CHANNELS, sizes, strict=True)):
        smallest = 2 ** (len(_CHANNELS) - group)
        layers += [VGGLayer(channels, pool=index == size - 1, smallest=smallest, **options) for index in range(size)]
    return [*layers, DenseLayer(num_classes, **dtypes_of(options))]


vgg11 = functools.partial(vgg, 11)
vgg13 = functools.partial(vgg, 13)
vgg16 = functools.partial(vgg, 16)
vgg19 = functools.partial(vgg, 19)
