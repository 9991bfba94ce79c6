"""Stochastic unified momentum (SUM): heavy ball, Nesterov's and plain gradients in one rule (DSP, eq. 3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class UnifiedMomentumState(NamedTuple):
    """State of `sum_momentum`'s rule.

    Attributes:
      lead: x^n - y^{s,n}, like the parameters; 0 at first, since y^{s,0} = x^0.
    """

    lead: optax.Updates


def sum_momentum(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.9, s: float = 1.0
) -> optax.GradientTransformation:
    """Stochastic unified momentum (DSP, eq. 3; Yang et al. 2016).

    ``y^{n+1} = x^n - alpha G,  y^{s,n+1} = x^n - s alpha G,  x^{n+1} = y^{n+1} + beta (y^{s,n+1} - y^{s,n})``

    s = 0 is the heavy ball, s = 1 Nesterov's accelerated gradient, s = 1 / (1 - beta) a plain gradient of the rate
    alpha / (1 - beta), as eq. 6 shows. With a constant rate these are optax's; where the rate changes, optax's sum of
    gradients is multiplied with today's rate, and here each gradient keeps its own.

    Args:
      learning_rate: alpha, or a schedule of it.
      momentum: beta in [0, 1).
      s: at least 0.

    Raises:
      ValueError: ``momentum`` or ``s`` is out of its range.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; write a number of at least 0 and below 1")
    if s < 0:
        raise ValueError(f"s is {s}; write 0 (heavy ball), 1 (Nesterov) or another number of at least 0")

    def init(params: optax.Params) -> UnifiedMomentumState:
        return UnifiedMomentumState(jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, UnifiedMomentumState]:
        # Of -alpha G: y^{s,n+1} - y^{s,n} = lead - s alpha G, and x^{n+1} - y^{s,n+1} = (x^{n+1} - x^n) + s alpha G.
        step = jax.tree.map(lambda u, lead: u + momentum * (lead + s * u), updates, state.lead)
        return step, UnifiedMomentumState(jax.tree.map(lambda new, u: new - s * u, step, updates))

    return optax.chain(optax.scale_by_learning_rate(learning_rate), optax.GradientTransformation(init, update))
