"""The ImageNet residual networks of He et al. (2016), as sequences of layers that can be cut anywhere.

A stem, four groups of blocks (all but the first start with stride 2), and a head: Table 1 of that paper, with
projection shortcuts where a block changes the shape (option B), and bottlenecks that have their stride in the 3x3
convolution, as torchvision's ("v1.5"). Convolutions and normalisation start as torchvision's, the classifier as Flax's.
With a reduction of 16, they are the SE-ResNets of Hu et al. (2018).
"""

from __future__ import annotations

import functools
from typing import Any, Unpack

import flax.linen as nn
import jax

from jaxdecouple.models.blocks import (
    BasicBlock,
    Bottleneck,
    ConvModule,
    Options,
    convolution,
    form_of_depth,
    normalisation,
    residual_layers,
)
from jaxdecouple.models.resnet import Head, Stem

# Depth: kind of block, the first group's channels, blocks in each group.
_FORMS = {
    18: (BasicBlock, 64, (2, 2, 2, 2)),
    34: (BasicBlock, 64, (3, 4, 6, 3)),
    50: (Bottleneck, 256, (3, 4, 6, 3)),
    101: (Bottleneck, 256, (3, 4, 23, 3)),
    152: (Bottleneck, 256, (3, 8, 36, 3)),
}
DEPTHS = tuple(_FORMS)


class PoolingStem(ConvModule):
    """7x7 convolution, normalisation, ReLU, 3x3 maximum; two strides of 2: [B, H, W, C] -> [B, H / 4, W / 4, channels].

    Odd sizes are rounded up, once for each stride.
    """

    channels: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = convolution(self, self.channels, 7, stride=2)(x)
        x = nn.relu(normalisation(self)(x, train))
        sides: Any = ((1, 1), (1, 1))
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=sides)


def imagenet_resnet(
    depth: int,
    num_classes: int = 1000,
    *,
    small_images: bool = False,
    split_blocks: bool = False,
    reduction: int | None = None,
    **options: Unpack[Options],
) -> list[nn.Module]:
    """The ImageNet ResNet of ``depth`` layers with weights: [B, H, W, C] -> [B, num_classes].

    After the stem, the groups have H / 4, H / 8, H / 16 and H / 32 rows; with ``small_images``, H, H / 2, H / 4, H / 8.

    Args:
      depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
      num_classes: outputs.
      small_images: whether the stem is a 3x3 convolution without strides, as for CIFAR's images of 32x32: the
        ResNet-18 of FDG (11.2 M parameters in its Table III).
      split_blocks: whether each block is one module for each convolution, two or three, so that it can be cut inside
        too. What goes between them says `BasicBlock.parts`. It is the same network, though not from the same seed:
        initial values depend on a module's position.
      reduction: of a `SqueezeExcitation` at the end of each block; ``None``: there is none. With 16, SE-ResNet-18 has
        11.78 M parameters for 1000 classes, SE-ResNet-50 28.07 M.
      options: see `Options`.

    Raises:
      ValueError: another depth.
    """
    kind, width, counts = form_of_depth(depth, _FORMS, "an ImageNet ResNet")
    block, channels = functools.partial(kind, reduction=reduction, **options), [width * 2**group for group in range(4)]
    stem = Stem(64, **options) if small_images else PoolingStem(64, **options)
    blocks = residual_layers(block, 64, channels, counts, split=split_blocks)
    return [stem, *blocks, Head(num_classes, **options)]


resnet18 = functools.partial(imagenet_resnet, 18)
resnet34 = functools.partial(imagenet_resnet, 34)
resnet50 = functools.partial(imagenet_resnet, 50)
resnet101 = functools.partial(imagenet_resnet, 101)
resnet152 = functools.partial(imagenet_resnet, 152)
se_resnet18 = functools.partial(imagenet_resnet, 18, reduction=16)
se_resnet50 = functools.partial(imagenet_resnet, 50, reduction=16)
