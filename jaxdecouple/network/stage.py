"""A stage is a number of consecutive layers of a network that live on one device.

It is itself a pair of pure functions, of the same form as a layer's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import jax

from jaxdecouple.network.layer import Layer, OutputShapes, blaming
from jaxdecouple.network.stack import LayerStack
from jaxdecouple.network.trees import PyTree, shape_of


@dataclasses.dataclass(frozen=True)
class Stage:
    """Consecutive layers of a network, themselves a pair of pure functions of the same form.

    Parameters and model state are dicts from ``"<index>_<name>"`` to those of the layer, and from
    ``"<first>-<last>_<name>"`` to those of a `LayerStack`; layers without are left out. A module that is listed twice
    has its own under the key of its first place.

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

    @property
    def stacks(self) -> dict[str, tuple[str, ...]]:
        """The key of each stack, and of its layers those that they have apart."""
        return {
            name: tuple(layer.by_layer(index, {}))
            for index, name, layer in self._placed()
            if isinstance(layer, LayerStack)
        }

    def init(self, key: jax.Array, x: PyTree, shapes: OutputShapes | None = None) -> tuple[PyTree, PyTree]:
        """Parameters and model state for inputs shaped like ``x`` (arrays or ``jax.ShapeDtypeStruct``).

        Args:
          key: that the network is initialised from.
          x: inputs, [B, ...] or a tree of such.
          shapes: which remembers those of an earlier call.

        Raises:
          ValueError: a layer cannot take what the layer before it puts out.
        """
        params, model_state, x = {}, {}, shape_of(x)
        shapes = shapes or OutputShapes()
        owners = self._owners
        for index, name, layer in self._placed():
            with blaming(layer.name, index, x):
                if isinstance(layer, Layer) and name in owners:
                    own = params.get(owners[name], {}), model_state.get(owners[name], {})
                    x = shapes(layer, x, *own)[0]
                    continue
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
        new_state, owners = {}, self._owners
        for index, name, layer in self._placed():
            name = owners.get(name, name)
            own = params.get(name, {}), new_state.get(name, model_state.get(name, {}))
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

    @functools.cached_property
    def _owners(self) -> dict[str, str]:
        """The key of each layer whose module is listed before, and that of the first."""
        firsts: dict[int, str] = {}
        owners = {}
        for _, name, layer in self._placed():
            if isinstance(layer, Layer) and layer.module is not None:
                first = firsts.setdefault(id(layer.module), name)
                if first != name:
                    owners[name] = first
        return owners

    def _placed(self) -> Iterator[tuple[int, str, Layer | LayerStack]]:
        index = self.first
        for layer in self.layers:
            yield index, layer.label(index), layer
            index += layer.count
