"""The DenseNets of Huang et al. (2017) for ImageNet, as sequences of layers that can be cut anywhere.

Table 1 of that paper: a stem, four blocks of layers each of which takes the outputs of all before it in the block, a
transition after each of the first three, and a head. Each layer passes on its input with its own channels beside it, so
that the sequence can be cut between any two; what a cut then carries grows within a block, to up to 1024 channels in
DenseNet-121. Convolutions start as in the authors' code and in the other networks here, the classifier as Flax's.
"""

from __future__ import annotations

import functools
from typing import Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdecouple.models.blocks import ConvModule, Options, convolution, form_of_depth, normalisation
from jaxdecouple.models.imagenet_resnet import PoolingStem
from jaxdecouple.models.preactivation import ActivationHead
from jaxdecouple.models.resnet import Stem

# Depth: growth, layers in each block. The stem has twice the growth's channels.
_FORMS = {
    121: (32, (6, 12, 24, 16)),
    161: (48, (6, 12, 36, 24)),
    169: (32, (6, 12, 32, 32)),
    201: (32, (6, 12, 48, 32)),
}
DEPTHS = tuple(_FORMS)


class DenseNetLayer(ConvModule):
    """The input, and beside it new channels made from all of its: [B, H, W, C] -> [B, H, W, C + growth].

    Normalisation, ReLU and a 1x1 convolution to 4 * growth channels; the same with a 3x3 convolution to ``growth``.

    Attributes:
      growth: the new channels; they come last.
    """

    growth: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = convolution(self, 4 * self.growth, 1)(nn.relu(normalisation(self)(x, train)))
        y = convolution(self, self.growth, 3)(nn.relu(normalisation(self)(y, train)))
        return jnp.concatenate([x.astype(y.dtype), y], axis=-1)


class DenseNetTransition(ConvModule):
    """Normalisation, ReLU, 1x1 convolution, 2x2 mean: [B, H, W, C] -> [B, H // 2, W // 2, C // 2]."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if min(x.shape[1:3]) < 2:
            raise ValueError(
                f"the input is {x.shape}, too small for a 2x2 mean; write images of at least 29x29 pixels, or of 8x8 "
                "with small_images=True"
            )
        x = convolution(self, x.shape[-1] // 2, 1)(nn.relu(normalisation(self)(x, train)))
        return nn.avg_pool(x, (2, 2), strides=(2, 2)).astype(x.dtype)


def densenet(
    depth: int = 121,
    num_classes: int = 1000,
    *,
    small_images: bool = False,
    **options: Unpack[Options],
) -> list[nn.Module]:
    """DenseNet-``depth``, each of its dense layers a module: [B, H, W, C] -> [B, num_classes].

    DenseNet-121 has 7 978 856 parameters with 1000 classes, in 63 modules. The blocks have H / 4, H / 8, H / 16 and
    H / 32 rows, rounded up in the stem and down later; with ``small_images``, H, H / 2, H / 4 and H / 8.

    Args:
      depth: 121, 161, 169 or 201.
      num_classes: outputs.
      small_images: whether the stem is a 3x3 convolution without strides, as for CIFAR's images of 32x32. (The paper's
        own networks for CIFAR have three blocks.)
      options: see `Options`.

    Raises:
      ValueError: another depth.
    """
    growth, sizes = form_of_depth(depth, _FORMS, "DenseNet")
    layers: list[nn.Module] = [(Stem if small_images else PoolingStem)(2 * growth, **options)]
    for block, size in enumerate(sizes):
        layers += [DenseNetTransition(**options)] if block else []
        layers += [DenseNetLayer(growth, **options) for _ in range(size)]
    return [*layers, ActivationHead(num_classes, **options)]


densenet121 = functools.partial(densenet, 121)
