"""A dispatcher carries out single operations: it takes what they need from a workspace and puts back what they give.

Each call is one asynchronous dispatch on the stage's device, and the sending of its results to the neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jaxdecouple.engine.placement import Placement
from jaxdecouple.engine.stage_program import Program
from jaxdecouple.engine.state import Metrics, Workspace
from jaxdecouple.network.trees import PyTree


class Dispatcher:
    """Operations on stage ``k``, of batch ``n``.

    Attributes:
      programs: of each stage.
      placement: where the stages are.
    """

    def __init__(self, programs: Sequence[Program], placement: Placement):
        self.programs = programs
        self.placement = placement

    def forward(self, work: Workspace, k: int, n: int) -> None:
        """The forward of a stage below the loss."""
        x = work.activations[k].pop(n)
        y, work.stages[k], work.residuals[k][n] = self.programs[k].forward(work.stages[k], x, n)
        self.send_up(work, y, k, n)

    def train(self, work: Workspace, k: int, n: int) -> Metrics:
        """Forward, loss, backward and update of the last stage."""
        x, targets = work.activations[k].pop(n), work.targets[k].pop(n)
        gradient, work.stages[k], loss, accuracy = self.programs[k].train(work.stages[k], x, targets, n)
        self.send_down(work, gradient, k, n)
        return Metrics(n, loss, accuracy)

    def backward(self, work: Workspace, k: int, n: int) -> None:
        """The backward of a stage below the loss, with its update."""
        residual, gradient = work.residuals[k].pop(n), work.gradients[k].pop(n)
        gradient, work.stages[k] = self.programs[k].backward(work.stages[k], residual, gradient, n)
        self.send_down(work, gradient, k, n)

    def backward_forward(self, work: Workspace, k: int, n: int, next_n: int) -> None:
        """The backward of a batch and the forward of another, in one dispatch."""
        residual, gradient, x = work.residuals[k].pop(n), work.gradients[k].pop(n), work.activations[k].pop(next_n)
        gradient, y, work.stages[k], work.residuals[k][next_n] = self.programs[k].backward_forward(
            work.stages[k], residual, gradient, n, x, next_n
        )
        self.send_down(work, gradient, k, n)
        self.send_up(work, y, k, next_n)

    def learn(self, work: Workspace, k: int, n: int) -> jax.Array | None:
        """The forward of a stage that learns locally, with its update; the loss of its auxiliary network, if any."""
        return self._learn(work, k, n, observe=False)[0]

    def teach(self, work: Workspace, k: int, n: int) -> jax.Array:
        """Teaches a stage's auxiliary network the gradient from above; its error."""
        residual, gradient = work.residuals[k].pop(n), work.gradients[k].pop(n)
        work.stages[k], error = self.programs[k].teach(work.stages[k], residual, gradient, n)
        return error

    def send_up(self, work: Workspace, y: PyTree, k: int, n: int) -> None:
        """Hands an output to the stage above."""
        work.activations[k + 1][n] = self.placement.send(y, k, k + 1)

    def send_down(self, work: Workspace, gradient: PyTree | None, k: int, n: int) -> None:
        """Hands the gradient of an input to the stage below, if there is one that takes it."""
        if gradient is not None:
            work.gradients[k - 1][n] = self.placement.send(gradient, k, k - 1)

    def _learn(self, work: Workspace, k: int, n: int, observe: bool) -> tuple[jax.Array | None, PyTree | None]:
        x, targets = work.activations[k].pop(n), work.targets[k].pop(n)
        y, work.stages[k], learned = self.programs[k].learn(work.stages[k], x, targets, n, observe)
        self.send_up(work, y, k, n)
        self.send_down(work, learned.sent, k, n)
        if learned.residual is not None:
            work.residuals[k][n] = learned.residual
        return learned.loss, learned.grads
