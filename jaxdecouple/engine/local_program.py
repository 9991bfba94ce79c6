"""Programs of stages that learn locally: each from an objective of its own, with the help of an auxiliary network.

Forward, objective, backward and update are one dispatch, as at the last stage of every other schedule. What goes up is
the activation from before the update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdecouple.engine.linearization import Residual, forward_backward, forward_with_backward, linearization_of
from jaxdecouple.engine.stage_program import Loss, Program, compiled
from jaxdecouple.engine.state import AuxiliaryState, StageState
from jaxdecouple.engine.updates import Updates
from jaxdecouple.network.layer import Layer, blaming, output_shapes
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, describe, shape_of, signature_of
from jaxdecouple.schedules import Weights, keeps_versions

# Auxiliary networks draw from the same key as layers, as if they came after any number of them.
_BEYOND_LAYERS = 1 << 20


class Learned(NamedTuple):
    """What a stage that learns locally gives besides its output.

    Attributes:
      loss: of the auxiliary network, if it learned.
      sent: the gradient of the stage's input, if the stage below is to have it.
      residual: what the auxiliary network will learn from later, if it does.
      grads: the gradient that the optimizer was given, if it was to be observed.
    """

    loss: jax.Array | None = None
    sent: PyTree | None = None
    residual: Residual | None = None
    grads: PyTree | None = None


class LocalProgram(Program):
    """A stage with an auxiliary network, which is initialised and has random streams like a layer of the network.

    Attributes:
      auxiliary: the network.
      auxiliary_updates: its optimizer.
    """

    def __init__(
        self,
        stage: Stage,
        optimizer: optax.GradientTransformation,
        auxiliary: Layer,
        auxiliary_optimizer: optax.GradientTransformation,
    ):
        super().__init__(stage, optimizer)
        self.auxiliary = auxiliary
        self.auxiliary_updates = Updates(auxiliary_optimizer)
        self._after = stage.first + stage.num_layers - 1  # the last layer below it
        self._index = _BEYOND_LAYERS + self._after

    def init(self, key: jax.Array, x: PyTree, targets: PyTree) -> StageState:
        """The initial state of the stage and its auxiliary network, for inputs and targets shaped like these.

        Raises:
          ValueError: the network cannot take what the stage puts out.
        """
        state = super().init(key, x, targets)
        y = self.output_shape(state, x)
        given = self._auxiliary_input(y, targets)
        with blaming(self.auxiliary.name, self._after, given, "the auxiliary network after layer"):
            params, model_state, self._out = self.auxiliary.init_at(self._index, key, given, output_shapes)
        self._y = shape_of(y)
        auxiliary = AuxiliaryState(params, model_state, self.auxiliary_updates.init(params))
        return state.replace(auxiliary=auxiliary)

    def _compile(self, adding: tuple[str, ...], updating: tuple[str, ...], donate: bool) -> None:
        """Compiles learning, with what may be donated where a batch ends no group and where it ends one."""
        self._learn_accumulate = compiled(self._learn, adding, donate, due=False)
        self._learn_update = compiled(self._learn, updating, donate, due=True)
        self._observed_accumulate = compiled(self._learn, adding, donate, due=False, observe=True)
        self._observed_update = compiled(self._learn, updating, donate, due=True, observe=True)

    def _function(self, batch: int, observe: bool) -> Callable:
        if self.updates.due(batch):
            return self._observed_update if observe else self._learn_update
        return self._observed_accumulate if observe else self._learn_accumulate

    def _assist(
        self, params: PyTree, model_state: PyTree, given: PyTree, key: jax.Array, batch: Any
    ) -> tuple[PyTree, PyTree]:
        return self.auxiliary.apply_at(self._index, params, model_state, given, key=key, batch=batch, train=True)

    def _auxiliary_input(self, y: PyTree, targets: PyTree) -> PyTree:
        """What the auxiliary network is called with."""
        raise NotImplementedError

    def check_auxiliary(self, logits: PyTree) -> None:
        """Refuses an auxiliary network whose output, known since `init`, has the wrong shape.

        Args:
          logits: shapes of the whole network's output.

        Raises:
          ValueError: so it is.
        """
        raise NotImplementedError


class GreedyProgram(LocalProgram):
    """A stage that learns from the loss of a classifier on top of it (decoupled greedy learning)."""

    def __init__(
        self,
        stage: Stage,
        optimizer: optax.GradientTransformation,
        auxiliary: Layer,
        auxiliary_optimizer: optax.GradientTransformation,
        loss: Loss,
        donate: bool,
    ):
        super().__init__(stage, optimizer, auxiliary, auxiliary_optimizer)
        self.loss = loss
        if self.auxiliary_updates.every != self.updates.every:
            raise ValueError(
                f"stage at layer {stage.first}: its optimizer accumulates {self.updates.every} batches, that of its "
                f"auxiliary network {self.auxiliary_updates.every}; write the same accumulate for both"
            )
        self._compile(("opt_state", "auxiliary"), ("params", "opt_state", "auxiliary"), donate)

    def learn(
        self, state: StageState, x: PyTree, targets: PyTree, batch: int, observe: bool = False
    ) -> tuple[PyTree, StageState, Learned]:
        """Output, new state, and what else the stage has learned; there is nothing to send down."""
        y, loss, changed, grads = self._function(batch, observe)(
            state.params, state.opt_state, state.auxiliary, state.model_state, state.key, x, targets, batch
        )
        return y, state.replace(**changed), Learned(loss=loss, grads=grads)

    def _learn(
        self, params: PyTree, opt_state: Any, auxiliary: AuxiliaryState, *rest: Any, due: bool, observe: bool = False
    ) -> tuple[PyTree, jax.Array, dict[str, PyTree], PyTree | None]:
        (grads, their_grads), y, loss, model_state, their_state = self._gradients(params, auxiliary, *rest)
        changed = self.updates.changes(due, grads, opt_state, params)
        theirs = self.auxiliary_updates.changes(due, their_grads, auxiliary.opt_state, auxiliary.params)
        auxiliary = auxiliary.replace(**theirs, model_state=their_state)
        return y, loss, {**changed, "auxiliary": auxiliary, "model_state": model_state}, grads if observe else None

    def _gradients(
        self,
        params: PyTree,
        auxiliary: AuxiliaryState,
        model_state: PyTree,
        key: jax.Array,
        x: PyTree,
        targets: PyTree,
        batch: jax.Array,
    ) -> tuple[tuple[PyTree, PyTree], PyTree, jax.Array, PyTree, PyTree]:
        """Of both networks, with the stage's output, the loss, and both new model states."""

        def loss_of(params: tuple[PyTree, PyTree], x: PyTree, model_state: PyTree, their_state: PyTree) -> Any:
            y, model_state = self._apply(params[0], x, model_state, key, batch)
            logits, their_state = self._assist(params[1], their_state, y, key, batch)
            return self.loss(logits, targets), (y, model_state, their_state)

        arguments = ((params, auxiliary.params), x, model_state, auxiliary.model_state)
        linearization = linearization_of(loss_of, *arguments)
        loss, (y, *states), grads, _ = forward_backward(linearization, None, *arguments)
        return grads, y, loss, *states

    def check_auxiliary(self, logits: PyTree) -> None:
        """As of `LocalProgram`: both outputs are held against the same targets."""
        theirs, networks = ([leaf.shape[1:] for leaf in jax.tree.leaves(tree)] for tree in (self._out, logits))
        if theirs != networks:
            raise ValueError(
                f"the auxiliary network {self.auxiliary.name} after layer {self._after} puts out "
                f"{describe(self._out)}, but the network {describe(logits)}, and both are held against the same "
                "targets; write one with as many outputs"
            )

    def _auxiliary_input(self, y: PyTree, targets: PyTree) -> PyTree:
        return y


