"""A workspace is a state's containers, thawed for the length of a tick, in which operations take and put things."""

from __future__ import annotations

from typing import Any, Literal

from jaxdecouple.engine.placement import Nowhere, Placement
from jaxdecouple.engine.state import InFlight, State
from jaxdecouple.network.trees import PyTree
from jaxdecouple.schedules import Schedule

Operation = Literal[
    "forward",
    "train",
    "backward",
    "backward_forward",
    "forward_loss",
    "input_gradient",
    "weight_gradient",
    "learn",
    "teach",
]


class Workspace:
    """A state's containers, thawed for the length of a tick. Arrays are never copied.

    Attributes:
      observer: who is told of the tick's operations, if anybody.
      shares: of the stages, as they were before the tick.
      held: by stage, what an operation gave whose update waits for those of all stages, within the tick.
    """

    def __init__(self, state: State, observer: Observer | None = None):
        self.observer = observer
        self.held: dict[int, tuple[Operation, Any]] = {}
        self.stages = list(state.stages)
        self.shares = [stage.share for stage in state.stages]
        self.activations = [dict(flight.activations) for flight in state.in_flight]
        self.targets = [dict(flight.targets) for flight in state.in_flight]
        self.residuals = [dict(flight.residuals) for flight in state.in_flight]
        self.gradients = [dict(flight.gradients) for flight in state.in_flight]
        self.ties = [dict(flight.ties) for flight in state.in_flight]

    def freeze(self, tick: int, first: int) -> State:
        """The state; the workspace is not to be used any more."""
        queues = zip(self.activations, self.targets, self.residuals, self.gradients, self.ties, strict=True)
        return State(tuple(self.stages), tuple(InFlight(*queue) for queue in queues), tick, first)


def feed(
    work: Workspace, placement: Placement | Nowhere, schedule: Schedule, n: int, inputs: PyTree, targets: PyTree
) -> None:
    """Puts batch ``n`` where it is read: inputs at the first stage, targets wherever there is an objective."""
    work.activations[0][n] = placement.put(inputs, 0)
    for k in range(schedule.num_stages):
        if schedule.learns_in_forward(k):
            work.targets[k][n] = placement.put(targets, k)


class Observer:
    """Is told of the operations of a tick as they are dispatched. Every method does nothing, unless overridden."""

    def wants(self, n: int) -> bool:
        """Whether the gradients of batch ``n`` are to be observed. Its operations are then dispatched one by one."""
        return False

    def before(self, work: Workspace, operation: Operation, k: int, n: int) -> None:
        """Before an operation on stage ``k``, of batch ``n``, takes what it needs from the workspace."""

    def after(self, operation: Operation, k: int, n: int, grads: PyTree, updated: bool) -> None:
        """After it.

        Args:
          operation: its name, as of the methods of `Dispatcher`.
          k: the stage.
          n: the batch; that of the backward, if there are two.
          grads: the gradient that the optimizer was given, if it is wanted and there is one.
          updated: whether the stage has new weights.
        """
