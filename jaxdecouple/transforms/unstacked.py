"""An optimizer for a stage with stacks, to which the layers of a stack are layers like any other.

What it sees are the trees of single layers, under the names that they have where nothing is stacked. What it keeps of
them is stacked as they are. Parameters that have no gradient, such as integers, it does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import jaxpr_as_fun

from jaxdecouple.network.by_layer import ByLayer, Place
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, signature_of


def unstacked(inner: optax.GradientTransformationExtraArgs, stage: Stage) -> optax.GradientTransformationExtraArgs:
    """``inner``, such that it sees the layers of a stage's stacks one by one; itself, if the stage has none.

    Layers that are treated alike are computed at once; where some are treated otherwise than others, by a mask that
    goes by their names, say, each is computed by itself, and compiling takes as long as if nothing were stacked.
    """
    return _Unstacked(inner, stage).transform if stage.stacks else inner


class _Unstacked:
    def __init__(self, inner: optax.GradientTransformationExtraArgs, stage: Stage):
        self._inner = inner
        self._stacks = stage.stacks
        self.transform = optax.GradientTransformationExtraArgs(self.init, self.update)

    def init(self, params: optax.Params) -> optax.OptState:
        return self._together(self._inner.init(self._apart(params)), jnp.stack)

    def update(
        self,
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        gradient_norms: PyTree | None = None,
        over_stages: Any = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if gradient_norms is not None:  # [examples, layers] of a stack
            gradient_norms = self._turned(gradient_norms)
        given, shares = (updates, state, params, gradient_norms), []

        def step(updates: Any, state: Any, params: Any, norms: Any) -> tuple[Any, Any, Any]:
            more = {} if norms is None else {"gradient_norms": norms}
            if over_stages is not None:
                more["over_stages"] = lambda share: (shares.append(share), over_stages(share))[1]
            updates, state = self._inner.update(updates, state, params, **more, **extra)
            return updates, state, tuple(shares)

        leaves, structure = jax.tree.flatten(given)
        numbered = jax.tree.unflatten(structure, map(Place, range(len(leaves))))
        places = jax.tree.leaves(self._apart(numbered, lambda place, stack, i: Place(place.array, stack, i)))
        closed, shapes = jax.make_jaxpr(step, return_shape=True)(*jax.eval_shape(self._apart, given))
        updates, state, found = self._evaluate(closed, shapes, places, leaves)
        if found:
            over_stages.share = found[0]  # what it was given within the record
        return updates, state

    def _evaluate(self, closed: Any, shapes: PyTree, places: Sequence[Place], arrays: Sequence[jax.Array]) -> PyTree:
        """What a step gives, stacked; it was recorded for single layers, which are at ``places`` of the arrays."""
        record, structure = ByLayer(closed, places), jax.tree.structure(shapes)
        if not record.alike:
            apart = [arrays[p.array] if p.layer is None else arrays[p.array][p.layer] for p in places]
            return self._together(jax.tree.unflatten(structure, jaxpr_as_fun(closed)(*apart)), jnp.stack)
        values, outputs = record.evaluate(arrays), map(_Output, record.outputs, jax.tree.leaves(shapes))
        stacked = self._together(jax.tree.unflatten(structure, outputs), _Outputs)
        return jax.tree.map(
            lambda of: values.read_all(of.variables) if isinstance(of, _Outputs) else values.read(of.variable), stacked
        )

    def _apart(self, tree: PyTree, pick: Callable[[Any, str, int], Any] = lambda leaf, stack, i: leaf[i]) -> PyTree:
        """``tree`` with the layers of stacks apart, wherever in it are trees by layer."""

        def apart(node: Any) -> Any:
            if not self._has_stacks(node):
                return node
            found = {}
            for name, part in node.items():
                for i, label in enumerate(self._stacks.get(name, ())):
                    found[label] = jax.tree.map(lambda leaf, name=name, i=i: pick(leaf, name, i), part)
                if name not in self._stacks:
                    found[name] = part
            return found

        return jax.tree.map(apart, tree, is_leaf=self._has_stacks)

    def _together(self, tree: PyTree, stack: Callable[[list[Any]], Any]) -> PyTree:
        """The inverse, where the trees of a stack's layers are alike."""

        def complete(node: Any) -> list[str]:
            """The stacks all of whose layers are in ``node``, with trees that can be stacked."""
            if not isinstance(node, dict):
                return []
            return [name for name, labels in self._stacks.items() if _alike([node.get(label) for label in labels])]

        def together(node: Any) -> Any:
            found = dict(node) if complete(node) else node
            for name in complete(node):
                parts = [found.pop(label) for label in self._stacks[name]]
                found[name] = jax.tree.map(lambda *leaves: stack(list(leaves)), *parts)
            return found

        return jax.tree.map(together, tree, is_leaf=lambda node: bool(complete(node)))

    def _has_stacks(self, node: Any) -> bool:
        return isinstance(node, dict) and not self._stacks.keys().isdisjoint(node)

    def _turned(self, norms: PyTree) -> PyTree:
        """Norms of single examples, [examples, layers] where layers are stacked, with the layers first."""

        def turn(leaf: jax.Array) -> jax.Array:
            return jnp.swapaxes(leaf, 0, 1) if leaf.ndim > 1 else leaf

        return {name: jax.tree.map(turn, part) if name in self._stacks else part for name, part in norms.items()}


class _Output:
    """An output of a record.

    Attributes:
      variable: its name there.
      shape, dtype: of it.
    """

    def __init__(self, variable: Any, like: Any):
        self.variable, self.shape, self.dtype = variable, like.shape, like.dtype


class _Outputs:
    """The same output for all layers of a stack.

    Attributes:
      variables: their names.
    """

    def __init__(self, outputs: Sequence[_Output]):
        self.variables = [output.variable for output in outputs]


def _alike(parts: Sequence[PyTree]) -> bool:
    return None not in parts and len({signature_of(part) for part in parts}) == 1


def floating_only(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """``inner`` for parameters that have gradients; the others, such as integers and booleans, stay as they are.

    Where all parameters have gradients it is ``inner``, and so is its state.
    """
    whole = optax.with_extra_args_support(inner)
    masked = optax.with_extra_args_support(optax.masked(inner, lambda tree: jax.tree.map(has_gradient, tree)))

    def of(tree: PyTree) -> optax.GradientTransformationExtraArgs:
        return whole if all(map(has_gradient, jax.tree.leaves(tree))) else masked

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        return of(updates).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(lambda params: of(params).init(params), update)


def has_gradient(leaf: Any) -> bool:
    """Whether a parameter, or its shape, is of a floating or complex type."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
