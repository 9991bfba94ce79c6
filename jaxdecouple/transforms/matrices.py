"""Optimizers of matrices: Muon, which orthogonalises them, and Adam in the bases of their gradients.

Every matrix is treated by itself, also those of a loop over layers, whose parameters are stacked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers
from optax.contrib import muon as optax_muon

from jaxdecouple.network.stack import stacked

_TABLES = ("embedding", "positions")  # a row for each token or position: no maps, so no matrices


def muon(learning_rate: optax.ScalarOrSchedule, **settings: Any) -> optax.GradientTransformation:
    """``optax.contrib.muon`` (Jordan 2024), for hidden matrices; Adam for vectors, embeddings and the head.

    Every matrix is orthogonalised by itself, so that it does not matter where the network is cut, nor whether equal
    layers are one loop, whose parameters are stacked, [layers, ...]. ``optax.contrib.muon`` by itself would take the
    embeddings for matrices, and a stack's for none.

    Args:
      learning_rate: a number, or a function of the update's index.
      **settings: others of ``optax.contrib.muon``.
    """
    return optax_muon(learning_rate, muon_weight_dimension_numbers=matrices, **settings)


def matrices(params: optax.Params) -> Any:
    """Which parameters are matrices, and which of their axes are summed over, as ``optax.contrib.muon`` takes it."""

    def numbers(path: Any, leaf: jax.Array, of_stack: bool) -> MuonDimensionNumbers | None:
        axes = leaf.ndim - of_stack
        is_table = getattr(path[-1], "key", None) in _TABLES if path else False
        return MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if axes == 2 and not is_table else None

    return jax.tree_util.tree_map_with_path(numbers, params, stacked(params))


class RotatedAdamState(NamedTuple):
    """State of `scale_by_rotated_adam`. What is said of matrices is empty for other parameters.

    Attributes:
      count: int32 scalar, updates so far.
      mean: moving average of gradients, like the parameters.
      square: that of squared gradients, of matrices in the rotated basis.
      left, right: of matrices [..., m, n], moving averages of G G' [..., m, m] and G' G [..., n, n].
      rows, columns: U [..., m, m] and V [..., n, n], orthogonal: the basis.
    """

    count: jax.Array
    mean: optax.Updates
    square: optax.Updates
    left: Any
    right: Any
    rows: Any
    columns: Any


def scale_by_rotated_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, every: int = 10
) -> optax.GradientTransformation:
    """Adam in a basis that turns with the gradients, as SOAP has it (Vyas et al. 2024); it stands delays better.

    With M and S Adam's averages of the gradient G and of the squared U' G V, both with Adam's bias correction,

        L = b2 L + (1 - b2) G G',   R = b2 R + (1 - b2) G' G,
        every so many updates, the first included: U = QR(L U), V = QR(R V), one step of orthogonal iteration,
        step = U [(U' M V) / (sqrt(S) + eps)] V'.

    A misaligned basis makes Adam oscillate where gradients are old, the more the longer the pipeline ("basis rotation",
    arXiv 2602.03515). Vectors, embeddings and the head have Adam's own step; each matrix of a stack has its own basis.

    Args:
      b1, b2: how much of the averages is kept.
      eps: added to the root.
      every: updates after which the basis turns.

    Raises:
      ValueError: ``every`` is below 1.
    """
    if every < 1:
        raise ValueError(f"every is {every}; write after how many updates the basis turns, at least 1")

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, RotatedAdamState]:
        chosen, count = _chosen(updates), jnp.asarray(optax.safe_increment(state.count))
        turns = state.count % every == 0

        def among_matrices(function: Any, *trees: Any) -> Any:
            """``function`` of matrices; of other parameters, the last of the trees."""
            return jax.tree.map(
                lambda is_matrix, *leaves: function(*leaves) if is_matrix else leaves[-1], chosen, *trees
            )

        def turned(average: jax.Array, basis: jax.Array) -> jax.Array:
            return jax.lax.cond(turns, lambda: jnp.linalg.qr(average @ basis)[0], lambda: basis)

        squares = [among_matrices(lambda g, a: _outer(g), updates, state.left)]
        squares.append(among_matrices(lambda g, a: _outer(jnp.swapaxes(g, -1, -2)), updates, state.right))
        left, right = _average(state.left, squares[0], b2), _average(state.right, squares[1], b2)
        rows, columns = among_matrices(turned, left, state.rows), among_matrices(turned, right, state.columns)
        mean, rotated = _average(state.mean, updates, b1), among_matrices(_rotated, rows, columns, updates)
        square = _average(state.square, jax.tree.map(jnp.square, rotated), b2)
        steps = jax.tree.map(
            lambda m, s: m / (1 - b1**count) / (jnp.sqrt(s / (1 - b2**count)) + eps),
            among_matrices(_rotated, rows, columns, mean),
            square,
        )
        steps = among_matrices(lambda u, v, step: u @ step @ jnp.swapaxes(v, -1, -2), rows, columns, steps)
        steps = jax.tree.map(lambda step, g: step.astype(g.dtype), steps, updates)
        return steps, RotatedAdamState(count, mean, square, left, right, rows, columns)

    return optax.GradientTransformation(_unrotated, update)


def rotated_adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    every: int = 10,
    weight_decay: float = 0.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    """`scale_by_rotated_adam`, decoupled weight decay, and a learning rate.

    Args:
      learning_rate: a number, or a function of the update's index.
      b1, b2, eps, every: as of `scale_by_rotated_adam`.
      weight_decay: of the parameters, times the learning rate.
      mask: which parameters decay, as of ``optax.add_decayed_weights``.
    """
    return optax.chain(
        scale_by_rotated_adam(b1, b2, eps, every),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def _chosen(params: optax.Params) -> Any:
    """Whether each parameter is a matrix, or a stack of matrices."""
    numbers = jax.tree.leaves(matrices(params), is_leaf=lambda leaf: leaf is None or hasattr(leaf, "reduction_axis"))
    return jax.tree.unflatten(jax.tree.structure(params), [number is not None for number in numbers])


def _unrotated(params: optax.Params) -> RotatedAdamState:
    """The initial state: averages of 0, in bases that are not turned."""
    zeros, chosen = jax.tree.map(jnp.zeros_like, params), _chosen(params)
    averages = (_squares(params, chosen, axis, jnp.zeros_like) for axis in (-2, -1))
    bases = (
        _squares(params, chosen, axis, lambda square: jnp.eye(len(square), dtype=square.dtype)) for axis in (-2, -1)
    )
    return RotatedAdamState(jnp.zeros((), jnp.int32), zeros, zeros, *averages, *bases)


def _outer(g: jax.Array) -> jax.Array:
    return g @ jnp.swapaxes(g, -1, -2)


def _squares(params: optax.Params, chosen: Any, axis: int, value: Callable[[jax.Array], jax.Array]) -> Any:
    """For each matrix [..., m, n], a square one [..., m, m] or [..., n, n] that has a value; else a scalar 0."""

    def square(p: jax.Array, is_matrix: bool) -> jax.Array:
        if not is_matrix:
            return jnp.zeros((), p.dtype)
        size = p.shape[axis]
        return jnp.broadcast_to(value(jnp.zeros((size, size), p.dtype)), (*p.shape[:-2], size, size))

    return jax.tree.map(square, params, chosen)


def _average(old: Any, new: Any, decay: float) -> Any:
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)


def _rotated(u: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.swapaxes(u, -1, -2) @ g @ v
