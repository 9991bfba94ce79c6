"""Counting: which number of the update bias corrections and learning-rate schedules go by."""

from __future__ import annotations

import jax.numpy as jnp
import optax
import optax.tree_utils


def count_from(inner: optax.GradientTransformation, missed: int) -> optax.GradientTransformationExtraArgs:
    """``inner``, as if ``missed`` updates with a gradient of 0 had come before its first.

    A stage below the last has no gradient while the pipeline fills. In the papers' algorithms time goes on meanwhile:
    Adam-DDG divides by 1 - beta_1^{t+1}, with the t that all stages share (thesis, Algorithm 10), and the learning rate
    is gamma_t (eq. 5.9). Moments stay 0, so only the counters of ``inner`` begin later.

    Args:
      inner: the transform; every ``count`` in its state begins at ``missed``.
      missed: how many; `schedules.missed_updates` knows.

    Raises:
      ValueError: ``missed`` is below 0.
    """
    if missed < 0:
        raise ValueError(f"missed is {missed}; write how many updates came before the first, at least 0")
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        state = inner.init(params)
        known = optax.tree_utils.tree_get_all_with_path(state, "count")
        return optax.tree_utils.tree_set(state, count=jnp.asarray(missed, jnp.int32)) if known else state

    return optax.GradientTransformationExtraArgs(init, inner.update) if missed else inner
