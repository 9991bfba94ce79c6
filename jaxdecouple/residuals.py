"""A residual is what the forward pass of a batch leaves behind for its backward pass.

Which weights the backward uses decides what that is:

* ``stash``   the activations, and a reference to the weights of the forward;
* ``latest``  the activations alone; the backward is given today's weights;
* ``replay``  the stage's input alone; the forward is redone.

The result of ``jax.vjp`` keeps the arguments it needs verbatim, the weights, apart from what the function computed. So
the weights can be taken out after the forward and the chosen ones put back before the backward: ``stash`` then costs
no copy and ``latest`` no memory. One remark on ``latest``: what a forward computes from weights, such as the product of
a normalisation's scale and inverse deviation, is an activation here, and stays as old as the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxdecouple.stage import PyTree


class Residual(struct.PyTreeNode):
    """What is stored of one forward pass.

    Attributes:
      values: the activations that the backward needs; empty for ``replay``.
      params: the weights of the forward, by reference, for ``stash``; else ``None``.
      inputs: the stage's input for ``replay``; else ``None``.
      signature: shapes and dtypes of the stage's input, which tell linearizations apart.
    """

    values: tuple[jax.Array, ...] = ()
    params: PyTree | None = None
    inputs: PyTree | None = None
    signature: Any = struct.field(pytree_node=False, default=None)


@dataclasses.dataclass(frozen=True)
class Linearization:
    """How to read the values of a residual: the same for all batches of one shape.

    Attributes:
      structure: of the ``jax.vjp`` result whose leaves they are, without weights.
      outputs: shapes and dtypes of the function's output.
    """

    structure: Any
    outputs: PyTree


def linearize(
    function: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], params: PyTree, x: PyTree
) -> tuple[PyTree, PyTree, tuple[jax.Array, ...], Linearization]:
    """``function(params, x) -> (y, aux)`` and what its backward needs besides weights.

    Returns:
      ``y``, ``aux``, the residual's values, and how to read them.
    """
    y, vjp, aux = jax.vjp(function, params, x, has_aux=True)
    # JAX 0.10 to 0.12: `args_res` holds, per argument, what the backward reads of it verbatim. From 0.11 on
    # jax.vjp(..., saveable_args=) documents the same; assigning works in all of them.
    vjp.args_res = [None, vjp.args_res[1]]
    values, structure = jax.tree.flatten(vjp)
    outputs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), y)
    return y, aux, tuple(values), Linearization(structure, outputs)


def pull_back(
    linearization: Linearization, params: PyTree, values: tuple[jax.Array, ...], gradient: PyTree
) -> tuple[PyTree, PyTree]:
    """Gradients with respect to the weights and to the input, the backward reading the weights ``params``."""
    vjp = jax.tree.unflatten(linearization.structure, values)
    vjp.args_res = [params, vjp.args_res[1]]
    grads, input_gradient = vjp(_complete(gradient, linearization.outputs))
    return grads, travelling(input_gradient)


def replay(
    function: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], params: PyTree, x: PyTree, gradient: PyTree
) -> tuple[PyTree, PyTree]:
    """Like `pull_back`, with the forward redone."""
    y, vjp, _ = jax.vjp(function, params, x, has_aux=True)
    grads, input_gradient = vjp(_complete(gradient, y))
    return grads, travelling(input_gradient)


def travelling(gradient: PyTree) -> PyTree:
    """The gradient as it is sent: integer activations (masks, token ids) have none."""
    return jax.tree.map(lambda leaf: None if leaf.dtype == jax.dtypes.float0 else leaf, gradient)


def _complete(gradient: PyTree, outputs: PyTree) -> PyTree:
    """The cotangent that ``jax.vjp`` expects, from a gradient as it was sent."""
    received = iter(jax.tree.leaves(gradient))
    return jax.tree.map(
        lambda leaf: next(received)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
        else np.zeros(leaf.shape, jax.dtypes.float0),
        outputs,
    )
