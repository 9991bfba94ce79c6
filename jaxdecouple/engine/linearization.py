"""A residual is what the forward pass of a batch leaves behind for its backward pass.

Which weights the backward uses decides what that is:

* ``stash``   the activations, and a reference to the weights of the forward;
* ``remat``   the stage's input, and a reference to those weights; the forward is redone with them;
* ``latest``  the activations alone; the backward is given today's weights;
* ``replay``  the stage's input alone; the forward is redone with today's weights.

The result of ``jax.vjp`` keeps the arguments it needs verbatim, the weights, apart from what the function computed. So
the weights can be taken out after the forward and the chosen ones put back before the backward. What the forward
computes from weights alone (a cast to half precision, a normalised kernel) is not stored either, but computed again
from the chosen weights: ``stash`` costs no copy and ``latest`` no memory. What it computes from weights and activations
together, such as a batch normalisation's scale over deviation, is an activation, and under ``latest`` as old as the
batch.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.extend.core import jaxpr_as_fun

from jaxdecouple.network.jaxprs import depends, fast_in_loops
from jaxdecouple.network.trees import PyTree


class Residual(struct.PyTreeNode):
    """What is stored of one forward pass.

    Attributes:
      values: the activations that the backward needs, made by the forward and held by nobody else; empty for
        ``remat`` and ``replay``.
      inputs: what the backward needs of the forward's own inputs, by reference; for ``replay``, the stage's input, and
        for ``remat``, that and the model state.
      params: the weights of the forward, by reference, for ``stash`` and ``remat``; else ``None``.
      signature: shapes and dtypes of the stage's input, which tell linearizations apart.
    """

    values: tuple[jax.Array, ...] = ()
    inputs: PyTree = ()
    params: PyTree | None = None
    signature: Any = struct.field(pytree_node=False, default=None)


class Origin(enum.Enum):
    """Where a value that a backward needs comes from: decides whether it is stored, and who holds it."""

    WEIGHTS = enum.auto()  # from weights alone: not stored
    INPUT = enum.auto()  # an input of the forward, as it is
    COMPUTED = enum.auto()


@dataclasses.dataclass(frozen=True)
class Linearization:
    """A function that leaves what its backward needs, and how to store and read that, for inputs of one shape.

    The function is traced once; forward and backward passes evaluate what was recorded.

    Attributes:
      run: ``(params, x, *rest) -> y, aux, values``, values being the leaves of the ``jax.vjp`` result without weights.
      structure: of the ``jax.vjp`` result, without weights.
      outputs: shapes and dtypes of ``y``.
      origins: for each of the values, where it comes from.
    """

    run: Callable[..., tuple[PyTree, PyTree, list[jax.Array]]]
    structure: Any
    outputs: PyTree
    origins: tuple[Origin, ...]

    def those(self, wanted: Origin, values: list[jax.Array]) -> tuple[jax.Array, ...]:
        """The values that come from there."""
        return tuple(value for value, origin in zip(values, self.origins, strict=True) if origin is wanted)


Function = Callable[..., tuple[PyTree, PyTree]]


def linearization_of(function: Function, params: PyTree, x: PyTree, *rest: PyTree) -> Linearization:
    """Traces ``function(params, x, *rest) -> (y, aux)`` with its linearization, for inputs of these shapes."""
    structures: list[Any] = []

    def linearize(params: PyTree, x: PyTree, *rest: PyTree) -> tuple[PyTree, PyTree, list[jax.Array]]:
        y, vjp, aux = jax.vjp(lambda params, x: function(params, x, *rest), params, x, has_aux=True)
        # JAX 0.10 to 0.12: `args_res` holds, per argument, what the backward reads of it verbatim. From 0.11 on
        # jax.vjp(..., saveable_args=) documents the same; assigning works in all of them.
        vjp.args_res = [None, vjp.args_res[1]]
        values, structure = jax.tree.flatten(vjp)
        structures.append(structure)
        return y, aux, values

    closed, shapes = jax.make_jaxpr(linearize, return_shape=True)(params, x, *rest)
    jaxpr, outputs = closed.jaxpr, jax.tree.structure(shapes)
    inputs = set(jaxpr.invars[len(jax.tree.leaves(params)) :])

    def origin(variable: Any, depends_on_input: bool) -> Origin:
        if not depends_on_input:
            return Origin.WEIGHTS
        return Origin.INPUT if variable in inputs else Origin.COMPUTED

    def run(*args: PyTree) -> tuple[PyTree, PyTree, list[jax.Array]]:
        return jax.tree.unflatten(outputs, jaxpr_as_fun(closed)(*jax.tree.leaves(args)))

    origins = list(map(origin, jaxpr.outvars, depends(jaxpr, [variable in inputs for variable in jaxpr.invars])))
    return Linearization(run, structures[0], shapes[0], tuple(origins[len(origins) - len(shapes[2]) :]))


def forward(
    linearization: Linearization, params: PyTree, x: PyTree, *rest: PyTree
) -> tuple[PyTree, PyTree, tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """``y`` and ``aux`` of the function, and the residual's ``values`` and ``inputs``."""
    y, aux, values = linearization.run(params, x, *rest)
    return y, aux, linearization.those(Origin.COMPUTED, values), linearization.those(Origin.INPUT, values)


