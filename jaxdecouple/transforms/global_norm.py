"""A global norm is one over all parameters of a network, of which each stage holds but a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdecouple.network.trees import PyTree
from jaxdecouple.transforms.layer_groups import root, sum_of_squares

# From a stage's share of a sum over all parameters of the network to that sum.
OverStages = Callable[[jax.Array], jax.Array]


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scales updates down to ``max_norm`` where the norm of the whole network's is larger (Pascanu et al. 2012).

    By itself it is `optax.clip_by_global_norm`. That one, in a stage's optimizer, would take the norm of the stage. A
    pipeline gives this one the sum over all stages, as the keyword ``over_stages``: a function from the stage's sum
    of squares to the network's. Where all stages update from the same batches at once (`schedules.backprop`,
    `schedules.gpipe`), the updates are those of the network in one piece. Under other schedules the other stages' sums
    are those of their last updates, and 0 before the first.

    A transform of one's own that sums over all parameters can ask for the same keyword, once in each stage.

    Args:
      max_norm: the largest norm, above 0.

    Raises:
      ValueError: ``max_norm`` is not above 0.
    """
    if isinstance(max_norm, int | float) and not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}; write the largest norm that an update may have, above 0")

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        over_stages: OverStages | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        squares = sum(sum_of_squares(leaf, keep=0) for leaf in jax.tree.leaves(updates))
        square = jnp.asarray(squares, jnp.float32) if isinstance(squares, int) else squares
        norm = root(square if over_stages is None else over_stages(square))
        return _scaled(updates, jnp.where(norm < max_norm, 1, max_norm / norm)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _scaled(updates: PyTree, ratio: jax.Array) -> PyTree:
    return jax.tree.map(lambda leaf: (leaf * ratio).astype(leaf.dtype), updates)
