"""A stage is a number of consecutive layers of a network that live on one device.

It is itself a pair of pure functions, of the same form as a layer's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import jax

from jaxdecouple.network.layer import Layer, blaming, once_per_kind, output_shapes
from jaxdecouple.network.stack import LayerStack
from jaxdecouple.network.trees import PyTree, shape_of


@dataclasses.dataclass(frozen=True)
class Stage:
    """Consecutive layers of a network, themselves a pair of pure functions of the same form.

    Parameters and model state are dicts from ``"<index>_<name>"`` to those of the layer, and from
    ``"<first>-<last>_<name>"`` to those of a `LayerStack`; layers without are left out.

    Attributes:
      layers: layers, and stacks of layers, in order.
      first: index of the first layer in the whole network.
    """

    layers: tuple[Layer | LayerStack, ...]
    first: int = 0

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a stage needs at least one layer; use fewer stages or other boundaries")

    @property
    def num_layers(self) -> int:
        """The number of layers of the network, counting each of a stack."""
        return sum(layer.count for layer in self.layers)

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of each layer, and of each stack, in the stage's parameter tree."""
        return tuple(name for _, name, _ in self._placed())

    def init(self, key: jax.Array, x: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and model state for inputs shaped like ``x`` (arrays or ``jax.ShapeDtypeStruct``).

        Raises:
          ValueError: a layer cannot take what the layer before it puts out.
        """
        params, model_state, x = {}, {}, shape_of(x)
        shapes = once_per_kind(output_shapes)
        for index, name, layer in self._placed():
            with blaming(layer.name, index, x):
                layer_params, layer_state, x = layer.init_at(index, key, x, shapes)
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
          key: the same for every stage.
          batch: index of the batch, for the layers' randomness.
          train: whether batch statistics are gathered and dropout is on.
        """
        new_state = {}
        for index, name, layer in self._placed():
            own = params.get(name, {}), model_state.get(name, {})
            x, layer_state = layer.apply_at(index, *own, x, key=key, batch=batch, train=train)
            if name in model_state:
                new_state[name] = layer_state
        return x, new_state

    def by_layer(self, tree: PyTree) -> PyTree:
        """Parameters or model state with those of every layer of a stack apart, as if nothing were scanned."""
        apart = {}
        for index, name, layer in self._placed():
            if name in tree:
                apart.update(layer.by_layer(index, tree[name]))
        return apart

    def from_layers(self, apart: Mapping[str, PyTree]) -> PyTree:
        """The inverse of `by_layer`."""
        found = {name: layer.from_layers(index, apart) for index, name, layer in self._placed()}
        return {name: tree for name, tree in found.items() if tree is not None}

    def _placed(self) -> Iterator[tuple[int, str, Layer | LayerStack]]:
        index = self.first
        for layer in self.layers:
            yield index, layer.label(index), layer
            index += layer.count
