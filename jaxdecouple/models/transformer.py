"""A transformer block is a self-attention and a feed-forward network, each added to what it is given.

Both normalise their input first ("pre-norm"). Each is a layer by itself, so that a block can be cut in two.
Shapes: B sequences, T positions, D channels, H heads of N channels each, V tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

Positions = Literal["learned", "rotary"]
Activation = Literal["gelu", "relu", "swiglu"]

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"gelu": nn.gelu, "relu": nn.relu, "swiglu": nn.silu}
_ROTARY_BASE = 10000.0


class TransformerModule(nn.Module, kw_only=True):
    """What the modules of a transformer share.

    Attributes:
      width: D.
      deviation: of the initial weights.
      final_deviation: of those whose output is added to the shortcut; GPT-2 divides by the square root of how many
        there are in the network.
      bias: whether dense layers and normalisations have one.
      dropout: rate, of what is added to the shortcut.
      remat: whether the backward computes the activations again, from the layer's input, in place of storing them.
      dtype: of the computation; by default that of inputs and parameters together.
      param_dtype: of the parameters.
    """

    width: int
    deviation: float = 0.02
    final_deviation: float = 0.02
    bias: bool = True
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def _dense(self, features: int, deviation: float, name: str) -> nn.Dense:
        init = nn.initializers.normal(deviation)
        return nn.Dense(features, self.bias, self.dtype, self.param_dtype, kernel_init=init, name=name)

    def _norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(1e-5, self.dtype, self.param_dtype, use_bias=self.bias, name="norm")

    def _added(self, x: jax.Array, train: bool) -> jax.Array:
        """``x`` with the module's branch added to it."""

        def branch(module: Any, x: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout)(module.branch(module._norm()(x)), deterministic=not train)

        return x + (nn.remat(branch) if self.remat else branch)(self, x)


class SelfAttention(TransformerModule):
    """Causal self-attention of several heads, added to its input: [B, T, D] -> same.

    GPT-2 drops attention weights out as well. Fused attention kernels do not, nor does this.

    Attributes:
      heads: H, which divides D.
      positions: ``rotary`` turns queries and keys by their positions (Su et al. 2021, eq. 34), half against half;
        ``learned`` leaves them to the embedding.
    """

    heads: int
    positions: Positions = "learned"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self._added(x, train)

    def branch(self, x: jax.Array) -> jax.Array:
        """What is added."""
        split = (*x.shape[:-1], 3, self.heads, self.width // self.heads)
        queries, keys, values = jnp.moveaxis(
            self._dense(3 * self.width, self.deviation, "qkv")(x).reshape(split), -3, 0
        )
        if self.positions == "rotary":
            queries, keys = rotated(queries), rotated(keys)
        mixed = causal_attention(queries, keys, values).reshape(x.shape)
        return self._dense(self.width, self.final_deviation, "out")(mixed)


class FeedForward(TransformerModule):
    """Two dense layers at each position, added to their input: [B, T, D] -> same.

    Attributes:
      hidden: channels between them.
      activation: ``gelu`` (GPT-2's, by tanh), ``relu``, or ``swiglu`` (Shazeer 2020, eq. 6), which has a third.
    """

    hidden: int
    activation: Activation = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self._added(x, train)

    def branch(self, x: jax.Array) -> jax.Array:
        """What is added."""
        y = _ACTIVATIONS[self.activation](self._dense(self.hidden, self.deviation, "in")(x))
        if self.activation == "swiglu":
            y = y * self._dense(self.hidden, self.deviation, "gate")(x)
        return self._dense(self.width, self.final_deviation, "out")(y)


class TransformerBlock(nn.Module):
    """A self-attention and a feed-forward network, one after the other: [B, T, D] -> same."""

    attention: SelfAttention
    feed_forward: FeedForward

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.feed_forward(self.attention(x, train), train)


class TokenEmbedding(nn.Module):
    """Vectors of tokens, and of their positions if these are learned: int [B, T] -> [B, T, D].

    Attributes:
      vocab_size: V. The vector of a token outside of 0..V-1 is NaN.
      width: D.
      context: positions there are vectors for; ``None``: none, and T may be anything.
      deviation: of the initial weights.
      dropout: rate.
      dtype, param_dtype: as of `TransformerModule`.
    """

    vocab_size: int
    width: int
    context: int | None = None
    deviation: float = 0.02
    dropout: float = 0.0
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens have type {tokens.dtype}; write integers of 0..{self.vocab_size - 1}, [B, T]")
        init = nn.initializers.normal(self.deviation)
        embedding = self.param("embedding", init, (self.vocab_size, self.width), self.param_dtype)
        x = jnp.take(embedding, jnp.where(tokens < 0, self.vocab_size, tokens), axis=0)  # -1 is not the last one
        if self.context is not None:
            length = tokens.shape[-1]
            if length > self.context:
                raise ValueError(
                    f"sequences have {length} tokens, but there are {self.context} positions; write shorter ones, a "
                    f"context of {length}, or positions='rotary'"
                )
            x = x + self.param("positions", init, (self.context, self.width), self.param_dtype)[:length]
        x = x if self.dtype is None else x.astype(self.dtype)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class LanguageHead(nn.Module):
    """Normalisation, then a logit for each token, without a bias: [B, T, D] -> [B, T, V].

    Its matrix has the shape of a `TokenEmbedding`'s, so that the two can be one.
    """

    vocab_size: int
    bias: bool = True
    deviation: float = 0.02
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm(1e-5, self.dtype, self.param_dtype, use_bias=self.bias, name="norm")(x)
        init = nn.initializers.normal(self.deviation)
        embedding = self.param("embedding", init, (self.vocab_size, x.shape[-1]), self.param_dtype)
        x, embedding = promote_dtype(x, embedding, dtype=self.dtype)
        return x @ embedding.T


def causal_attention(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Each position's mean of the values at positions up to its own, weighted by softmax: [B, T, H, N] each -> same."""
    if queries.dtype != jnp.float64:
        return jax.nn.dot_product_attention(queries, keys, values, is_causal=True)
    # That computes the softmax of doubles in float32.
    logits = jnp.einsum("bthn,bshn->bhts", queries, keys) / math.sqrt(queries.shape[-1])
    seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))
    return jnp.einsum("bhts,bshn->bthn", jax.nn.softmax(jnp.where(seen, logits, -jnp.inf)), values)


def rotated(x: jax.Array) -> jax.Array:
    """Pairs of channels, i and i + N/2, turned by position times base^(-2i/N): [B, T, H, N] -> same."""
    positions, half = jnp.arange(x.shape[-3], dtype=jnp.promote_types(x.dtype, jnp.float32)), x.shape[-1] // 2
    angles = positions[:, None, None] * _ROTARY_BASE ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
