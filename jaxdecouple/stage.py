"""A stage is a run of consecutive layers that lives on one device; a layer is a pair of pure functions.

    init(key, x)                                       -> params, model_state
    apply(params, model_state, x, key=..., train=...)  -> y, model_state

``params`` is what the optimizer changes, ``model_state`` everything else a layer carries from batch to batch (batch
statistics). Keys belong to layers: layer ``i`` of the network is initialised from ``fold_in(key, i)`` and draws its
randomness for batch ``n`` from ``fold_in(fold_in(key, i), n)``, so that the same seed gives the same network and the
same dropout masks wherever the network is cut.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Layer:
    """A pair of pure functions, the unit at which a network can be cut.

    Attributes:
      init: ``(key, x) -> (params, model_state)``; ``x`` holds shapes and dtypes, not values.
      apply: ``(params, model_state, x, key=, train=) -> (y, model_state)``.
      name: for messages and for the keys of parameter trees.
    """

    init: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[PyTree, PyTree]]
    name: str = "layer"


@dataclasses.dataclass(frozen=True)
class Stage:
    """Consecutive layers of a network, themselves a pair of pure functions of the same form.

    Parameters and model state are dicts from ``"<index>_<name>"`` to those of the layer; layers without are left out.

    Attributes:
      layers: the layers, in order.
      first: index of the first of them in the whole network.
    """

    layers: tuple[Layer, ...]
    first: int = 0

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a stage needs at least one layer; use fewer stages or other boundaries")

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of each layer in the stage's parameter tree."""
        return tuple(f"{index:03d}_{layer.name}" for index, layer in enumerate(self.layers, self.first))

    def init(self, key: jax.Array, x: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and model state for inputs shaped like ``x`` (arrays or ``jax.ShapeDtypeStruct``).

        Raises:
          ValueError: a layer cannot take what the layer before it puts out.
        """
        params, model_state, x = {}, {}, shape_of(x)
        for index, (name, layer) in enumerate(zip(self.keys, self.layers, strict=True), self.first):
            with _blaming(layer, index, x):
                layer_params, layer_state = layer.init(jax.random.fold_in(key, index), x)
                x, new_state = shapes_after(layer, layer_params, layer_state, x)
                if jax.tree.structure(new_state) != jax.tree.structure(layer_state):
                    raise ValueError(
                        f"its model state ({', '.join(layer_state)}) changes its structure with every batch, as values "
                        "that a module sows do; write a layer whose model state keeps its structure"
                    )
                # Batch statistics may start in another dtype than they are kept in.
                layer_state = jax.tree.map(lambda old, new: old.astype(new.dtype), layer_state, new_state)
            if jax.tree.leaves(layer_params):
                params[name] = layer_params
            if jax.tree.leaves(layer_state):
                model_state[name] = layer_state
        return params, model_state

    def apply(
        self, params: PyTree, model_state: PyTree, x: PyTree, *, key: jax.Array, batch: jax.Array | int, train: bool
    ) -> tuple[PyTree, PyTree]:
        """Outputs and new model state.

        Args:
          params, model_state: as from `init`.
          x: inputs, [B, ...] or a tree of such.
          key: the run's key, the same for every stage.
          batch: index of the batch, for the layers' randomness.
          train: whether batch statistics are gathered and dropout is on.
        """
        new_state = {}
        for index, (name, layer) in enumerate(zip(self.keys, self.layers, strict=True), self.first):
            layer_key = jax.random.fold_in(jax.random.fold_in(key, index), batch)
            x, layer_state = layer.apply(params.get(name, {}), model_state.get(name, {}), x, key=layer_key, train=train)
            if name in model_state:
                new_state[name] = layer_state
        return x, new_state


def shapes_after(layer: Layer, params: PyTree, model_state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
    """Shapes and dtypes of a layer's output and new model state in training, for inputs shaped like ``x``."""
    return jax.eval_shape(
        lambda params, state, x, key: layer.apply(params, state, x, key=key, train=True),
        params,
        model_state,
        x,
        jax.eval_shape(lambda: jax.random.key(0)),
    )


def shape_of(tree: PyTree) -> PyTree:
    """``tree`` with every array replaced by its ``jax.ShapeDtypeStruct``."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(_dtype(leaf), allow_extended_dtype=True)
        return jax.ShapeDtypeStruct(np.shape(leaf), dtype)

    return jax.tree.map(shape, tree)


def describe(tree: PyTree) -> str:
    """Shapes and dtypes of a tree, for messages: ``float32[128, 32, 32, 3]``."""
    return ", ".join(f"{_dtype(leaf)}{list(np.shape(leaf))}" for leaf in jax.tree.leaves(tree)) or "nothing"


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)


@contextlib.contextmanager
def _blaming(layer: Layer, index: int, x: PyTree) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"layer {index} ({layer.name}) cannot take {describe(x)}, the output of the layer before it "
            f"(or the network's input), or fails by itself: {error}"
        ) from error
