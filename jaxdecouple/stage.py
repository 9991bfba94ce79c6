"""A stage is a run of consecutive layers that lives on one device; a layer is a pair of pure functions.

    init(key, x)                                       -> params, model_state
    apply(params, model_state, x, key=..., train=...)  -> y, model_state

``params`` is what the optimizer changes, ``model_state`` everything else a layer carries from batch to batch (batch
statistics). Keys belong to layers: layer ``i`` of the network is initialised from ``fold_in(key, i)`` and draws its
randomness for batch ``n`` from ``fold_in(fold_in(key, i), n)``, so that the same seed gives the same network and the
same dropout masks wherever the network is cut, and whether or not a run of identical layers is one scan (`runs`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

if TYPE_CHECKING:
    from jaxdecouple.runs import Run

PyTree = Any
ShapesAfter = Callable[..., tuple[PyTree, PyTree]]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A pair of pure functions, the unit at which a network can be cut.

    Attributes:
      init: ``(key, x) -> (params, model_state)``; ``x`` holds shapes and dtypes, not values.
      apply: ``(params, model_state, x, key=, train=) -> (y, model_state)``.
      name: for messages and for the keys of parameter trees.
      identity: layers of equal identity have functions that do the same, whatever their names; ``None`` is equal to
        nothing. As with static arguments of ``jax.jit``, only the identity is compared.
    """

    init: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[PyTree, PyTree]]
    name: str = "layer"
    identity: Hashable = None

    @property
    def count(self) -> int:
        """How many layers of the network this is."""
        return 1

    def label(self, index: int) -> str:
        """Its key in the trees of a stage, as layer ``index`` of the network."""
        return f"{index:03d}_{self.name}"

    def init_at(self, index: int, key: jax.Array, x: PyTree, after: ShapesAfter) -> tuple[PyTree, PyTree, PyTree]:
        """Parameters, model state and the output's shapes of layer ``index`` of a network initialised from ``key``.

        Raises:
          ValueError: the model state changes its structure from batch to batch.
        """
        params, model_state = self.init(jax.random.fold_in(key, index), x)
        y, new_state = after(self, x, params, model_state)
        if jax.tree.structure(new_state) != jax.tree.structure(model_state):
            raise ValueError(
                f"its model state ({', '.join(model_state)}) changes its structure with every batch, as values "
                "that a module sows do; write a layer whose model state keeps its structure"
            )
        # Batch statistics may start in another dtype than they are kept in.
        return params, jax.tree.map(lambda old, new: old.astype(new.dtype), model_state, new_state), y

    def apply_at(
        self,
        index: jax.Array | int,
        params: PyTree,
        model_state: PyTree,
        x: PyTree,
        *,
        key: jax.Array,
        batch: jax.Array | int,
        train: bool,
    ) -> tuple[PyTree, PyTree]:
        """Output and new model state of layer ``index`` of a network with the run's ``key``."""
        key = jax.random.fold_in(jax.random.fold_in(key, index), batch)
        return self.apply(params, model_state, x, key=key, train=train)

    def by_layer(self, index: int, tree: PyTree) -> dict[str, PyTree]:
        """``tree``, its parameters or model state as layer ``index``, under its key."""
        return {self.label(index): tree}

    def from_layers(self, index: int, apart: Mapping[str, PyTree]) -> PyTree | None:
        """The inverse of `by_layer`; ``None`` where there is nothing of this layer."""
        return apart.get(self.label(index))


