"""A linearization splits a function into a forward, and a backward that runs later, with the weights that one chooses.

The result of ``jax.vjp`` keeps what its backward needs. Of these values,

* the weights are taken out after the forward; the chosen ones are put back before the backward;
* what the forward computed from weights alone (a cast to half precision, a normalised kernel) is not stored either, but
  computed again from the chosen weights;
* inputs of the forward are held by reference;
* only what was computed from an input is stored.

What is computed from weights and activations together, such as a batch normalisation's scale over deviation, counts as
computed: with today's weights it is still as old as the batch.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.network.jax_internals import (
    attach_weights,
    depends,
    detach_weights,
    fast_in_loops,
    has_convolution,
    jaxpr_as_fun,
    quiet,
)
from jaxdecouple.network.trees import PyTree

Function = Callable[..., tuple[PyTree, PyTree]]


class Origin(enum.Enum):
    """Where a value that a backward needs comes from: decides whether it is stored, and who holds it."""

    WEIGHTS = enum.auto()  # from weights alone: not stored
    INPUT = enum.auto()  # an array of the input, as it is: held by reference
    COMPUTED = enum.auto()  # stored


@dataclasses.dataclass(frozen=True)
class Linearization:
    """A function ``(params, x, *rest) -> (y, aux)`` with its backward, for inputs of one shape.

    The function is traced once; forward and backward passes evaluate what was recorded.

    Attributes:
      run: ``(params, x, *rest) -> y, aux, values``, values being the leaves of the ``jax.vjp`` result without weights.
      rerun: the same for a forward that is redone: callbacks, which have seen the first, are not called again.
      from_weights: ``(params, x, *rest) ->`` the values that come from weights alone, likewise.
      structure: of the ``jax.vjp`` result, without weights.
      outputs: shapes and dtypes of ``y``.
      origins: for each of the values, where it comes from.
      needed: which leaves of ``x`` the backward needs, by position, in the order of the values that they are.
      convolves: whether there are convolutions in it.
    """

    run: Callable[..., tuple[PyTree, PyTree, list[jax.Array]]]
    rerun: Callable[..., tuple[PyTree, PyTree, list[jax.Array]]]
    from_weights: Callable[..., list[jax.Array]]
    structure: Any
    outputs: PyTree
    origins: tuple[Origin, ...]
    needed: tuple[int, ...]
    convolves: bool

    def inputs_of(self, x: PyTree) -> tuple[jax.Array, ...]:
        """What the backward needs of ``x``."""
        leaves = jax.tree.leaves(x) if self.needed else ()
        return tuple(leaves[position] for position in self.needed)

    def forward(self, params: PyTree, x: PyTree, *rest: PyTree) -> tuple[PyTree, PyTree, list[jax.Array]]:
        """``y``, ``aux``, and the values to store until the backward."""
        y, aux, values = self.run(params, x, *rest)
        return y, aux, self._computed(values)

    def backward(
        self, stored: Sequence[jax.Array], inputs: Sequence[jax.Array], gradient: PyTree, params: PyTree, *rest: PyTree
    ) -> Gradients:
        """The gradients of a forward of long ago, read with the weights ``params``.

        Args:
          stored: values of that forward.
          inputs: `inputs_of` it.
          gradient: with respect to ``y``, as it was sent.
          params: the chosen weights.
          *rest: the function's other arguments, of which only shapes matter.
        """
        again = self.from_weights(params, *rest)
        found = {Origin.INPUT: iter(inputs), Origin.COMPUTED: iter(stored), Origin.WEIGHTS: iter(again)}
        values = [next(found[origin]) for origin in self.origins]
        return self._gradients(values, params, gradient)

    def forward_then_backward(
        self, params: PyTree, x: PyTree, *rest: PyTree, again: bool = False
    ) -> tuple[PyTree, PyTree, Callable[[PyTree], Gradients]]:
        """``y``, ``aux``, and what makes the gradients of that of ``y``; all in one compiled function.

        On the CPU, XLA fuses pieces of the forward into the backward that reads them. Around convolutions it so
        computes them many times: ResNet-20 takes 1.3 times as long. There, a barrier keeps the two as far apart as two
        functions. Without convolutions, fusing is worth it: a GPT takes 0.92 times as long as with a barrier.

        Args:
          params, x, *rest: of the function.
          again: whether this forward was computed before, and reported whatever it reports.
        """
        y, aux, values = (self.rerun if again else self.run)(params, x, *rest)
        computed = self._computed(values)
        if computed and self.convolves:
            apart = iter(jax.lax.platform_dependent(*computed, cpu=_barrier, default=lambda *values: values))
            values = [
                next(apart) if origin is Origin.COMPUTED else value
                for value, origin in zip(values, self.origins, strict=True)
            ]
        return y, aux, lambda gradient: self._gradients(values, params, gradient)

    def gradients_of_loss(self, params: PyTree, x: PyTree, *rest: PyTree) -> tuple[jax.Array, PyTree, Gradients]:
        """A loss ``y``, a scalar, ``aux``, and the loss's gradients."""
        loss, aux, backward = self.forward_then_backward(params, x, *rest)
        return loss, aux, backward(jnp.ones_like(loss))

    def _computed(self, values: list[jax.Array]) -> list[jax.Array]:
        return [value for value, origin in zip(values, self.origins, strict=True) if origin is Origin.COMPUTED]

    def _gradients(self, values: list[jax.Array], params: PyTree, gradient: PyTree) -> Gradients:
        def gradients(vjp: Callable, gradient: PyTree) -> Gradients:
            grads, input_gradient = vjp(received(gradient, self.outputs))
            return Gradients(as_gradients(grads, params), as_sent(input_gradient))

        vjp = attach_weights(jax.tree.unflatten(self.structure, values), params)
        return fast_in_loops(gradients, vjp, gradient)


