"""The program of a stage below the loss, which waits for a gradient between the forward and the backward of a batch."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import optax

from jaxdecouple.engine.linearization import Gradients, Linearization, linearize
from jaxdecouple.engine.packing import Packed, pack
from jaxdecouple.engine.split_program import SplitBackward, SplitProgram, split
from jaxdecouple.engine.stage_program import ALONE, Outcome, Passed, UpdateContext, Variant, after, replaced
from jaxdecouple.engine.state import Residual, StageState
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, Signature, gradient_shapes, shapes_of, signature_of
from jaxdecouple.schedules import Weights, keeps_versions, redoes_forward


class InnerProgram(SplitProgram):
    """A stage below the loss: a forward, and later, when the gradient has come, a backward with its update.

    Parameters are donated to their successors unless a stash may refer to them; optimizer states always are; and where
    a backward and a forward are one dispatch, the activations of the old batch to those of the new.
    """

    def __init__(self, stage: Stage, optimizer: optax.GradientTransformation, donate: bool = True):
        super().__init__(stage, optimizer, donate)
        self._linearizations: dict[Signature, Linearization] = {}

    def forward(self, state: StageState, x: PyTree, batch: int, weights: Weights) -> Passed:
        """Output and residual of a batch."""
        return self._dispatch(state, weights, x=x, next_batch=batch)

    def backward(
        self,
        state: StageState,
        residual: Residual,
        gradient: PyTree,
        batch: int,
        weights: Weights,
        context: UpdateContext = ALONE,
    ) -> Passed:
        """The gradient of the stage's input (``None`` at stage 0), and the state after the update.

        Args:
          state: of the stage.
          residual: of the batch's forward.
          gradient: of the output.
          batch: its index.
          weights: the policy.
          context: of the update.
        """
        return self._dispatch(state, weights, residual, gradient, batch, context=context)

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
        """`backward` of one batch, then `forward` of another, in one dispatch if both have the same shape."""
        if residual.signature != signature_of(x):  # not worth a compilation for every pair of shapes
            back = self.backward(state, residual, gradient, batch, weights, context)
            forth = self.forward(back.state, x, next_batch, weights)
            outcome = dataclasses.replace(forth.outcome, sent=back.outcome.sent, ties=back.outcome.ties)
            return forth._replace(outcome=outcome)
        return self._dispatch(state, weights, residual, gradient, batch, x, next_batch, context)

    def input_gradient(
        self, state: StageState, residual: Residual, gradient: PyTree, batch: int, weights: Weights
    ) -> Passed:
        """The gradient of the stage's input, and the residual for `weight_gradient`; arguments as of `backward`."""
        variant = Variant(residual.signature, weights=weights)
        return self._early(state, variant, batch, state.packed_model_state, residual.values, residual.held, gradient)

    def _dispatch(
        self,
        state: StageState,
        weights: Weights,
        residual: Residual | None = None,
        gradient: PyTree = None,
        batch: int = 0,
        x: PyTree = None,
        next_batch: int | None = None,
        context: UpdateContext = ALONE,
    ) -> Passed:
        variant = Variant(
            backward=residual.signature if residual is not None else None,
            forward=next_batch is not None,
            due=residual is not None and self.updates.due(batch),
            sends=self.stage.first > 0,
            weights=weights,
        )
        old, free = residual or Residual(), variant.due and not keeps_versions(weights)
        donated = replaced(context, params=free) if residual is not None else ()
        outcome = self._call(
            self._run,
            variant,
            state if residual is not None else self._for_forward(state),
            old.values,
            old.held,
            gradient,
            batch,
            x,
            next_batch,
            context,
            donated=donated,
            donates_first=variant.forward and residual is not None,
        )
        new = after(state, outcome)
        if not variant.forward:
            return Passed(new, outcome)
        return Passed(new, outcome, self._residual(new.packed_params, state.packed_model_state, x, outcome, weights))

    def _for_forward(self, state: StageState) -> StageState:
        """What a forward reads of a state."""
        if self.updates.looks_ahead:
            return dataclasses.replace(state.bare, packed_opt_state=state.packed_opt_state)
        return state.bare

    def _residual(self, params: Packed, model_state: Packed, x: PyTree, outcome: Outcome, weights: Weights) -> Residual:
        """What a forward with ``params`` leaves behind."""
        signature = signature_of(x)
        kept = (outcome.seen or params) if keeps_versions(weights) else None
        if not redoes_forward(weights):
            inputs = self._linearizations[signature].inputs_of(x)
            return Residual(outcome.values, inputs, kept, signature=signature)
        # Policies choose weights. What a layer carries from batch to batch is always that of the batch's forward.
        return Residual(None, x, kept, model_state, signature)

    def _split(self, variant: Variant, state: StageState, batch: Any) -> SplitBackward:
        def both(
            params: Packed,
            key: jax.Array,
            batch: jax.Array,
            model_state: Packed,
            values: Packed | None,
            held: tuple,
            gradient: PyTree,
        ) -> tuple[Outcome, PyTree]:
            bare = dataclasses.replace(state, packed_params=params, packed_model_state=model_state, key=key)
            grads, sent = self._gradients(variant, bare, values, held, gradient, batch)
            ties = self.updates.ties
            grads = ties.summed(grads, None)
            return Outcome(sent=sent if self.stage.first else None, ties=ties.sent(grads)), ties.own(grads)

        assert variant.backward is not None  # there is a batch that goes backward
        x = shapes_of(variant.backward)
        forward = functools.partial(self._run, Variant(forward=True, weights=variant.weights))
        outcome = jax.eval_shape(forward, state, None, (), None, batch, x, batch, ALONE)
        residual = self._residual(state.packed_params, state.packed_model_state, x, outcome, variant.weights)
        gradient, model_state = gradient_shapes(signature_of(outcome.y)), state.packed_model_state
        return split(both, state.packed_params, state.key, batch, model_state, residual.values, residual.held, gradient)

    def _run(
        self,
        variant: Variant,
        state: StageState,
        values: Packed | None,
        held: tuple,
        gradient: PyTree,
        batch: jax.Array,
        x: PyTree,
        next_batch: jax.Array,
        context: UpdateContext,
    ) -> Outcome:
        outcome = Outcome()
        if variant.backward is not None:
            grads, sent = self._gradients(variant, state, values, held, gradient, batch)
            grads = self.updates.ties.summed(grads, context.ties)
            outcome = dataclasses.replace(
                self._updated(variant, state, grads, context),
                sent=sent if variant.sends else None,
                ties=self.updates.ties.sent(grads),
            )
        if variant.forward:
            outcome = self._forward(variant, after(state, outcome), x, next_batch, outcome)
        return outcome

    def _forward(self, variant: Variant, state: StageState, x: PyTree, batch: jax.Array, outcome: Outcome) -> Outcome:
        """``outcome``, with that of a forward."""
        seen = self.updates.forward_weights(state, batch)
        arguments: tuple[Any, ...] = (seen.tree, x, state.model_state, state.key, batch)
        if redoes_forward(variant.weights):
            (y, new_state), stored = self._apply(*arguments), None
        else:
            y, new_state, computed = self._linearization(*arguments).forward(*arguments)
            stored = pack(tuple(computed))
        held_on = seen if self.updates.looks_ahead and keeps_versions(variant.weights) else None
        return dataclasses.replace(outcome, y=y, model_state=pack(new_state), values=stored, seen=held_on)

    def _gradients(
        self,
        variant: Variant,
        state: StageState,
        values: Packed | None,
        held: tuple,
        gradient: PyTree,
        batch: jax.Array,
    ) -> Gradients:
        inputs, stashed, before = held
        chosen = self.updates.backward_weights(state) if stashed is None else stashed.tree
        if values is None:
            arguments = (chosen, inputs, before.tree, state.key, batch)
            # The batch statistics that it gathers again are dropped: each batch counts once, in its forward.
            return self._linearization(*arguments).forward_then_backward(*arguments, again=True)[2](gradient)
        assert variant.backward is not None  # there are values of it
        structure, leaves = variant.backward
        x = jax.tree.unflatten(structure, [jax.numpy.zeros(shape, dtype) for shape, dtype in leaves])
        arguments = (chosen, x, state.model_state, state.key, batch)
        return self._linearization(*arguments).backward(values.tree, inputs, gradient, *arguments)

    def _linearization(self, params: PyTree, x: PyTree, *rest: Any) -> Linearization:
        signature = signature_of(x)
        if signature not in self._linearizations:
            self._linearizations[signature] = linearize(self._apply, params, x, *rest)
        return self._linearizations[signature]
