"""A model's name is its kind and its sizes: ``mlp``, ``vgg11``, ``wrn28_10``, ``resnext29_8x64d``, ``gpt2_small``."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxdecouple.errors import did_you_mean
from jaxdecouple.models.cnn import cnn
from jaxdecouple.models.densenet import DEPTHS as DENSENET_DEPTHS
from jaxdecouple.models.densenet import densenet
from jaxdecouple.models.gpt import SIZES as GPT_SIZES
from jaxdecouple.models.gpt import gpt_of_size
from jaxdecouple.models.imagenet_resnet import DEPTHS, imagenet_resnet
from jaxdecouple.models.mlp import mlp
from jaxdecouple.models.mobilenet import mobilenet_v2
from jaxdecouple.models.preactivation import preact_resnet, wide_resnet
from jaxdecouple.models.resnet import is_bottleneck_depth, resnet, resnext
from jaxdecouple.models.vgg import DEPTHS as VGG_DEPTHS
from jaxdecouple.models.vgg import vgg


def _plain_resnet(depth: int, num_classes: int, *, small_images: bool, **options: Any) -> list[nn.Module]:
    """The ImageNet form where there is one; else the CIFAR form, of basic blocks where they can make that depth."""
    if depth in DEPTHS:
        return imagenet_resnet(depth, num_classes, small_images=small_images, **options)
    return resnet(depth, num_classes, bottleneck=is_bottleneck_depth(depth), **options)


def _resnext(depth: int, cardinality: int, width: int, num_classes: int, **options: Any) -> list[nn.Module]:
    return resnext(depth, num_classes, cardinality=cardinality, width=width, **options)


class _Kind(NamedTuple):
    """A kind of model.

    Attributes:
      pattern: of the names; the numbers in it are the first arguments of ``build``.
      build: a function of these, the number of classes, and options.
      options: those of `by_name` that it takes.
      usual: the names that papers report on, for suggestions.
      known: what to write, in messages; by default the usual names.
    """

    pattern: str
    build: Callable[..., list[Any]]
    options: tuple[str, ...]
    usual: tuple[str, ...]
    known: tuple[str, ...] = ()


def _with_depths(kind: str, depths: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"{kind}{depth}" for depth in depths)


_SPLIT = ("split_blocks", "normalise")
_SIZED = ("small_images", "normalise")
_IMAGENET_NAMES = _with_depths("resnet", DEPTHS)
_LANGUAGE = ("context", "positions", "dropout", "remat", "tied")
_KINDS = (
    _Kind("mlp", mlp, (), ("mlp",)),
    _Kind("cnn", cnn, (), ("cnn",)),
    _Kind(
        r"resnet(\d+)",
        _plain_resnet,
        ("small_images", *_SPLIT),
        (*_with_depths("resnet", (8, 20, 32, 44, 56, 98, 110, 164, 1001, 1202)), *_IMAGENET_NAMES),
        ("resnet<6n+2>", "resnet<9n+2>"),
    ),
    _Kind(
        r"resnet(\d+)_bottleneck",
        functools.partial(resnet, bottleneck=True),
        _SPLIT,
        ("resnet164_bottleneck",),
        ("resnet<9n+2>_bottleneck",),
    ),
    _Kind(
        r"preact_resnet(\d+)",
        preact_resnet,
        _SPLIT,
        ("preact_resnet164", "preact_resnet1001"),
        ("preact_resnet<9n+2>",),
    ),
    _Kind(r"wrn(\d+)_(\d+)", wide_resnet, _SPLIT, ("wrn28_10",), ("wrn<6n+4>_<width>",)),
    _Kind(r"resnext(\d+)", resnext, _SPLIT, ("resnext29",), ("resnext<9n+2>",)),
    _Kind(
        r"resnext(\d+)_(\d+)x(\d+)d",
        _resnext,
        _SPLIT,
        ("resnext29_8x64d", "resnext29_16x64d"),
        ("resnext<9n+2>_<groups>x<width>d",),
    ),
    _Kind(
        r"se_resnet(\d+)",
        functools.partial(imagenet_resnet, reduction=16),
        ("small_images", *_SPLIT),
        _with_depths("se_resnet", DEPTHS),
    ),
    _Kind("mobilenet_v2", mobilenet_v2, _SIZED, ("mobilenet_v2",)),
    _Kind(r"densenet(\d+)", densenet, _SIZED, _with_depths("densenet", DENSENET_DEPTHS)),
    _Kind(r"vgg(\d+)", vgg, ("normalise",), _with_depths("vgg", VGG_DEPTHS)),
    *(_Kind(name, functools.partial(gpt_of_size, name), ("split_blocks", *_LANGUAGE), (name,)) for name in GPT_SIZES),
)
_WITH_NORMALISATION = [kind for kind in _KINDS if "normalise" in kind.options]


def _known(kinds: tuple[_Kind, ...] | list[_Kind]) -> str:
    """What to write for one of them: the patterns, then the single names, and ImageNet's among those first."""
    patterns = [name for kind in kinds for name in kind.known]
    single = [name for kind in kinds if not kind.known for name in kind.usual if "normalise" in kind.options]
    return f"{', '.join(patterns)}, or one of: {', '.join((*_IMAGENET_NAMES, *single))}"


