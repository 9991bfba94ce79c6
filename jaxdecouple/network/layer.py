"""A layer is a pair of pure functions, and the unit at which a network can be cut.

    init(key, x)                                       -> params, model_state
    apply(params, model_state, x, key=..., train=...)  -> y, model_state

``params`` is what the optimizer changes. ``model_state`` is everything else that a layer carries from batch to batch,
such as batch statistics. Keys belong to layers: layer ``i`` of the network is initialised from ``fold_in(key, i)`` and
draws its randomness for batch ``n`` from ``fold_in(fold_in(key, i), n)``. So the same seed gives the same network and
the same dropout masks wherever the network is cut, and whether or not identical layers are one loop (`stack`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from jaxdecouple.network.trees import PyTree, describe, shape_of, signature_of


@dataclasses.dataclass(frozen=True)
class Layer:
    """A pair of pure functions, the unit at which a network can be cut.

    Attributes:
      init: ``(key, x) -> (params, model_state)``; ``x`` holds shapes and dtypes, not values.
      apply: ``(params, model_state, x, key=, train=) -> (y, model_state)``.
      name: for messages and for the keys of parameter trees.
      identity: layers of equal identity have functions that do the same, whatever their names; ``None`` is equal to
        nothing. As with static arguments of ``jax.jit``, only the identity is compared.
      shares: names of parameters that are shared with other layers, and their paths in ``params`` (`sharing`).
      annotations: paths in ``params`` (``jax.tree_util.keystr``), and along which axes of a mesh a parameter is to be
        split, where the parameter itself does not say it (`annotations`).
      module: the object that it was made from, if that is a Flax module: what is listed twice is one layer twice.
    """

    init: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[PyTree, PyTree]]
    name: str = "layer"
    identity: Hashable = None
    shares: tuple[tuple[str, tuple[str, ...]], ...] = ()
    annotations: tuple[tuple[str, PartitionSpec], ...] = ()
    module: Any = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def count(self) -> int:
        """How many layers of the network this is."""
        return 1

    def label(self, index: int) -> str:
        """Its key in the trees of a stage, as layer ``index`` of the network."""
        return f"{index:03d}_{self.name}"

    def init_at(self, index: int, key: jax.Array, x: PyTree, shapes: OutputShapes) -> tuple[PyTree, PyTree, PyTree]:
        """Parameters, model state and the output's shapes of layer ``index`` of a network.

        Args:
          index: of the layer.
          key: that the network is initialised from.
          x: input, of which shapes and dtypes matter.
          shapes: asked for those of the output.

        Raises:
          ValueError: the model state changes its structure from batch to batch.
        """
        params, model_state = self.init(jax.random.fold_in(key, index), x)
        y, new_state = shapes(self, x, params, model_state)
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
        """Output and new model state of layer ``index``, from the same ``key`` for all layers of the network."""
        key = jax.random.fold_in(jax.random.fold_in(key, index), batch)
        return self.apply(params, model_state, x, key=key, train=train)

    def by_layer(self, index: int, tree: PyTree) -> dict[str, PyTree]:
        """``tree``, its parameters or model state as layer ``index``, under its key."""
        return {self.label(index): tree}

    def from_layers(self, index: int, apart: Mapping[str, PyTree]) -> PyTree | None:
        """The inverse of `by_layer`; ``None`` where there is nothing of this layer."""
        return apart.get(self.label(index))


class OutputShapes:
    """Shapes and dtypes of what layers put out in training, traced once for each kind of layer and input."""

    def __init__(self) -> None:
        self._applied: dict[Hashable, tuple[Any, Layer]] = {}

    def __call__(self, layer: Layer, x: PyTree, params: PyTree, model_state: PyTree) -> tuple[PyTree, PyTree]:
        """Those of the output and of the new model state, for inputs shaped like ``x``."""
        kind = ("id", id(layer)) if layer.identity is None else layer.identity
        if kind not in self._applied:
            # For its memory, which knows JAX's settings; it is never compiled. And no other layer gets the same id.
            self._applied[kind] = jax.jit(functools.partial(layer.apply, train=True)), layer
        apply, _ = self._applied[kind]
        return apply.eval_shape(params, model_state, x, key=jax.eval_shape(jax.random.key, 0))


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
        return params, model_state, shape_of(outputs(layer, x, params, model_state)[0])

    outputs, shapes, x = OutputShapes(), once_per_kind(shapes), shape_of(x)
    for index, layer in enumerate(layers, first):
        with blaming(layer.name, index, x):
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


@contextlib.contextmanager
def blaming(name: str, index: int, x: PyTree, what: str = "layer") -> Iterator[None]:
    """Names the layer in the errors of a ``with`` block.

    Raises:
      ValueError: the block raised an error; its message follows the layer's index, name and input.
    """
    try:
        yield
    except Exception as error:
        targets = " (give inputs alone, without targets)" if index == 0 and isinstance(x, tuple) else ""
        raise ValueError(
            f"{what} {index} ({name}) cannot take {describe(x)}, the output of the layer before it "
            f"(or the network's input), or fails by itself{targets}: {error}"
        ) from error
