"""What a stage's operations give, as shapes: nothing is computed.

Of stages that live in other processes, that is all that a process knows: it walks the same list of operations, and so
knows what will be sent to it, and when. And it says what the state of a run will look like, with all that is in flight:
a checkpoint is compared with that.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxdecouple.engine.local_program import SyntheticProgram
from jaxdecouple.engine.operations import Dispatcher
from jaxdecouple.engine.packing import Packed
from jaxdecouple.engine.placement import Nowhere
from jaxdecouple.engine.stage_program import ALONE, Outcome, Passed, StageProgram, UpdateContext
from jaxdecouple.engine.state import InFlight, Residual, StageState, State
from jaxdecouple.engine.ties import Tie
from jaxdecouple.engine.updates import Updates
from jaxdecouple.engine.workspace import Workspace, feed
from jaxdecouple.network.trees import PyTree, Signature, gradient_shapes, shape_of, signature_of
from jaxdecouple.schedules import Schedule, Weights


class RemoteProgram:
    """Has the operations of every kind of stage program, on shapes: ``jax.ShapeDtypeStruct`` in place of arrays.

    Attributes:
      program: that the stage has in the process that owns it.
    """

    def __init__(self, program: StageProgram):
        self.program = program
        self._outputs: dict[Signature, PyTree] = {}

    @property
    def updates(self) -> Updates:
        """Of the program."""
        return self.program.updates

    def init(self, key: jax.Array, x: PyTree, targets: PyTree = None) -> StageState:
        """As of `StageProgram.init`."""
        return jax.eval_shape(lambda key: self.program.init(key, x, targets), key)

    def output_shape(self, state: StageState, x: PyTree) -> PyTree:
        """As of `StageProgram.output_shape`; looked up from the second time on, as every tick asks."""
        signature = signature_of(x)
        if signature not in self._outputs:
            self._outputs[signature] = self.program.output_shape(state, x)
        return self._outputs[signature]

    def predict(self, state: StageState, x: PyTree) -> PyTree:
        """The output."""
        return self.output_shape(state, x)

    def forward(self, state: StageState, x: PyTree, batch: int, weights: Weights) -> Passed:
        """The output, and a residual that holds nothing but the input's shape."""
        return Passed(state, Outcome(y=self.output_shape(state, x)), Residual(signature=signature_of(x)))

    def train(
        self,
        state: StageState,
        x: PyTree,
        targets: PyTree,
        batch: int,
        sends: bool = True,
        context: UpdateContext = ALONE,
    ) -> Passed:
        """The gradient of the input; no loss."""
        return self._updated(state, context, signature_of(x))

    def backward(
        self,
        state: StageState,
        residual: Residual,
        gradient: PyTree,
        batch: int,
        weights: Weights,
        context: UpdateContext = ALONE,
    ) -> Passed:
        """The gradient of the input."""
        return self._updated(state, context, residual.signature)

    def backward_forward(
        self,
        state: StageState,
        residual: Residual,
        gradient: PyTree,
        batch: int,
        x: PyTree,
        next_batch: int,
        weights: Weights,
        context: UpdateContext = ALONE,
    ) -> Passed:
        """`backward`, then `forward`."""
        back = self.backward(state, residual, gradient, batch, weights, context)
        forth = self.forward(state, x, next_batch, weights)
        return forth._replace(outcome=dataclasses.replace(back.outcome, y=forth.outcome.y))

    def forward_loss(self, state: StageState, x: PyTree, targets: PyTree, batch: int, weights: Weights) -> Passed:
        """The gradient of the input, and a residual that holds nothing; no loss."""
        signature = signature_of(x)
        return Passed(state, Outcome(sent=gradient_shapes(signature)), Residual(signature=signature))

    def input_gradient(
        self, state: StageState, residual: Residual, gradient: PyTree, batch: int, weights: Weights
    ) -> Passed:
        """The gradient of the input, and the residual."""
        return Passed(state, Outcome(sent=gradient_shapes(residual.signature)), residual)

    def weight_gradient(
        self, state: StageState, residual: Residual, batch: int, weights: Weights, context: UpdateContext = ALONE
    ) -> Passed:
        """Nothing but the state."""
        return self._updated(state, context)

    def update(self, state: StageState, held: PyTree, batch: int, weights: Weights, others: tuple) -> Passed:
        """Nothing but the state."""
        return Passed(state, Outcome())

    def learn(
        self,
        state: StageState,
        x: PyTree,
        targets: PyTree,
        batch: int,
        weights: Weights,
        context: UpdateContext = ALONE,
    ) -> Passed:
        """The output, and what a stage that learns locally may send down or keep until it is taught."""
        forth = self.forward(state, x, batch, weights)
        residual = forth.residual if isinstance(self.program, SyntheticProgram) else None
        return Passed(state, Outcome(y=forth.outcome.y, sent=gradient_shapes(signature_of(x))), residual)

    def teach(self, state: StageState, residual: Residual, gradient: PyTree, batch: int, weights: Weights) -> Passed:
        """Nothing but the state."""
        return Passed(state, Outcome())

    def at_batch_statistics(self, state: StageState, x: PyTree) -> StageState:
        """The state, whose shapes are the same."""
        return state

    def measure_norms(
        self, state: StageState, x: PyTree, given: PyTree, chunk_size: int
    ) -> tuple[PyTree, Packed | None]:
        """The gradient of each example's loss with respect to the input; the norms are measured elsewhere."""
        return gradient_shapes(signature_of(x)), state.packed_gradient_norms

    def _updated(self, state: StageState, context: UpdateContext, x: Signature | None = None) -> Passed:
        """After an update: the gradient of an input ``x``, if the operation computes that, and what else is sent."""
        sent, ties = (None, None) if x is None else (gradient_shapes(x), self.updates.ties.sent(state.params))
        held = state.packed_params if context.hold else None
        return Passed(state, Outcome(sent=sent, ties=ties, held=held))