@dataclasses.dataclass(frozen=True)
class Stage:
    """Consecutive layers of a network, themselves a pair of pure functions of the same form.

    Parameters and model state are dicts from ``"<index>_<name>"`` to those of the layer, and from
    ``"<first>-<last>_<name>"`` to those of a `Run`, stacked; layers without are left out.

    Attributes:
      layers: layers, and runs of layers, in order.
      first: index of the first layer in the whole network.
    """

    layers: tuple[Layer | Run, ...]
    first: int = 0

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a stage needs at least one layer; use fewer stages or other boundaries")

    @property
    def num_layers(self) -> int:
        """The number of layers of the network, counting each of a run."""
        return sum(layer.count for layer in self.layers)

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of each layer, and of each run, in the stage's parameter tree."""
        return tuple(name for _, name, _ in self._placed())

    def init(self, key: jax.Array, x: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and model state for inputs shaped like ``x`` (arrays or ``jax.ShapeDtypeStruct``).

        Raises:
          ValueError: a layer cannot take what the layer before it puts out.
        """
        params, model_state, x = {}, {}, shape_of(x)
        after = once_per_kind(shapes_after)
        for index, name, layer in self._placed():
            with blaming(layer, index, x):
                layer_params, layer_state, x = layer.init_at(index, key, x, after)
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
        for index, name, layer in self._placed():
            own = params.get(name, {}), model_state.get(name, {})
            x, layer_state = layer.apply_at(index, *own, x, key=key, batch=batch, train=train)
            if name in model_state:
                new_state[name] = layer_state
        return x, new_state

    def by_layer(self, tree: PyTree) -> PyTree:
        """Parameters or model state with those of every layer of a run apart, as if nothing were scanned."""
        apart = {}
        for index, name, layer in self._placed():
            if name in tree:
                apart.update(layer.by_layer(index, tree[name]))
        return apart

    def from_layers(self, apart: Mapping[str, PyTree]) -> PyTree:
        """The inverse of `by_layer`."""
        found = {name: layer.from_layers(index, apart) for index, name, layer in self._placed()}
        return {name: tree for name, tree in found.items() if tree is not None}

    def _placed(self) -> Iterator[tuple[int, str, Layer | Run]]:
        index = self.first
        for layer in self.layers:
            yield index, layer.label(index), layer
            index += layer.count


def shapes_after(layer: Layer, x: PyTree, params: PyTree, model_state: PyTree) -> tuple[PyTree, PyTree]:
    """Shapes and dtypes of a layer's output and new model state in training, for inputs shaped like ``x``."""
    return jax.eval_shape(
        lambda params, state, x, key: layer.apply(params, state, x, key=key, train=True),
        params,
        model_state,
        x,
        jax.eval_shape(lambda: jax.random.key(0)),
    )


class LayerShapes(NamedTuple):
    """A layer of a network, and the shapes and dtypes of its input, parameters, model state and output."""

    index: int
    layer: Layer
    x: PyTree
    params: PyTree
    model_state: PyTree
    y: PyTree


def walk(layers: Sequence[Layer], x: PyTree, *, first: int = 0) -> Iterator[LayerShapes]:
    """Goes through consecutive layers by shapes alone, for a first input shaped like ``x``.

    Args:
      layers: in order.
      x: arrays or ``jax.ShapeDtypeStruct``, [B, ...].
      first: index of the first layer in the whole network.

    Raises:
      ValueError: a layer cannot take what the layer before it puts out.
    """

    def shapes(layer: Layer, x: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        params, model_state = jax.eval_shape(lambda key: layer.init(key, x), jax.random.key(0))
        return params, model_state, shape_of(shapes_after(layer, x, params, model_state)[0])

    shapes, x = once_per_kind(shapes), shape_of(x)
    for index, layer in enumerate(layers, first):
        with blaming(layer, index, x):
            params, model_state, y = shapes(layer, x)
        yield LayerShapes(index, layer, x, params, model_state, y)
        x = y


def once_per_kind(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(layer, x, ...)``, evaluated once for all layers of the same identity and inputs of the same shape.

    What it is given besides must follow from these two, as the shapes of parameters do. For use within one call: what
    a layer does may depend on settings of JAX, such as ``jax_enable_x64``.
    """
    known: dict[Any, Any] = {}

    def remembering(layer: Layer, x: PyTree, *rest: Any) -> Any:
        if layer.identity is None:
            return function(layer, x, *rest)
        kind = layer.identity, signature_of(x)
        if kind not in known:
            known[kind] = function(layer, x, *rest)
        return known[kind]

    return remembering


def shape_of(tree: PyTree) -> PyTree:
    """``tree`` with every array replaced by its ``jax.ShapeDtypeStruct``."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(_dtype(leaf), allow_extended_dtype=True)
        return jax.ShapeDtypeStruct(np.shape(leaf), dtype)

    return jax.tree.map(shape, tree)


def signature_of(tree: PyTree) -> Hashable:
    """Structure, shapes and dtypes of a tree, to compare and to look up by."""
    leaves, structure = jax.tree.flatten(shape_of(tree))
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def describe(tree: PyTree) -> str:
    """Shapes and dtypes of a tree, for messages: ``float32[128, 32, 32, 3]``."""
    return ", ".join(f"{_dtype(leaf)}{list(np.shape(leaf))}" for leaf in jax.tree.leaves(tree)) or "nothing"


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)


@contextlib.contextmanager
def blaming(layer: Layer | Run, index: int, x: PyTree, what: str = "layer") -> Iterator[None]:
    """Names the layer in what goes wrong within.

    Raises:
      ValueError: anything was raised.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{what} {index} ({layer.name}) cannot take {describe(x)}, the output of the layer before it "
            f"(or the network's input), or fails by itself: {error}"
        ) from error
