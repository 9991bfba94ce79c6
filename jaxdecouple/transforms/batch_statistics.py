"""Batch statistics: what normalisation layers find in one batch, as opposed to the running averages that they keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxdecouple.network.trees import PyTree

Statistics = Literal["batch", "running"]


def batch_statistics(forward: Callable[[PyTree], PyTree], running: PyTree) -> PyTree:
    """A batch's own statistics in place of running averages, as `per_example_gradient_norms` wants them.

    A running average r becomes m r + (1 - m) s, where s is the batch's statistic, on which r has no influence. So
    forwards from r = 0 and r = 1 tell m and s. In a compiled function they are one forward: all but r is the same.

    Args:
      forward: from running averages to those after a forward of the batch, in training.
      running: the averages, a pytree of arrays.

    Returns:
      A tree like ``running``. What is no average of this kind, or does not change, is returned as it is.
    """
    from_zero, from_one = (forward(jax.tree.map(fill, running)) for fill in (jnp.zeros_like, jnp.ones_like))

    def own(old: jax.Array, new: jax.Array, zero: jax.Array, one: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return old
        kept = one - zero  # m
        tolerance = 1e3 * jnp.finfo(old.dtype).eps
        is_average = jnp.abs(new - kept * old - zero) <= tolerance * (jnp.abs(new) + jnp.abs(kept * old) + 1)
        is_average &= (kept >= 0) & (kept < 1 - tolerance)
        return jnp.where(is_average.all(), zero / jnp.where(is_average, 1 - kept, 1), old)

    return jax.tree.map(own, running, forward(running), from_zero, from_one)