def pull_back(
    linearization: Linearization, residual: Residual, gradient: PyTree, params: PyTree, x: PyTree, *rest: PyTree
) -> tuple[PyTree, PyTree]:
    """Gradients with respect to the weights and to the input, the backward reading the weights ``params``.

    Of ``x`` and ``rest`` only shapes matter: of the forward that is evaluated here, the compiler keeps what depends on
    weights alone.
    """
    again = linearization.run(params, x, *rest)[2]
    stored = {Origin.INPUT: iter(residual.inputs), Origin.COMPUTED: iter(residual.values), Origin.WEIGHTS: iter(())}
    values = [next(stored[origin], now) for origin, now in zip(linearization.origins, again, strict=True)]
    return _gradients(linearization, values, params, gradient)


def forward_backward(
    linearization: Linearization, gradient: PyTree | None, params: PyTree, x: PyTree, *rest: PyTree
) -> tuple[PyTree, PyTree, PyTree, PyTree]:
    """``y`` and ``aux`` of the function, and the gradients with respect to the weights and to the input.

    Without ``gradient``, those of ``y`` itself, a scalar.
    """
    y, aux, backward = forward_with_backward(linearization, params, x, *rest)
    return y, aux, *backward(jnp.ones_like(y) if gradient is None else gradient)


def forward_with_backward(
    linearization: Linearization, params: PyTree, x: PyTree, *rest: PyTree
) -> tuple[PyTree, PyTree, Callable[[PyTree], tuple[PyTree, PyTree]]]:
    """``y`` and ``aux`` of the function, and what makes of the gradient of ``y`` those of the weights and the input.

    Both are to be computed in one compiled function.

    On the CPU, XLA would fuse pieces of the forward into the backward that reads them, and so compute them many times:
    ResNet-20 takes 1.3 times as long. There, a barrier keeps the two as far apart as two functions.
    """
    y, aux, values = linearization.run(params, x, *rest)
    computed = linearization.those(Origin.COMPUTED, values)
    stored = iter(
        jax.lax.platform_dependent(*computed, cpu=_barrier, default=lambda *values: values) if computed else ()
    )
    values = [
        next(stored) if origin is Origin.COMPUTED else value
        for value, origin in zip(values, linearization.origins, strict=True)
    ]
    return y, aux, lambda gradient: _gradients(linearization, values, params, gradient)


def _gradients(
    linearization: Linearization, values: list[jax.Array], params: PyTree, gradient: PyTree
) -> tuple[PyTree, PyTree]:
    """Of the ``jax.vjp`` result that was taken apart, put together with these weights."""
    vjp = jax.tree.unflatten(linearization.structure, values)
    vjp.args_res = [params, vjp.args_res[1]]

    def gradients(vjp: Callable, gradient: PyTree) -> tuple[PyTree, PyTree]:
        grads, input_gradient = vjp(complete(gradient, linearization.outputs))
        return grads, travelling(input_gradient)

    return fast_in_loops(gradients, vjp, gradient)


def _barrier(*values: jax.Array) -> tuple[jax.Array, ...]:
    return jax.lax.optimization_barrier(values)


def travelling(gradient: PyTree) -> PyTree:
    """The gradient as it is sent: integer activations (masks, token ids) have none."""
    return jax.tree.map(lambda leaf: None if leaf.dtype == jax.dtypes.float0 else leaf, gradient)


def complete(gradient: PyTree, outputs: PyTree) -> PyTree:
    """The cotangent that ``jax.vjp`` expects, from a gradient as it was sent."""
    received = iter(jax.tree.leaves(gradient))
    return jax.tree.map(
        lambda leaf: (
            next(received) if jnp.issubdtype(leaf.dtype, jnp.inexact) else np.zeros(leaf.shape, jax.dtypes.float0)
        ),
        outputs,
    )
