"""Rules of momentum: the unified momentum of DSP, and NAdam, which looks ahead along its own."""

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


class NAdamState(NamedTuple):
    """State of `scale_by_nadam`.

    Attributes:
      count: int32 scalar, updates so far.
      product: scalar, mu_1 mu_2 ... mu_count.
      mean, square: moving averages of gradients and of their squares, like the parameters.
    """

    count: jax.Array
    product: jax.Array
    mean: optax.Updates
    square: optax.Updates


def scale_by_nadam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, momentum_decay: float = 4e-3
) -> optax.GradientTransformation:
    """Scales gradients as ``torch.optim.NAdam`` does; ``optax.nadam`` has a constant mu = b1 and is another method.

    With mu_t = b1 (1 - 0.96^(t momentum_decay) / 2), m and v Adam's moving averages, and t = 1, 2, ...:

        mu_{t+1} m_t / (1 - mu_1 ... mu_{t+1}) + (1 - mu_t) g_t / (1 - mu_1 ... mu_t),

    over sqrt(v_t / (1 - b2^t)) + eps. Asynchronous pipelines with delayed gradients were found to need it, with b1 =
    0.99 (Ajanthan et al. 2025, "Nesterov method for asynchronous pipeline parallel optimization").

    Args:
      b1, b2: how much of the averages is kept.
      eps: added to the root.
      momentum_decay: psi, how fast mu approaches b1.
    """

    def momentum(t: jax.Array) -> jax.Array:
        return b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    def init(params: optax.Params) -> NAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return NAdamState(jnp.zeros((), jnp.int32), jnp.ones(()), zeros, zeros)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NAdamState]:
        count = jnp.asarray(optax.safe_increment(state.count))
        now, ahead = momentum(count), momentum(count + 1)
        product = state.product * now
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.square, updates)

        def scaled(g: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            step = ahead * m / (1 - product * ahead) + (1 - now) * g / (1 - product)
            return (step / (jnp.sqrt(v / (1 - b2**count)) + eps)).astype(g.dtype)

        return jax.tree.map(scaled, updates, mean, square), NAdamState(count, product, mean, square)

    return optax.GradientTransformation(init, update)


def nadam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.99,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    momentum_decay: float = 4e-3,
    weight_decay: float = 0.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    """`scale_by_nadam`, decoupled weight decay, and a learning rate; by default with the betas of Ajanthan et al.

    Args:
      learning_rate: a number, or a function of the update's index.
      b1, b2, eps, momentum_decay: as of `scale_by_nadam`.
      weight_decay: of the parameters, times the learning rate; not part of the moving averages.
      mask: which parameters decay, as of ``optax.add_decayed_weights``.
    """
    return optax.chain(
        scale_by_nadam(b1, b2, eps, momentum_decay),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
