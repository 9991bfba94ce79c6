"""Gradient shrinking scales a delayed gradient down by how many stages it passed (FDG, section III-B)."""

from __future__ import annotations

import optax


def shrink_gradients(beta: float, distance: int = 1) -> optax.GradientTransformation:
    """Multiplies gradients by ``beta ** distance`` (FDG, eq. 17).

    FDG multiplies by beta wherever a gradient enters a stage (eq. 15). Back-propagation is linear in the incoming
    gradient, so scaling stage k's gradient by beta^(K-1-k), with distance K-1-k, is the same. Chain it before weight
    decay and momentum, neither of which the paper shrinks. Optimizers that do not see the scale of a gradient (Adam,
    LARS) undo it.

    Args:
      beta: shrinking factor, in (0, 1]; 1 changes nothing.
      distance: how many stages lie between this one and the loss, at least 0.

    Raises:
      ValueError: beta or distance out of range.
    """
    if not 0 < beta <= 1:
        raise ValueError(f"beta is {beta}; write a shrinking factor in (0, 1], 1 for no shrinking")
    if distance < 0:
        raise ValueError(f"distance is {distance}; write the number of stages between this one and the loss, >= 0")
    return optax.identity() if beta == 1 or distance == 0 else optax.scale(float(beta) ** int(distance))
