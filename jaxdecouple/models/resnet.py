"""The CIFAR residual networks of He et al. (2016), as sequences of layers that can be cut anywhere.

Depth 6n + 2: a stem, three groups of n basic blocks with 16, 32 and 64 channels (the second and third start with stride
2), and a head. Shortcuts have no parameters (option A of section 4.2: subsampled and zero-padded), as in that paper.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# He et al. (2015): variance 2 / (k * k * channels out).
_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class _Norm(nn.Module):
    """Batch normalisation; running averages keep 0.9 of the old value, as PyTorch's momentum of 0.1."""

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, param_dtype=self.param_dtype
        )
        return norm(x)


class Stem(nn.Module):
    """3x3 convolution, normalisation, ReLU: [B, H, W, C] -> [B, H, W, channels]."""

    channels: int = 16
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = _conv3x3(self, self.channels)(x)
        return nn.relu(_norm(self)(x, train))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, H, W, C] -> [B, H / stride, W / stride, channels]."""

    channels: int
    stride: int = 1
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = _conv3x3(self, self.channels, self.stride)(x)
        y = nn.relu(_norm(self)(y, train))
        y = _norm(self)(_conv3x3(self, self.channels)(y), train)
        shortcut = x[:, :: self.stride, :: self.stride]
        missing = self.channels - x.shape[-1]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
        return nn.relu(y + shortcut)


class Head(nn.Module):
    """Mean over space and a dense layer: [B, H, W, C] -> [B, num_classes]."""

    num_classes: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype)(x.mean(axis=(1, 2)))


def resnet(depth: int, num_classes: int = 10, *, dtype: Any = None, param_dtype: Any = jnp.float32) -> list[nn.Module]:
    """The CIFAR ResNet of ``depth`` = 6n + 2 layers with weights, as 3n + 2 modules.

    Args:
      depth: 8, 14, 20, 32, 44, 56, 110, ...
      num_classes: outputs.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.

    Raises:
      ValueError: depth is not 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        below = max(8, depth - (depth - 2) % 6)
        raise ValueError(f"depth is {depth}; a CIFAR ResNet has 6n + 2 layers: write {below} or {below + 6}")
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    blocks_per_group = (depth - 2) // 6
    blocks = [
        BasicBlock(channels, stride=2 if group and not index else 1, **dtypes)
        for group, channels in enumerate((16, 32, 64))
        for index in range(blocks_per_group)
    ]
    return [Stem(**dtypes), *blocks, Head(num_classes, **dtypes)]


resnet8 = functools.partial(resnet, 8)
resnet20 = functools.partial(resnet, 20)
resnet32 = functools.partial(resnet, 32)
resnet56 = functools.partial(resnet, 56)
resnet110 = functools.partial(resnet, 110)


def _conv3x3(module: nn.Module, channels: int, stride: int = 1) -> nn.Conv:
    # Padding of one pixel on each side, as PyTorch: with stride 2, "SAME" would pad one side only.
    return nn.Conv(
        channels,
        (3, 3),
        strides=stride,
        padding=1,
        use_bias=False,
        kernel_init=_conv_init,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
    )


def _norm(module: nn.Module) -> _Norm:
    return _Norm(dtype=module.dtype, param_dtype=module.param_dtype)
