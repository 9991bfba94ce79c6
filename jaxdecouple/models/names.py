"""A model's name is its kind and its depth: ``mlp``, ``cnn``, ``vgg11``, ``resnet20``, ``resnet50``."""

from __future__ import annotations

import difflib
import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdecouple.models.cnn import cnn
from jaxdecouple.models.imagenet_resnet import DEPTHS, imagenet_resnet
from jaxdecouple.models.mlp import mlp
from jaxdecouple.models.resnet import resnet
from jaxdecouple.models.vgg import DEPTHS as VGG_DEPTHS
from jaxdecouple.models.vgg import vgg

_WITHOUT_DEPTH = {"mlp": mlp, "cnn": cnn}
_IMAGENET_NAMES = tuple(f"resnet{depth}" for depth in DEPTHS)
_VGG_NAMES = tuple(f"vgg{depth}" for depth in VGG_DEPTHS)
_KNOWN = f"resnet<6n+2>, or one of: {', '.join((*_IMAGENET_NAMES, *_VGG_NAMES))}"
# Those that papers report on, for suggestions; `by_name` knows more.
_USUAL = (
    *_WITHOUT_DEPTH,
    *(f"resnet{depth}" for depth in (8, 20, 32, 44, 56, 110)),
    *_IMAGENET_NAMES,
    *_VGG_NAMES,
)


def by_name(
    name: str,
    num_classes: int = 10,
    *,
    small_images: bool = False,
    split_blocks: bool = False,
    normalise: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> list[nn.Module]:
    """The model of that name, as a sequence of modules: [B, ...] -> [B, num_classes].

    Args:
      name: ``mlp``; ``cnn``; ``vgg11``, ``vgg13``, ``vgg16`` or ``vgg19``; ``resnet18``, ``resnet34``, ``resnet50``,
        ``resnet101`` or ``resnet152`` for the ImageNet form; or ``resnet<6n+2>`` for the CIFAR form (those of depths 50
        and 152 are `resnet(50)` and `resnet(152)`).
      num_classes: outputs.
      small_images: the ImageNet form with a stem for small images. The other models have one form only.
      split_blocks: one module for each convolution of a residual block. The other models have no such blocks.
      normalise: whether batch normalisation follows each convolution of a VGG or ResNet.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.

    Raises:
      ValueError: no such model, where the message suggests the nearest; or one that never has batch normalisation, and
        ``normalise`` is false.
    """
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    if name in _WITHOUT_DEPTH:
        if not normalise:
            raise ValueError(
                f"normalise is {normalise}, but {name!r} never has batch normalisation; write normalise=True, or, "
                f"for a model that has it and can do without, {_KNOWN}"
            )
        return _WITHOUT_DEPTH[name](num_classes, **dtypes)
    match = re.fullmatch(r"(resnet|vgg)([0-9]+)", name)
    if not match:
        near = difflib.get_close_matches(name.lower(), _USUAL, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown model {name!r}; {hint}write {', '.join(_WITHOUT_DEPTH)}, {_KNOWN}")
    depth = int(match[2])
    try:
        if match[1] == "vgg":
            return vgg(depth, num_classes, normalise=normalise, **dtypes)
        if depth in DEPTHS:
            form = {"small_images": small_images, "split_blocks": split_blocks, "normalise": normalise}
            return imagenet_resnet(depth, num_classes, **form, **dtypes)
        return resnet(depth, num_classes, split_blocks=split_blocks, normalise=normalise, **dtypes)
    except ValueError as error:
        others = f"; or one of: {', '.join(_IMAGENET_NAMES)}" if match[1] == "resnet" else ""
        raise ValueError(f"unknown model {name!r}: {error}{others}") from None