class ShapesProgram(RemoteProgram):
    """The same, with the residuals that operations leave, which have to be traced for it."""

    def forward(self, state: StageState, x: PyTree, batch: int, weights: Weights) -> Passed:
        """The output, and the residual."""
        return self._traced("forward", batch, weights, state, x)

    def forward_loss(self, state: StageState, x: PyTree, targets: PyTree, batch: int, weights: Weights) -> Passed:
        """The gradient of the input, and the residual."""
        return self._traced("forward_loss", batch, weights, state, x, targets)

    def input_gradient(
        self, state: StageState, residual: Residual, gradient: PyTree, batch: int, weights: Weights
    ) -> Passed:
        """The gradient of the input, and the residual."""
        return self._traced("input_gradient", batch, weights, state, residual, gradient)

    def learn(
        self,
        state: StageState,
        x: PyTree,
        targets: PyTree,
        batch: int,
        weights: Weights,
        context: UpdateContext = ALONE,
    ) -> Passed:
        """The output, and what a stage that learns locally may send down or keep until it is taught."""
        return self._traced("learn", batch, weights, state, x, targets)

    def _traced(self, operation: str, batch: int, weights: Weights, state: StageState, *given: Any) -> Passed:
        method: Callable[..., Passed] = getattr(self.program, operation)
        run = functools.partial(method, batch=batch, weights=weights)
        return jax.eval_shape(run, state, *given)._replace(state=state)


def stage_shapes(programs: Sequence[StageProgram], x: PyTree, targets: PyTree) -> tuple[list[StageState], PyTree]:
    """What each stage owns at the beginning, and the network's output, for shapes of inputs and targets."""
    key, stages = jax.eval_shape(lambda: jax.random.key(0)), []
    for program in map(RemoteProgram, programs):
        stages.append(program.init(key, x, targets))
        x = program.output_shape(stages[-1], x)
    return stages, x


def shapes_in_flight(
    programs: Sequence[StageProgram],
    schedule: Schedule,
    stages: tuple[StageState, ...],
    batches: Mapping[int, tuple[PyTree, PyTree]],
    oldest: int,
    ties: Sequence[Tie] = (),
) -> tuple[InFlight, ...]:
    """What each stage has in flight, as ``jax.ShapeDtypeStruct``.

    Args:
      programs: of each stage.
      schedule: of the run.
      stages: shapes of what each stage owns.
      batches: shapes of inputs and targets of the batches fed so far, from batch ``oldest`` on.
      oldest: the first batch that can still be in flight.
      ties: parameters that stages share.
    """
    dispatcher = Dispatcher(list(map(ShapesProgram, programs)), Nowhere(), schedule, ties)
    work = Workspace(State(stages, tuple(InFlight() for _ in stages)))
    for tick, batch in batches.items():
        feed(work, dispatcher.placement, schedule, tick, *shape_of(batch))
        dispatcher.tick(work, tick, oldest, tick + 1)
    return work.freeze(oldest, oldest).in_flight
