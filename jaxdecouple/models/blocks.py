"""A residual block is a few convolutions in a row, and a shortcut from the first one's input to the last one's output.

A block is one layer, or, cut into its parts, one layer for each convolution. Between its parts travel the activations
and, beside them, what the shortcut has yet to add. How many blocks each group of a network has follows from its depth,
as its paper counts it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

# He et al. (2015): variance 2 / (k * k * channels out), whatever the groups, as PyTorch counts.
_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Options(TypedDict, total=False):
    """What can be said of every convolutional network.

    Attributes:
      normalise: whether there is batch normalisation, by default. Without, the convolutions have a bias, and at first
        the variance of the activations about doubles with every residual block: for networks as shallow as ResNet-8.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters; by default float32.
    """

    normalise: bool
    dtype: Any
    param_dtype: Any


class ConvModule(nn.Module, kw_only=True):
    """A module of a convolutional network; its fields are `Options`."""

    normalise: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32


class _Norm(nn.Module):
    """Batch normalisation; running averages keep 0.9 of the old value, as PyTorch's momentum of 0.1."""

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, param_dtype=self.param_dtype
        )
        return norm(x)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor from 0 to 1, which follows from the mean of every channel: [B, H, W, C] -> same.

    Hu et al. (2018), equations 2 to 4: the means over space, a dense layer to C / reduction, ReLU, a dense layer back
    to C, sigmoid. As there, the dense layers have no bias. They start as Flax's.
    """

    reduction: int = 16
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        if not 1 <= self.reduction <= channels:
            raise ValueError(
                f"reduction is {self.reduction}, and the input has {channels} channels; write 1 to {channels}"
            )
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)
        factors = nn.relu(dense(channels // self.reduction)(x.mean(axis=(1, 2))))
        return x * nn.sigmoid(dense(channels)(factors))[:, None, None]


class Block(ConvModule):
    """What the blocks share: all but the convolutions.

    Of the shortcut, the first part does what makes it smaller, a stride, and the last what makes it larger, more
    channels; so the least travels between the parts. A projection with a stride makes it smaller, for the channels
    double where height and width halve, and is the first part's; without a stride, before the first bottleneck's four
    times as many channels, it is the last part's. This also balances a basic block, whose first convolution has half
    the work of the second there; in a bottleneck with a stride, the first part has more than half of all the work.
    """

    channels: int
    stride: int = 1
    projection: bool = False
    part: int | None = None
    reduction: int | None = None

    @property
    def convolutions(self) -> tuple[tuple[int, ...], ...]:
        """(channels, kernel size, stride) of each convolution, and, if it has several, its number of groups."""
        raise NotImplementedError

    def parts(self) -> list[nn.Module]:
        """The block as one layer for each convolution; applied in order, they compute what the block does.

        Between them goes a pair: the activations, and what the last part adds to them. With an input of [B, H, W, C],
        the latter is [B, H / stride, W / stride, channels], already projected, if there is a projection with a stride;
        else [B, H / stride, W / stride, C], and the last part pads or projects it.

        The parameters of a part have the names that they have in the block.
        """
        return [self.clone(part=part) for part in range(len(self.convolutions))]

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        last = len(self.convolutions) - 1
        if self.part is not None and self.part not in range(last + 1):
            raise ValueError(f"part is {self.part}; a {type(self).__name__} has the parts 0..{last}")
        if self.part and not (isinstance(x, tuple) and len(x) == 2):
            raise ValueError(
                f"part {self.part} of a {type(self).__name__} takes a pair (activations, shortcut), as part "
                f"{self.part - 1} gives; keep the parts in order"
            )
        y: Any
        y, shortcut = x if self.part else (x, None)
        for part in range(last + 1) if self.part is None else (self.part,):
            y, shortcut = self._apply_part(part, y, shortcut, train)
        return y if self.part in (None, last) else (y, shortcut)

    def _apply_part(self, part: int, y: jax.Array, shortcut: Any, train: bool) -> tuple[jax.Array, Any]:
        """Activations and shortcut after a part; a first part makes the shortcut, a last adds it."""
        if part == 0:
            shortcut = self._shortcut_of_first_part(y, train)
        y = convolution(self, *self.convolutions[part], name=f"Conv_{part}")(y)
        y = normalisation(self, name=f"_Norm_{part}")(y, train)
        if part == len(self.convolutions) - 1:
            y = self._sum(y, shortcut, train)
        return nn.relu(y), shortcut

    def _sum(self, y: jax.Array, shortcut: jax.Array, train: bool) -> jax.Array:
        if self.reduction is not None:
            excitation = SqueezeExcitation(self.reduction, self.dtype, self.param_dtype, name="excitation")
            y = excitation(y)
        return y + self._shortcut_of_last_part(shortcut, train)

    def _shortcut_of_first_part(self, x: jax.Array, train: bool) -> jax.Array:
        if self.projection and self.stride > 1:
            return self._project(x, train)
        return x if self.projection else x[:, :: self.stride, :: self.stride]

    def _shortcut_of_last_part(self, x: jax.Array, train: bool) -> jax.Array:
        if self.projection:
            return x if self.stride > 1 else self._project(x, train)
        missing = self.channels - x.shape[-1]
        if missing < 0:
            raise ValueError(f"channels is {self.channels}, but the input has {x.shape[-1]}; write projection=True")
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))

    def _project(self, x: jax.Array, train: bool) -> jax.Array:
        x = convolution(self, self.channels, 1, self.stride, name="projection")(x)
        return normalisation(self, name="projection_norm")(x, train)


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut: [B, H, W, C] -> [B, H / stride, W / stride, channels].

    Attributes:
      channels: of the output.
      stride: of the first convolution.
      projection: whether the shortcut is a 1x1 convolution and a normalisation (He et al. 2016, option B), or has no
        parameters: subsampled and padded with zero channels where the shapes ask for it (option A).
      part: which convolution to be (see `parts`); ``None``: the whole block.
      reduction: of a `SqueezeExcitation` before the sum; ``None``: there is none.
    """

    @property
    def convolutions(self) -> tuple[tuple[int, ...], ...]:
        return (self.channels, 3, self.stride), (self.channels, 3, 1)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: [B, H, W, C] -> [B, H / stride, W / stride, channels].

    The stride is that of the 3x3 convolution, as in torchvision ("v1.5"); He et al. (2016) have it in the first.

    Attributes: as those of `BasicBlock`, and
      width: channels of the first two; by default a quarter of ``channels``.
      groups: into which the 3x3 convolution is divided, each of width / groups channels (Xie et al. 2017).
    """

    width: int | None = None
    groups: int = 1

    @property
    def convolutions(self) -> tuple[tuple[int, ...], ...]:
        width = self.channels // 4 if self.width is None else self.width
        return (width, 1, 1), (width, 3, self.stride, self.groups), (self.channels, 1, 1)


def convolution(
    module: ConvModule, channels: int, size: int, stride: int = 1, groups: int = 1, name: str | None = None
) -> nn.Conv:
    """A convolution in the dtypes of the module that it is part of; with a bias if that does without normalisation."""
    return nn.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=size // 2,  # on each side, as PyTorch: with stride 2, "SAME" would pad one side more
        feature_group_count=groups,
        use_bias=not module.normalise,
        kernel_init=_conv_init,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        name=name,
    )


def normalisation(module: ConvModule, name: str | None = None) -> Callable[[jax.Array, bool], jax.Array]:
    """Batch normalisation in the dtypes of the module that it is part of; nothing, if that does without."""
    if not module.normalise:
        return lambda x, train: x
    return _Norm(dtype=module.dtype, param_dtype=module.param_dtype, name=name)


def dtypes_of(options: Options) -> dict[str, Any]:
    """The options of a module that has no convolution."""
    return {name: value for name, value in options.items() if name != "normalise"}


Form = TypeVar("Form")


def residual_layers(
    block: Callable[..., Block],
    stem: int,
    channels: Iterable[int],
    counts: Iterable[int],
    *,
    split: bool,
    project: bool = True,
) -> list[nn.Module]:
    """Groups of ``counts`` equal blocks; the first of each, but for that of the first group, has a stride of 2.

    Args:
      block: ``(channels, stride, projection=) -> block``.
      stem: channels below.
      channels, counts: of each group, the channels and the number of its blocks.
      split: whether each block is one layer for each convolution.
      project: whether shortcuts are projections where the channels change.
    """
    blocks: list[Block] = []
    for group, (width, count) in enumerate(zip(channels, counts, strict=True)):
        first = block(width, 2 if group else 1, projection=project and width != stem)
        blocks += [first, *(block(width) for _ in range(count - 1))]  # objects of their own: one would be one layer
        stem = width
    return [layer for each in blocks for layer in (each.parts() if split else (each,))]


def blocks_of_depth(depth: int, step: int, others: int, what: str, advice: str = "") -> int:
    """n, where networks have ``step`` n + ``others`` layers; ValueError, with the nearest depths, where none is."""
    least = step + others
    if depth < least or (depth - others) % step:
        below = max(least, depth - (depth - others) % step)
        raise ValueError(f"depth is {depth}; {what}: write {below} or {below + step}{advice}")
    return (depth - others) // step


def form_of_depth(depth: int, forms: Mapping[int, Form], what: str) -> Form:
    """The form of that depth; ValueError, with the nearest depth, where there is none."""
    if depth not in forms:
        near = min(forms, key=lambda known: abs(known - depth))
        known = ", ".join(map(str, forms))
        raise ValueError(f"depth is {depth}; the depths of {what} are {known}: write {near}, the nearest")
    return forms[depth]
