"""GPT: a decoder-only transformer that says of each token what the next one may be, as a sequence of layers."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxdecouple.errors import check_choice, did_you_mean
from jaxdecouple.models.transformer import (
    Activation,
    FeedForward,
    LanguageHead,
    Positions,
    SelfAttention,
    TokenEmbedding,
    TransformerBlock,
)
from jaxdecouple.network.layer import Layer
from jaxdecouple.network.sharing import shared

GPT2_VOCABULARY = 50257


class Size(NamedTuple):
    """A size that has a name.

    Attributes:
      layers, width, heads: as of `gpt`.
      context: positions, if it is not told how many.
      activation: of the feed-forward networks.
    """

    layers: int
    width: int
    heads: int
    context: int = 1024
    activation: Activation = "gelu"


SIZES = {
    # karpathy/minGPT's, to try things on
    "gpt_nano": Size(3, 48, 3),
    "gpt_micro": Size(4, 128, 4),
    "gpt_mini": Size(6, 192, 6),
    # Radford et al. (2019), Table 2; PACI trains the medium one
    "gpt2_small": Size(12, 768, 12),
    "gpt2_medium": Size(24, 1024, 16),
    "gpt2_large": Size(36, 1280, 20),
    "gpt2_xl": Size(48, 1600, 25),
    "gpt_asyncpp": Size(8, 768, 12, context=512, activation="relu"),  # Ajanthan et al. (2025)
    "gpt_32x384": Size(32, 384, 6, context=512),  # the deep one of the basis-rotation paper, arXiv 2602.03515
}


def gpt(
    vocab_size: int = GPT2_VOCABULARY,
    *,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    context: int = 1024,
    positions: Positions = "learned",
    activation: Activation = "gelu",
    hidden: int | None = None,
    bias: bool = True,
    dropout: float = 0.0,
    remat: bool = False,
    tied: bool = False,
    split_blocks: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> list[nn.Module | Layer]:
    """An embedding, ``layers`` transformer blocks, and a head: int tokens [B, T] -> logits [B, T, vocab_size].

    By default GPT-2 small (Radford et al. 2019), with its initial weights, but for the head: GPT-2's is ``tied``.

    Args:
      vocab_size: V, how many tokens there are.
      layers: transformer blocks.
      width: D, channels between them.
      heads: of the attention; they divide ``width``.
      context: the longest sequence, if positions are learned.
      positions: ``learned`` vectors, added to the tokens' own; or ``rotary``, for sequences of any length.
      activation: ``gelu``, ``relu`` or ``swiglu``.
      hidden: channels within the feed-forward networks; by default 4 D, or 8 D / 3 for ``swiglu``, which has three
        matrices in place of two.
      bias: whether dense layers and normalisations have one.
      dropout: rate, after the embedding and of each branch.
      remat: whether backward passes compute a branch's activations again, from the layer's input.
      tied: whether embedding and head have one matrix, wherever the network is cut (`sharing.shared`).
      split_blocks: two layers for each block, attention and feed-forward network.
      dtype: of the computation, such as ``jnp.bfloat16``; by default that of the parameters.
      param_dtype: of the parameters.

    Raises:
      ValueError: ``heads`` do not divide ``width``, rotary heads have an odd number of channels, a number is below 1,
        or the kind of positions or activation is unknown.
    """
    _check(positions, activation, vocab_size=vocab_size, layers=layers, width=width, heads=heads, context=context)
    hidden = hidden or (8 * width // 3 if activation == "swiglu" else 4 * width)
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    branch = {"width": width, "bias": bias, "dropout": dropout, "remat": remat, **dtypes}
    branch["final_deviation"] = 0.02 / math.sqrt(2 * layers)
    blocks: list[nn.Module] = []
    for _ in range(layers):  # objects of their own: one object would be one layer
        attention = SelfAttention(heads=heads, positions=positions, **branch)
        feed_forward = FeedForward(hidden=hidden, activation=activation, **branch)
        blocks += [attention, feed_forward] if split_blocks else [TransformerBlock(attention, feed_forward)]
    learned = context if positions == "learned" else None
    embedding = TokenEmbedding(vocab_size, width, learned, dropout=dropout, **dtypes)
    head = LanguageHead(vocab_size, bias, **dtypes)
    if not tied:
        return [embedding, *blocks, head]
    return [shared(embedding, tokens="embedding"), *blocks, shared(head, tokens="embedding")]


def gpt_of_size(name: str, vocab_size: int = GPT2_VOCABULARY, **settings: Any) -> list[nn.Module | Layer]:
    """`gpt` of a size that has a name: ``gpt_nano``, ``gpt2_small``, ...

    Args:
      name: of `SIZES`.
      vocab_size: how many tokens there are.
      **settings: others of `gpt`; ``context`` is the size's own, unless it is given.

    Raises:
      ValueError: there is no such size.
    """
    if name not in SIZES:
        raise ValueError(f"unknown size {name!r}; {did_you_mean(name, SIZES)}write one of {', '.join(SIZES)}")
    return gpt(vocab_size, **{**SIZES[name]._asdict(), **settings})


gpt2_small = functools.partial(gpt_of_size, "gpt2_small")
gpt2_medium = functools.partial(gpt_of_size, "gpt2_medium")
gpt2_large = functools.partial(gpt_of_size, "gpt2_large")
gpt2_xl = functools.partial(gpt_of_size, "gpt2_xl")


def _check(positions: Positions, activation: Activation, **sizes: int) -> None:
    check_choice("positions", positions, Positions)
    check_choice("activation", activation, Activation)
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; write an integer of at least 1")
    width, heads = sizes["width"], sizes["heads"]
    if width % heads or (positions == "rotary" and width // heads % 2):
        even = "an even multiple" if positions == "rotary" else "a multiple"
        raise ValueError(f"width is {width} and heads is {heads}; write a width that is {even} of the heads")
