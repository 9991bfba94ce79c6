"""Delays: gradients that wait, as those of a decoupled stage do, in any training loop on one device."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class DelayState(NamedTuple):
    """State of `delay_gradients`.

    Attributes:
      count: int32 scalar, gradients that came so far; from tau on modulo tau, in tau..2 tau - 1.
      queue: those of the last tau, like the gradients, [tau, ...] each: that of call t at t mod tau.
      inner: the state of the wrapped transform.
    """

    count: jax.Array
    queue: optax.Updates
    inner: optax.OptState


def delay_gradients(inner: optax.GradientTransformation, tau: int) -> optax.GradientTransformationExtraArgs:
    """Feeds ``inner`` at call t the gradient of call t - tau, and nothing before: w_{t+1} = w_t - f(g_{t-tau}).

    With tau = K-1-k for the parameters of stage k (``optax.partition``), a plain training loop computes what `ddg`
    computes over K stages, whose gradients are all of one version of the weights. As there, the first tau calls change
    neither parameters nor ``inner``.

    Args:
      inner: the transform that sees the old gradients, with the parameters of today.
      tau: calls that a gradient waits. For 0, ``inner`` itself is returned.

    Raises:
      ValueError: ``tau`` is not an integer of at least 0.
    """
    if not isinstance(tau, int | np.integer) or tau < 0:
        raise ValueError(f"tau is {tau!r}; write how many updates a gradient waits, an integer of at least 0")
    inner = optax.with_extra_args_support(inner)
    if tau == 0:
        return inner

    def init(params: optax.Params) -> DelayState:
        queue = jax.tree.map(lambda p: jnp.zeros((tau, *p.shape), p.dtype), params)
        return DelayState(jnp.zeros((), jnp.int32), queue, inner.init(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, DelayState]:
        place = state.count % tau
        due = jax.tree.map(lambda waiting: waiting[place], state.queue)
        queue = jax.tree.map(lambda waiting, g: waiting.at[place].set(g), state.queue, updates)

        def wait() -> tuple[optax.Updates, optax.OptState]:
            return jax.tree.map(jnp.zeros_like, due), state.inner

        def act() -> tuple[optax.Updates, optax.OptState]:
            changes, after = inner.update(due, state.inner, params, **extra)
            # Both branches of a cond must agree on types.
            after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, state.inner)
            return jax.tree.map(lambda u, g: u.astype(g.dtype), changes, due), after

        updates, after = jax.lax.cond(state.count < tau, wait, act)
        return updates, DelayState(jnp.where(state.count == 2 * tau - 1, tau, state.count + 1), queue, after)

    return optax.GradientTransformationExtraArgs(init, update)
