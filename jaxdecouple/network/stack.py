"""A stack is a number of identical layers, one after another, that a stage goes through in one loop.

Unrolled, a network of a thousand layers takes minutes to compile. As a few loops it takes seconds. Parameters and model
state of a stack are those of its layers, stacked along a new first axis. A stack is made after the network was cut, so
that it can be cut anywhere. It computes what its layers compute, from the same random keys.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.network.layer import Layer, OutputShapes, walk
from jaxdecouple.network.trees import PyTree, shape_of, signature_of

# On two CPU cores, residual blocks of 16 to 64 channels take up to 1.3 times as long in a loop, whatever its length,
# while each costs 0.2 s more to compile when it stands alone: below this length, compiling all alone takes seconds.
SHORTEST = 32


_LABEL = re.compile(r"(\d{3,})-(\d{3,})_")


@dataclasses.dataclass(frozen=True)
class LayerStack:
    """Layers of one identity whose output has the structure, shapes and dtypes of their input.

    Attributes:
      layers: the layers, in order; only their names may differ.
    """

    layers: tuple[Layer, ...]

    @property
    def count(self) -> int:
        """How many layers of the network this is."""
        return len(self.layers)

    @property
    def name(self) -> str:
        """For messages and for the keys of parameter trees."""
        return self.layers[0].name

    def label(self, index: int) -> str:
        """Its key in the trees of a stage, if its first layer is layer ``index`` of the network."""
        return f"{index:03d}-{index + self.count - 1:03d}_{self.name}"

    def init_at(self, index: int, key: jax.Array, x: PyTree, shapes: OutputShapes) -> tuple[PyTree, PyTree, PyTree]:
        """Parameters and model state, stacked [layers, ...], and the output's shapes; as `Layer.init_at`."""
        # Each layer by itself, as it would be outside of a stack: the same key gives bit-identical parameters. And put
        # in its place at once: one function that takes all layers would itself take long to compile.
        *own, y = self.layers[0].init_at(index, key, x, shapes)
        stacked = _stack(self.count, own)
        for i, layer in enumerate(self.layers[1:], 1):
            *own, y = layer.init_at(index + i, key, x, shapes)
            stacked = _put(stacked, i, own)
        params, model_state = stacked
        return params, model_state, y

    def apply_at(
        self,
        index: int,
        params: PyTree,
        model_state: PyTree,
        x: PyTree,
        *,
        key: jax.Array,
        batch: jax.Array | int,
        train: bool,
    ) -> tuple[PyTree, PyTree]:
        """Output and new model state, stacked [layers, ...]; as `Layer.apply_at`."""

        def step(x: PyTree, layer: tuple[jax.Array, PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            i, params, model_state = layer
            return self.layers[0].apply_at(i, params, model_state, x, key=key, batch=batch, train=train)

        each: PyTree = (np.arange(index, index + self.count, dtype=np.uint32), params, model_state)
        return jax.lax.scan(step, x, each)

    def by_layer(self, index: int, tree: PyTree) -> dict[str, PyTree]:
        """Parameters or model state of each layer apart, as `Layer.by_layer`."""
        return {
            layer.label(index + i): jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i, layer in enumerate(self.layers)
        }

    def from_layers(self, index: int, apart: Mapping[str, PyTree]) -> PyTree | None:
        """The inverse of `by_layer`; ``None`` where there is nothing of these layers."""
        trees = [apart.get(layer.label(index + i)) for i, layer in enumerate(self.layers)]
        return None if trees[0] is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def stack_layers(
    layers: Sequence[Layer], x: PyTree, *, first: int = 0, shortest: int = SHORTEST
) -> tuple[tuple[Layer | LayerStack, ...], PyTree]:
    """Puts stacks in place of identical consecutive layers, and tells the shapes of the output.

    Args:
      layers: of a stage, in order.
      x: the stage's input, [B, ...], of which only shapes and dtypes matter.
      first: index of the first layer in the whole network, for messages.
      shortest: how many layers make a stack, at least 2.

    Returns:
      Layers and stacks, in order, and the output's shapes and dtypes.

    Raises:
      ValueError: ``shortest`` is below 2, or a layer cannot take what the layer before it puts out.
    """
    if shortest < 2:
        raise ValueError(f"shortest is {shortest}; write how many identical layers make a stack, at least 2")
    x, kinds = shape_of(x), []
    listed = collections.Counter(id(layer.module) for layer in layers if layer.module is not None)
    for shapes in walk(layers, x, first=first):
        identity, x = shapes.layer.identity, shapes.y
        repeatable = identity is not None and signature_of(shapes.x) == signature_of(x)
        repeatable = repeatable and listed[id(shapes.layer.module)] < 2  # else it is one layer, several times
        kinds.append(identity if repeatable else object())  # an object of its own: like no other
    result: list[Layer | LayerStack] = []
    for _, group in itertools.groupby(zip(kinds, layers, strict=True), key=lambda pair: pair[0]):
        same = tuple(layer for _, layer in group)
        result.extend((LayerStack(same),) if len(same) >= shortest else same)
    return tuple(result), x


def stacked(tree: PyTree) -> PyTree:
    """A mask of a stage's parameters, or of several stages': whether a tensor is a stack's, [layers, ...]."""

    def of_stack(path: tuple, leaf: jax.Array) -> bool:
        labels = (_LABEL.match(key.key) for key in path if isinstance(getattr(key, "key", None), str))
        counts = [int(label[2]) - int(label[1]) + 1 for label in labels if label]
        return bool(counts) and np.shape(leaf)[:1] == (counts[-1],)

    return jax.tree_util.tree_map_with_path(of_stack, tree)


@functools.partial(jax.jit, static_argnums=0)
def _stack(count: int, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tree)


@functools.partial(jax.jit, donate_argnums=0)
def _put(stacked: PyTree, i: jax.Array, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaves, leaf: leaves.at[i].set(leaf), stacked, tree)