def by_name(
    name: str,
    num_classes: int = 10,
    *,
    small_images: bool = False,
    split_blocks: bool = False,
    normalise: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    **language: Any,
) -> list[nn.Module]:
    """The model of that name, as a sequence of modules: [B, ...] -> [B, num_classes].

    ============================= =============================================================================
    name                          model
    ============================= =============================================================================
    ``mlp``, ``cnn``              `mlp`, `cnn`
    ``resnet18``, 34, 50, 101,    the ImageNet form (the CIFAR forms of these depths: `resnet`)
    152
    ``resnet<6n+2>``              the CIFAR form of basic blocks: ``resnet20``, 56, 98, 110, 164, 1202
    ``resnet<9n+2>``              the CIFAR form of bottlenecks, if the depth is not 6n + 2: ``resnet1001``
    ``resnet<9n+2>_bottleneck``   the CIFAR form of bottlenecks: ``resnet164_bottleneck``
    ``preact_resnet<9n+2>``       with pre-activation: ``preact_resnet164``, ``preact_resnet1001``
    ``wrn<6n+4>_<width>``         `wide_resnet`: ``wrn28_10``
    ``resnext<9n+2>_<C>x<d>d``    `resnext`, C groups of d channels: ``resnext29_8x64d``, also ``resnext29``,
                                  and ``resnext29_16x64d``
    ``se_resnet18``, 34, 50, ...  the ImageNet form with squeeze and excitation
    ``mobilenet_v2``              `mobilenet_v2`
    ``densenet121``, 161, 169,    `densenet`
    201
    ``vgg11``, 13, 16, 19         `vgg`
    ``gpt_nano``, micro, mini     `gpt`, tokens [B, T] -> [B, T, num_classes], to try things on
    ``gpt2_small``, medium,       `gpt` of GPT-2's sizes; ``gpt_asyncpp`` and ``gpt_32x384`` have those of other papers
    large, xl
    ============================= =============================================================================

    Args:
      name: as in the table.
      num_classes: outputs; of a GPT, the size of the vocabulary.
      small_images: an ImageNet model (ResNet, SE-ResNet, MobileNetV2, DenseNet) with its form for small images. The
        other models have one form only.
      split_blocks: one module for each convolution of a residual block, two for a transformer's. VGG, MobileNetV2,
        DenseNet, ``mlp`` and ``cnn`` have no such blocks.
      normalise: whether a convolutional network, other than ``cnn``, has batch normalisation.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.
      **language: further settings of `gpt`: ``context``, ``positions``, ``dropout``, ``remat``, ``tied``.

    Raises:
      ValueError: no such model, where the message suggests the nearest; or one that never has batch normalisation, and
        ``normalise`` is false; or a setting of language models, for another.
    """
    kind, sizes = _kind_of(name)
    given = {"small_images": small_images, "split_blocks": split_blocks, "normalise": normalise}
    options = _options(name, kind, given, language)
    try:
        return kind.build(*sizes, num_classes, dtype=dtype, param_dtype=param_dtype, **options)
    except ValueError as error:
        others = f"; or one of: {', '.join(_IMAGENET_NAMES)}" if kind.build is _plain_resnet else ""
        raise ValueError(f"unknown model {name!r}: {error}{others}") from None


def _kind_of(name: str) -> tuple[_Kind, list[int]]:
    """The kind of model that a name means, and the numbers in it."""
    for kind in _KINDS:
        if match := re.fullmatch(kind.pattern, name, re.ASCII):
            return kind, [int(number) for number in match.groups()]
    usual = [each for kind in _KINDS for each in kind.usual]
    hint = did_you_mean(name.replace("-", "_"), usual, cutoff=0.45)
    raise ValueError(f"unknown model {name!r}; {hint}write mlp, cnn, {', '.join(GPT_SIZES)}, {_known(_KINDS)}")


def _options(name: str, kind: _Kind, given: Mapping[str, bool], language: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `by_name` that models of a kind have."""
    if not given["normalise"] and "normalise" not in kind.options:
        raise ValueError(
            f"normalise is {given['normalise']}, but {name!r} never has batch normalisation; write normalise=True, or, "
            f"for a model that has it and can do without, {_known(_WITH_NORMALISATION)}"
        )
    if unknown := [setting for setting in language if setting not in kind.options]:
        raise ValueError(
            f"{unknown[0]} is {language[unknown[0]]!r}, but {name!r} has no such setting; leave it out, or write a "
            f"language model, such as gpt_nano, which has {', '.join(_LANGUAGE)}"
        )
    return {option: given[option] for option in kind.options if option in given} | dict(language)
