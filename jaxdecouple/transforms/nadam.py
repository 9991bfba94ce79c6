"""NAdam with a momentum that grows: Adam that looks ahead along its momentum (Dozat 2016)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


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
