"""MobileNetV2 of Sandler et al. (2018), as a sequence of layers that can be cut anywhere.

Table 2 of that paper: a 3x3 convolution, 17 inverted residuals, a 1x1 convolution, mean and a dense layer. The wide
activations are inside the blocks; between them there are few channels, so that a cut carries little. Convolutions and
normalisation start as torchvision's, the classifier as Flax's; torchvision's dropout before the classifier is left out.
"""

from __future__ import annotations

from typing import Unpack

import flax.linen as nn
import jax

from jaxdecouple.models.blocks import ConvModule, Options, convolution, normalisation
from jaxdecouple.models.resnet import Head

# Expansion, channels, blocks and the first one's stride of each group.
_GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileLayer(ConvModule):
    """Convolution, normalisation and ReLU6, a ReLU of at most 6: [B, H, W, C] -> [B, H / stride, W / stride, channels].

    Attributes:
      channels: of the output.
      size: of the kernel.
      stride: of the convolution; odd sizes are rounded up.
    """

    channels: int
    size: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = convolution(self, self.channels, self.size, self.stride)(x)
        return nn.relu6(normalisation(self)(x, train))


class InvertedResidual(ConvModule):
    """A wide block between narrow ends: [B, H, W, C] -> [B, H / stride, W / stride, channels].

    A 1x1 convolution to expansion * C channels (none if the expansion is 1), a 3x3 convolution of each channel by
    itself, both with normalisation and ReLU6, and a 1x1 convolution to ``channels`` with normalisation alone; and the
    input added, if it has the shape of the output.

    Attributes:
      channels: of the output.
      stride: of the 3x3 convolution; odd sizes are rounded up.
      expansion: how many times as wide the block is inside as at its input.
    """

    channels: int
    stride: int = 1
    expansion: int = 6

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        inside = self.expansion * x.shape[-1]
        y = x
        if self.expansion != 1:
            y = nn.relu6(normalisation(self)(convolution(self, inside, 1)(y), train))
        y = nn.relu6(normalisation(self)(convolution(self, inside, 3, self.stride, groups=inside)(y), train))
        y = normalisation(self)(convolution(self, self.channels, 1)(y), train)
        return x + y if y.shape == x.shape else y


def mobilenet_v2(
    num_classes: int = 1000,
    *,
    small_images: bool = False,
    **options: Unpack[Options],
) -> list[nn.Module]:
    """MobileNetV2 of width 1, as 20 modules: [B, H, W, C] -> [B, num_classes].

    3 504 872 parameters with 1000 classes, as torchvision's (the paper says 3.4 M, as does Table V of FDG, where there
    are 200 classes: 2 480 072).

    Args:
      num_classes: outputs.
      small_images: whether the stem and the second group have no stride, so that the last activations have H / 8 rows
        rather than H / 32: 4 for CIFAR's images of 32x32, 8 for Tiny-ImageNet's of 64x64. This is what published
        CIFAR versions do; the papers do not say how they have adapted theirs.
      options: see `Options`.
    """
    layers: list[nn.Module] = [MobileLayer(32, 3, 1 if small_images else 2, **options)]
    for group, (expansion, channels, blocks, stride) in enumerate(_GROUPS):
        stride = 1 if small_images and group == 1 else stride
        layers.append(InvertedResidual(channels, stride, expansion, **options))
        layers += [InvertedResidual(channels, 1, expansion, **options) for _ in range(blocks - 1)]
    return [*layers, MobileLayer(1280, **options), Head(num_classes, **options)]