class Gradients(NamedTuple):
    """Of a loss, with respect to the weights, and to the input as it is sent to the stage below."""

    params: PyTree
    x: PyTree


def linearize(function: Function, params: PyTree, x: PyTree, *rest: PyTree) -> Linearization:
    """Traces ``function(params, x, *rest) -> (y, aux)`` with its backward, for inputs of these shapes."""
    structures: list[Any] = []

    def traced(params: PyTree, x: PyTree, *rest: PyTree) -> tuple[PyTree, PyTree, list[jax.Array]]:
        y, vjp, aux = jax.vjp(lambda params, x: function(params, x, *rest), params, x, has_aux=True)
        values, structure = jax.tree.flatten(detach_weights(vjp))
        structures.append(structure)
        return y, aux, values

    closed, shapes = jax.make_jaxpr(traced, return_shape=True)(params, x, *rest)
    jaxpr, outputs = closed.jaxpr, jax.tree.structure(shapes)
    num_params, num_inputs = len(jax.tree.leaves(params)), len(jax.tree.leaves(x))
    not_weights = [position >= num_params for position in range(len(jaxpr.invars))]
    of_x = jaxpr.invars[num_params : num_params + num_inputs]
    inputs: dict[Any, int] = {variable: i for i, variable in enumerate(of_x)}
    values = jaxpr.outvars[len(jaxpr.outvars) - len(shapes[2]) :]

    def origin(variable: Any, depends_on_input: bool) -> Origin:
        if not depends_on_input:
            return Origin.WEIGHTS
        return Origin.INPUT if variable in inputs else Origin.COMPUTED

    def evaluate(closed: Any, *args: PyTree) -> list[jax.Array]:
        return jaxpr_as_fun(closed)(*jax.tree.leaves(args))

    def running(closed: Any) -> Callable[..., tuple[PyTree, PyTree, list[jax.Array]]]:
        return lambda *args: jax.tree.unflatten(outputs, evaluate(closed, *args))

    dependent = depends(jaxpr, not_weights)[len(jaxpr.outvars) - len(values) :]
    origins = tuple(map(origin, values, dependent))
    needed = tuple(inputs[v] for v, origin in zip(values, origins, strict=True) if origin is Origin.INPUT)
    rerun = running(quiet(closed, [True] * len(jaxpr.outvars)))
    of_weights = [False] * (len(jaxpr.outvars) - len(values)) + [origin is Origin.WEIGHTS for origin in origins]
    from_weights = functools.partial(evaluate, quiet(closed, of_weights))
    convolves = has_convolution(closed, in_loop=True)
    return Linearization(running(closed), rerun, from_weights, structures[0], shapes[0], origins, needed, convolves)


def as_sent(gradient: PyTree) -> PyTree:
    """The gradient as it is sent: integer activations (masks, token ids) have none."""
    return jax.tree.map(lambda leaf: None if leaf.dtype == jax.dtypes.float0 else leaf, gradient)


def as_gradients(gradient: PyTree, params: PyTree) -> PyTree:
    """The gradient of parameters, of which integers and the like have none: 0, in their own dtypes."""
    return jax.tree.map(
        lambda leaf, param: jnp.zeros_like(param) if leaf.dtype == jax.dtypes.float0 else leaf, gradient, params
    )


def received(gradient: PyTree, outputs: PyTree) -> PyTree:
    """The cotangent that ``jax.vjp`` expects, from a gradient as it was sent."""
    sent = iter(jax.tree.leaves(gradient))
    return jax.tree.map(
        lambda leaf: next(sent) if jnp.issubdtype(leaf.dtype, jnp.inexact) else np.zeros(leaf.shape, jax.dtypes.float0),
        outputs,
    )


def _barrier(*values: jax.Array) -> tuple[jax.Array, ...]:
    return jax.lax.optimization_barrier(values)
