"""Programs of stages that learn locally: each from an objective of its own, with the help of an auxiliary network.

Forward, objective, backward and update are one dispatch, as at the last stage of every other schedule. What goes up is
the activation from before the update.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdecouple.engine.linearization import as_gradients, linearize
from jaxdecouple.engine.loss_program import Loss
from jaxdecouple.engine.packing import pack
from jaxdecouple.engine.stage_program import (
    ALONE,
    Outcome,
    Passed,
    StageProgram,
    UpdateContext,
    Variant,
    after,
    replaced,
)
from jaxdecouple.engine.state import NetworkState, Residual, StageState
from jaxdecouple.engine.updates import Updates
from jaxdecouple.network.layer import Layer, blaming
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, describe, shape_of, signature_of
from jaxdecouple.schedules import Weights, keeps_versions

# Auxiliary networks draw from the same key as layers, as if they came after any number of them.
_BEYOND_LAYERS = 1 << 20


class LocalProgram(StageProgram):
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
        donate: bool,
    ):
        super().__init__(stage, optimizer, donate)
        self.auxiliary = auxiliary
        self._top = stage.first + stage.num_layers - 1  # the layer that it stands on
        self._index = _BEYOND_LAYERS + self._top
        self.auxiliary_updates = Updates(auxiliary_optimizer, self._index)

    def init(self, key: jax.Array, x: PyTree, targets: PyTree = None) -> StageState:
        """The initial state of the stage and its auxiliary network, for inputs and targets shaped like these.

        Raises:
          ValueError: the network cannot take what the stage puts out.
        """
        state = super().init(key, x, targets)
        y = self.output_shape(state, x)
        given = self._auxiliary_input(y, targets)
        with blaming(self.auxiliary.name, self._top, given, "the auxiliary network after layer"):
            params, model_state, self._out = self.auxiliary.init_at(self._index, key, given, self._shapes)
        self._y = shape_of(y)
        opt_state = self.auxiliary_updates.init(params)
        return state.replace(auxiliary=NetworkState(pack(params), pack(model_state), pack(opt_state)))

    def learn(
        self,
        state: StageState,
        x: PyTree,
        targets: PyTree,
        batch: int,
        weights: Weights,
        context: UpdateContext = ALONE,
    ) -> Passed:
        """The output, and the state after the update; what else there is says the subclass."""
        raise NotImplementedError

    def check_auxiliary(self, logits: PyTree) -> None:
        """Refuses an auxiliary network whose output, known since `init`, has the wrong shape.

        Args:
          logits: shapes of the whole network's output.

        Raises:
          ValueError: the shape is not that of what the output is held against.
        """
        raise NotImplementedError

    def _assist(
        self, params: PyTree, model_state: PyTree, given: PyTree, key: jax.Array, batch: Any
    ) -> tuple[PyTree, PyTree]:
        return self.auxiliary.apply_at(self._index, params, model_state, given, key=key, batch=batch, train=True)

    def _auxiliary_input(self, y: PyTree, targets: PyTree) -> PyTree:
        """What the auxiliary network is called with."""
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
        donate: bool = True,
    ):
        super().__init__(stage, optimizer, auxiliary, auxiliary_optimizer, donate)
        self.loss = loss
        if self.auxiliary_updates.every != self.updates.every:
            raise ValueError(
                f"stage at layer {stage.first}: its optimizer accumulates {self.updates.every} batches, that of its "
                f"auxiliary network {self.auxiliary_updates.every}; write the same accumulate for both"
            )

    def learn(
        self,
        state: StageState,
        x: PyTree,
        targets: PyTree,
        batch: int,
        weights: Weights,
        context: UpdateContext = ALONE,
    ) -> Passed:
        """The output, the loss of the classifier, and the state after both updates. Nothing is sent down."""
        variant = Variant(forward=True, due=self.updates.due(batch), sends=False)
        donated = (*replaced(context, params=variant.due), "auxiliary")
        outcome = self._call(self._run, variant, state, x, targets, batch, context, donated=donated)
        return Passed(after(state, outcome), outcome)

    def check_auxiliary(self, logits: PyTree) -> None:
        """Refuses a classifier with other outputs than the network: both are held against the same targets."""
        theirs, networks = ([leaf.shape[1:] for leaf in jax.tree.leaves(tree)] for tree in (self._out, logits))
        if theirs != networks:
            raise ValueError(
                f"the auxiliary network {self.auxiliary.name} after layer {self._top} puts out "
                f"{describe(self._out)}, but the network {describe(logits)}, and both are held against the same "
                "targets; write one with as many outputs"
            )

    def _run(
        self, variant: Variant, state: StageState, x: PyTree, targets: PyTree, batch: jax.Array, context: UpdateContext
    ) -> Outcome:
        key, auxiliary = state.key, _auxiliary_of(state)

        def loss_of(both: tuple[PyTree, PyTree], x: PyTree, model_state: PyTree, their_state: PyTree) -> Any:
            y, model_state = self._apply(both[0], x, model_state, key, batch)
            logits, their_state = self._assist(both[1], their_state, y, key, batch)
            return self.loss(logits, targets), (y, model_state, their_state)

        arguments = ((state.params, auxiliary.params), x, state.model_state, auxiliary.model_state)
        linearization = linearize(loss_of, *arguments)
        loss, (y, new_state, their_state), gradients = linearization.gradients_of_loss(*arguments)
        grads, their_grads = gradients.params
        updated = self._updated(variant, state, grads, context)
        their_params, their_opt_state = self.auxiliary_updates.apply(variant.due, their_grads, auxiliary)
        if their_params is None:
            their_params = auxiliary.packed_params  # as it was, but its memory was given up
        return dataclasses.replace(
            updated,
            model_state=pack(new_state),
            y=y,
            loss=loss,
            auxiliary=Outcome(their_params, their_opt_state, pack(their_state)),
        )

    def _auxiliary_input(self, y: PyTree, targets: PyTree) -> PyTree:
        return y


class SyntheticProgram(LocalProgram):
    """A stage that learns from a predicted gradient of its output (decoupled neural interfaces).

    The predictor is given the output and the targets. Later, when the gradient from above has come, it is taught: its
    loss is the squared error, summed over an example's features, mean over the examples.
    """

    def learn(
        self,
        state: StageState,
        x: PyTree,
        targets: PyTree,
        batch: int,
        weights: Weights,
        context: UpdateContext = ALONE,
    ) -> Passed:
        """The output, the gradient to send down, the state after the update, and what `teach` will need."""
        due, auxiliary = self.updates.due(batch), _auxiliary_of(state)
        variant = Variant(forward=True, due=due, sends=self.stage.first > 0)
        donated = replaced(context, params=due)
        outcome = self._call(self._run, variant, state, x, targets, batch, context, donated=donated)
        residual = Residual(
            inputs=(outcome.y, targets),
            params=auxiliary.packed_params if keeps_versions(weights) else None,
            model_state=auxiliary.packed_model_state,
            signature=signature_of(outcome.y),
        )
        return Passed(after(state, outcome), outcome, residual)

    def teach(self, state: StageState, residual: Residual, gradient: PyTree, batch: int, weights: Weights) -> Passed:
        """The state after the predictor has learned from ``gradient``, that of the output; its error is the loss."""
        variant = Variant(due=self.auxiliary_updates.due(batch), weights=weights)
        donated = replaced(ALONE, params=variant.due and not keeps_versions(weights))
        rest = residual.held, gradient, state.key, batch
        outcome = self._call(self._run_teach, variant, _auxiliary_of(state), *rest, donated=donated)
        return Passed(after(state, outcome), outcome)

    def check_auxiliary(self, logits: PyTree) -> None:
        """Refuses a predictor whose output has another shape than what it predicts the gradient of."""
        wanted = [leaf for leaf in jax.tree.leaves(self._y) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        if [leaf.shape for leaf in jax.tree.leaves(self._out)] != [leaf.shape for leaf in wanted]:
            raise ValueError(
                f"the auxiliary network {self.auxiliary.name} after layer {self._top} puts out "
                f"{describe(self._out)}, but predicts the gradient of {describe(wanted)}; write one whose output has "
                "the shape of its first input"
            )

    def _run(
        self, variant: Variant, state: StageState, x: PyTree, targets: PyTree, batch: jax.Array, context: UpdateContext
    ) -> Outcome:
        arguments = (state.params, x, state.model_state, state.key, batch)
        y, new_state, backward = linearize(self._apply, *arguments).forward_then_backward(*arguments)
        auxiliary, given = _auxiliary_of(state), self._auxiliary_input(y, targets)
        predicted, their_state = self._assist(auxiliary.params, auxiliary.model_state, given, state.key, batch)
        grads, sent = backward(predicted)
        return dataclasses.replace(
            self._updated(variant, state, grads, context),
            model_state=pack(new_state),
            y=y,
            sent=sent if variant.sends else None,
            auxiliary=Outcome(model_state=pack(their_state)),
        )

    def _run_teach(
        self,
        variant: Variant,
        auxiliary: NetworkState,
        held: tuple,
        gradient: PyTree,
        key: jax.Array,
        batch: jax.Array,
    ) -> Outcome:
        (y, targets), stashed, model_state = held

        def error_of(params: PyTree) -> jax.Array:
            # Each batch counts once in the predictor's model state: in the forward.
            predicted, _ = self._assist(params, model_state.tree, self._auxiliary_input(y, targets), key, batch)
            pairs = zip(jax.tree.leaves(predicted), jax.tree.leaves(gradient), strict=True)
            return sum((jnp.square(guess - true).sum() / len(true) for guess, true in pairs), jnp.zeros(()))

        chosen = (auxiliary.packed_params if stashed is None else stashed).tree
        error, grads = jax.value_and_grad(error_of, allow_int=True)(chosen)
        grads = as_gradients(grads, chosen)
        params, opt_state = self.auxiliary_updates.apply(variant.due, grads, auxiliary)
        return Outcome(loss=error, auxiliary=Outcome(params=params, opt_state=opt_state))

    def _auxiliary_input(self, y: PyTree, targets: PyTree) -> PyTree:
        return y, targets


def _auxiliary_of(state: StageState) -> NetworkState:
    assert state.auxiliary is not None  # `init` made it
    return state.auxiliary
