"""What a state will look like, from shapes alone: the same operations as a run's, without their arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdecouple.engine.operations import Dispatcher
from jaxdecouple.engine.state import Metrics, Workspace
from jaxdecouple.network.trees import PyTree


class ShapesDispatcher(Dispatcher):
    """Operations within ``jax.eval_shape``. Backward passes, which take long to trace, are not traced.

    A gradient has the shape and dtype of what it belongs to, so that a stage's input says what it sends down.
    """

    def train(self, work: Workspace, k: int, n: int) -> Metrics:
        x, _ = work.activations[k].pop(n), work.targets[k].pop(n)
        if self.programs[k].sends:
            self.send_down(work, _gradient_like(x), k, n)
        return Metrics()

    def backward(self, work: Workspace, k: int, n: int) -> None:
        residual, _ = work.residuals[k].pop(n), work.gradients[k].pop(n)
        if self.programs[k].sends:
            structure, leaves = residual.signature
            x = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
            self.send_down(work, _gradient_like(x), k, n)

    def backward_forward(self, work: Workspace, k: int, n: int, next_n: int) -> None:
        self.backward(work, k, n)
        self.forward(work, k, next_n)

    def teach(self, work: Workspace, k: int, n: int) -> jax.Array:
        work.residuals[k].pop(n), work.gradients[k].pop(n)
        return jnp.zeros(())


def _gradient_like(x: PyTree) -> PyTree:
    """Integer activations have none."""
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.inexact) else None, x
    )
