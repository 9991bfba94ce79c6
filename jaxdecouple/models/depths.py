"""The depth of a network, as its paper counts, says how many blocks each of its groups has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import flax.linen as nn

from jaxdecouple.models.blocks import Block

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
