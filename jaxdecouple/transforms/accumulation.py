"""Accumulation updates once every M gradients, with their mean (ADL, eq. 16)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class AccumulationState(NamedTuple):
    """State of `accumulate_gradients`.

    Attributes:
      count: int32 scalar, gradients in the sum, 0..M-1.
      total: the sum of the group's gradients so far, like the gradients.
      inner: the state of the wrapped transform.
    """

    count: jax.Array
    total: optax.Updates
    inner: optax.OptState


class Accumulation(optax.GradientTransformationExtraArgs):
    """The transform that `accumulate_gradients` returns: usable like any other, and open about its M.

    A caller that knows on the host which gradient ends a group can call `add` for the others and `finish` for the
    last, and need not compute, or copy, parameters that do not change. `update` decides on the device instead.

    Attributes:
      every: M.
      inner: the transform that sees the means.
      dtype: of the sum; ``None``: the parameters' own, but at least float32.
    """

    every: int
    inner: optax.GradientTransformationExtraArgs
    dtype: Any

    def __new__(cls, transform: optax.GradientTransformation, every: int, dtype: Any = None) -> Accumulation:
        inner = optax.with_extra_args_support(transform)

        def init(params: optax.Params) -> AccumulationState:
            total = jax.tree.map(lambda p: jnp.zeros(p.shape, dtype or _sum_dtype(p.dtype)), params)
            return AccumulationState(jnp.zeros((), jnp.int32), total, inner.init(params))

        def update(
            updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
        ) -> tuple[optax.Updates, AccumulationState]:
            def add(state: AccumulationState) -> tuple[optax.Updates, AccumulationState]:
                return like(updates), self.add(updates, state)

            def finish(state: AccumulationState) -> tuple[optax.Updates, AccumulationState]:
                before = state.inner
                means, state = self.finish(updates, state, params, **extra)
                # Both branches of a cond must agree on types.
                state = state._replace(inner=jax.tree.map(lambda new, old: new.astype(old.dtype), state.inner, before))
                return jax.tree.map(lambda u, g: u.astype(g.dtype), means, like(updates)), state

            def like(grads: optax.Updates) -> optax.Updates:
                return jax.tree.map(jnp.zeros_like, grads if params is None else params)

            return jax.lax.cond(state.count == every - 1, finish, add, state)

        self = super().__new__(cls, init, update)
        self.every = every
        self.inner, self.dtype = inner, dtype
        return self

    def add(self, grads: optax.Updates, state: Any) -> AccumulationState:
        """The state after a gradient that does not end its group; no update follows from it."""
        total = jax.tree.map(lambda total, g: total + g.astype(total.dtype), state.total, grads)
        return state._replace(count=state.count + 1, total=total)

    def around(self, inner: optax.GradientTransformation) -> Accumulation:
        """The same accumulation, of which ``inner`` sees the means."""
        return Accumulation(inner, self.every, self.dtype)

    def finish(
        self, grads: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, AccumulationState]:
        """Updates and state after the gradient that ends its group."""
        mean = jax.tree.map(lambda total, g: ((total + g) / self.every).astype(g.dtype), state.total, grads)
        updates, inner = self.inner.update(mean, state.inner, params, **extra)
        return updates, AccumulationState(jnp.zeros_like(state.count), jax.tree.map(jnp.zeros_like, state.total), inner)


def accumulate_gradients(
    inner: optax.GradientTransformation, every: int, *, dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Feeds ``inner`` the mean of every ``every`` gradients and gives zero updates in between (ADL, eqs. 12 and 16).

    The published ADL code takes the sum; the paper, like this, the mean. It computes what ``optax.MultiSteps`` does;
    what it adds is that the pipeline can leave the parameters alone, not merely add zero, between updates.
    Keep it outermost, so that weight decay and momentum see the mean, once per group.

    Args:
      inner: the transform that sees one mean gradient per group; extra arguments of the last call reach it.
      every: M, the gradients of a group, at least 1. For 1, ``inner`` itself is returned.
      dtype: of the sum; by default the parameters' own, but at least float32.

    Raises:
      ValueError: ``every`` is not an integer of at least 1.
    """
    if not isinstance(every, int | np.integer) or every < 1:
        raise ValueError(f"accumulate is {every!r}; write how many gradients make an update, an integer of at least 1")
    return optax.with_extra_args_support(inner) if every == 1 else Accumulation(inner, int(every), dtype)


def _sum_dtype(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