class SyntheticProgram(LocalProgram):
    """A stage that learns from a predicted gradient of its output (decoupled neural interfaces).

    The predictor is given the output and the targets. Later, when the gradient from above has come, it is taught: its
    loss is the squared error, summed over an example's features, mean over the examples.
    """

    def __init__(
        self,
        stage: Stage,
        optimizer: optax.GradientTransformation,
        auxiliary: Layer,
        auxiliary_optimizer: optax.GradientTransformation,
        weights: Weights,
        donate: bool,
    ):
        super().__init__(stage, optimizer, auxiliary, auxiliary_optimizer)
        self.weights = weights
        self._compile(("opt_state",), ("params", "opt_state"), donate)
        updating = ("opt_state",) if keeps_versions(weights) else ("params", "opt_state")
        self._teach_accumulate = compiled(self._teach, ("opt_state",), donate, due=False)
        self._teach_update = compiled(self._teach, updating, donate, due=True)

    def learn(
        self, state: StageState, x: PyTree, targets: PyTree, batch: int, observe: bool = False
    ) -> tuple[PyTree, StageState, Learned]:
        """Output, new state, what to send down, and what `teach` will need."""
        auxiliary = state.auxiliary
        y, sent, their_state, changed, grads = self._function(batch, observe)(
            state.params,
            state.opt_state,
            auxiliary.replace(opt_state=()),
            state.model_state,
            state.key,
            x,
            targets,
            batch,
        )
        residual = Residual(
            inputs=(y, targets, auxiliary.model_state),
            params=auxiliary.params if keeps_versions(self.weights) else None,
            signature=signature_of(y),
        )
        state = state.replace(**changed, auxiliary=auxiliary.replace(model_state=their_state))
        return y, state, Learned(sent=sent, residual=residual, grads=grads)

    def teach(
        self, state: StageState, residual: Residual, gradient: PyTree, batch: int
    ) -> tuple[StageState, jax.Array]:
        """The state after the predictor has learned from ``gradient``, that of the output; and its error."""
        function = self._teach_update if self.auxiliary_updates.due(batch) else self._teach_accumulate
        auxiliary = state.auxiliary
        error, changed = function(auxiliary.params, auxiliary.opt_state, residual, gradient, state.key, batch)
        return state.replace(auxiliary=auxiliary.replace(**changed)), error

    def _learn(self, params: PyTree, opt_state: Any, *rest: Any, due: bool, observe: bool = False) -> tuple[Any, ...]:
        grads, model_state, *results = self._gradients(params, *rest)
        changed = {**self.updates.changes(due, grads, opt_state, params), "model_state": model_state}
        return *results, changed, grads if observe else None

    def _gradients(
        self,
        params: PyTree,
        auxiliary: AuxiliaryState,
        model_state: PyTree,
        key: jax.Array,
        x: PyTree,
        targets: PyTree,
        batch: jax.Array,
    ) -> tuple[PyTree, PyTree, PyTree, PyTree, PyTree]:
        """Of the stage, with its new model state, output, gradient to be sent, and the predictor's new model state."""
        arguments = (params, x, model_state, key, batch)
        y, model_state, backward = forward_with_backward(linearization_of(self._apply, *arguments), *arguments)
        given = self._auxiliary_input(y, targets)
        predicted, their_state = self._assist(auxiliary.params, auxiliary.model_state, given, key, batch)
        grads, sent = backward(predicted)
        return grads, model_state, y, sent if self.sends else None, their_state

    def _teach(self, params: PyTree, opt_state: Any, *rest: Any, due: bool) -> tuple[jax.Array, dict[str, PyTree]]:
        error, grads = self._error(params, *rest)
        return error, self.auxiliary_updates.changes(due, grads, opt_state, params)

    def _error(
        self, params: PyTree, residual: Residual, gradient: PyTree, key: jax.Array, batch: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        """The predictor's error, and its gradient. Each batch counts once in its model state: in the forward."""
        y, targets, model_state = residual.inputs

        def error_of(params: PyTree) -> jax.Array:
            predicted, _ = self._assist(params, model_state, self._auxiliary_input(y, targets), key, batch)
            pairs = zip(jax.tree.leaves(predicted), jax.tree.leaves(gradient), strict=True)
            return sum(jnp.square(guess - true).sum() / len(true) for guess, true in pairs)

        return jax.value_and_grad(error_of)(params if residual.params is None else residual.params)

    def _auxiliary_input(self, y: PyTree, targets: PyTree) -> PyTree:
        return y, targets

    def check_auxiliary(self, logits: PyTree) -> None:
        """As of `LocalProgram`: a gradient has the shape of what it belongs to."""
        wanted = [leaf for leaf in jax.tree.leaves(self._y) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        if [leaf.shape for leaf in jax.tree.leaves(self._out)] != [leaf.shape for leaf in wanted]:
            raise ValueError(
                f"the auxiliary network {self.auxiliary.name} after layer {self._after} puts out "
                f"{describe(self._out)}, but predicts the gradient of {describe(wanted)}; write one whose output has "
                "the shape of its first input"
            )
