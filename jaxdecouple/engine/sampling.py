"""Sampling draws tokens from a language model, one after another, each given those before it."""

from __future__ import annotations

import jax
import numpy as np

from jaxdecouple.engine.pipeline import Pipeline
from jaxdecouple.engine.state import State


def sample_tokens(
    pipeline: Pipeline,
    state: State,
    prompt: np.ndarray,
    count: int,
    *,
    key: jax.Array,
    context: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """Goes on with a text, with today's weights; nothing in flight is touched.

    Every token is a forward of ``context`` tokens through all stages, in one compiled function for each.

    Args:
      pipeline: of a causal network, tokens [B, T] -> logits [B, T, V].
      state: any state.
      prompt: tokens to begin with, [B, T], T at least 1.
      count: tokens to draw.
      key: a ``jax.random.key``.
      context: how many of the last tokens the network sees, at most; as many as it was trained on.
      temperature: what logits are divided by; 0 takes the likeliest token.

    Returns:
      Prompt and drawn tokens, int32 [B, T + count].

    Raises:
      ValueError: the prompt is no [B, T] of integers, or has tokens that the network does not know; or a number is out
        of range.
    """
    prompt = np.asarray(prompt)
    if prompt.ndim != 2 or not prompt.shape[1] or not np.issubdtype(prompt.dtype, np.integer):
        raise ValueError(f"prompt is {prompt.dtype}{list(prompt.shape)}; write integers, [B, T], T at least 1")
    if count < 0 or context < 1 or not temperature >= 0:
        raise ValueError(
            f"count is {count}, context {context} and temperature {temperature}; write 0 or more, 1 or more, 0 or more"
        )
    tokens = prompt.astype(np.int32)
    for index in range(count):
        seen = tokens[:, -context:]
        window = np.zeros((len(tokens), context), np.int32)  # what comes after a token, it does not see
        window[:, : seen.shape[1]] = seen
        logits = pipeline.predict(state, window)[:, seen.shape[1] - 1]
        if not index and not 0 <= prompt.min() <= prompt.max() < logits.shape[-1]:
            raise ValueError(
                f"prompt has tokens from {prompt.min()} to {prompt.max()}, but the network knows {logits.shape[-1]}; "
                f"write tokens of 0..{logits.shape[-1] - 1}"
            )
        if temperature:
            drawn = jax.random.categorical(jax.random.fold_in(key, index), logits / temperature)
        else:
            drawn = logits.argmax(axis=-1)
        tokens = np.concatenate([tokens, np.asarray(drawn, np.int32)[:, None]], axis=1)
    return tokens
