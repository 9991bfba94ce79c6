"""The program of a stage that another process owns: it computes nothing, and says what shapes the stage would give.

So every process walks the same list of operations, and knows what will be sent to it, and when.
"""

from __future__ import annotations

import jax

from jaxdecouple.engine.local_program import SyntheticProgram
from jaxdecouple.engine.packing import Packed
from jaxdecouple.engine.stage_program import ALONE, Outcome, Passed, StageProgram, UpdateContext
from jaxdecouple.engine.state import Residual, StageState
from jaxdecouple.engine.updates import Updates
from jaxdecouple.network.trees import PyTree, Signature, gradient_shapes, signature_of
from jaxdecouple.schedules import Weights


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
        """As of `StageProgram.output_shape`; traced once for every shape of ``x``."""
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
        return Passed(state, _updated(state, context, signature_of(x)))

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
        return Passed(state, _updated(state, context, residual.signature))

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
        forth = self.forward(state, x, next_batch, weights)
        outcome = Outcome(y=forth.outcome.y, sent=gradient_shapes(residual.signature))
        return forth._replace(outcome=outcome)

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
        return Passed(state, _updated(state, context))

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


def _updated(state: StageState, context: UpdateContext, x: Signature | None = None) -> Outcome:
    """Of an update: the gradient of an input ``x``, and that of the weights where it is handed back."""
    sent = None if x is None else gradient_shapes(x)
    return Outcome(sent=sent, held=state.packed_params if context.hold else None)
