"""Muon for the stages of a transformer: matrices are orthogonalised one by one, also those of a loop over layers."""

from __future__ import annotations

from typing import Any

import jax
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
