"""A model's name is its kind and its depth: ``mlp``, ``resnet20``, ``resnet50``."""

from __future__ import annotations

import difflib
import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdecouple.models.imagenet_resnet import DEPTHS, imagenet_resnet
from jaxdecouple.models.mlp import mlp
from jaxdecouple.models.resnet import resnet

# Those that papers report on, for suggestions; `by_name` knows more.
_USUAL = ("mlp", *(f"resnet{depth}" for depth in (8, 20, 32, 44, 56, 110, *DEPTHS)))


def by_name(
    name: str,
    num_classes: int = 10,
    *,
    small_images: bool = False,
    split_blocks: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> list[nn.Module]:
    """The model of that name, as a sequence of modules: [B, ...] -> [B, num_classes].

    Args:
      name: ``mlp``; ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` or ``resnet152`` for the ImageNet form; or
        ``resnet<6n+2>`` for the CIFAR form (those of depths 50 and 152 are `resnet(50)` and `resnet(152)`).
      num_classes: outputs.
      small_images: the ImageNet form with a stem for small images. The other models have one form only.
      split_blocks: one module for each convolution of a residual block. An MLP has none.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.

    Raises:
      ValueError: no such model; the message suggests the nearest.
    """
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    if name == "mlp":
        return mlp(num_classes, **dtypes)
    match = re.fullmatch(r"resnet([0-9]+)", name)
    if not match:
        near = difflib.get_close_matches(name.lower(), _USUAL, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown model {name!r}; {hint}write mlp, resnet<6n+2>, or one of: {_imagenet_names()}")
    depth = int(match[1])
    if depth in DEPTHS:
        return imagenet_resnet(depth, num_classes, small_images=small_images, split_blocks=split_blocks, **dtypes)
    try:
        return resnet(depth, num_classes, split_blocks=split_blocks, **dtypes)
    except ValueError as error:
        raise ValueError(f"unknown model {name!r}: {error}; or one of: {_imagenet_names()}") from None


def _imagenet_names() -> str:
    return ", ".join(f"resnet{depth}" for depth in DEPTHS)
