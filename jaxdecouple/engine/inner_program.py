"""The program of a stage below the loss, which waits for a gradient between the forward and the backward of a batch."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import optax

from jaxdecouple.engine.linearization import Gradients, Linearization, linearize
from jaxdecouple.engine.packing import Packed, pack
from jaxdecouple.engine.split_backward import SplitBackward, split
from jaxdecouple.engine.split_program import SplitProgram, TiedGradients
from jaxdecouple.engine.stage_program import Outcome, Passed, Variant, passed
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
        observe: bool = False,
        others: tuple[jax.Array, ...] | None = None,
        hold: bool = False,
        ties: TiedGradients = None,
    ) -> Passed:
        """The gradient of the stage's input (``None`` at stage 0), and the state after the update.

        Args:
          state: of the stage.
          residual: of the batch's forward.
          gradient: of the output.
          batch: its index.
          weights: the policy.
          observe: whether the gradient that the optimizer is given is wanted.
          others: the other stages' shares of what the optimizers sum over stages.
          hold: whether an update waits for `update`.
          ties: gradients of the batch, with respect to tied parameters that this stage owns, from stages above.
        """
        settings = {"observe": observe, "others": others, "hold": hold, "ties": ties}
        return self._dispatch(state, weights, residual, gradient, batch, **settings)

    def backward_forward(
        self,
        state: StageState,
        residual: Residual,
        gradient: PyTree,
        batch: int,
        x: PyTree,
        next_batch: int,
        weights: Weights,
        others: tuple[jax.Array, ...] | None = None,
        ties: TiedGradients = None,
    ) -> Passed:
        """`backward` of one batch, then `forward` of another, in one dispatch if both have the same shape."""
        if residual.signature != signature_of(x):  # not worth a compilation for every pair of shapes
            back = self.backward(state, residual, gradient, batch, weights, others=others, ties=ties)
            return self.forward(back.state, x, next_batch, weights)._replace(sent=back.sent)
        return self._dispatch(state, weights, residual, gradient, batch, x, next_batch, others=others, ties=ties)

    def input_gradient(
        self, state: StageState, residual: Residual, gradient: PyTree, batch: int, weights: Weights
    ) -> Passed:
        """The gradient of the stage's input, and the residual for `weight_gradient`; arguments as of `backward`."""
        variant = Variant(residual.signature, weights=weights)
        held = residual.inputs, residual.params, residual.model_state
        return self._early(state, variant, batch, state.packed_model_state, residual.values, held, gradient)

    def _dispatch(
        self,
        state: StageState,
        weights: Weights,
        residual: Residual | None = None,
        gradient: PyTree = None,
        batch: int = 0,
        x: PyTree = None,
        next_batch: int | None = None,
        observe: bool = False,
        others: tuple[jax.Array, ...] | None = None,
        hold: bool = False,
        ties: TiedGradients = None,
    ) -> Passed:
        backward, forward = residual is not None, next_batch is not None
        needs_opt_state = backward or self.updates.looks_ahead
        variant = Variant(
            backward=residual.signature if residual is not None else None,
            forward=forward,
            due=backward and self.updates.due(batch),
            observe=observe,
            sends=self.stage.first > 0,
            weights=weights,
            hold=hold,
        )
        old = residual or Residual()
        outcome = self._compiled(self._run, variant, _donated(variant))(
            state.packed_params,
            state.packed_opt_state if needs_opt_state else None,
            old.values,
            state.packed_model_state,
            state.key,
            (old.inputs, old.params, old.model_state),
            gradient,
            state.packed_gradient_norms if backward else None,
            batch,
            x,
            next_batch,
            others,
            ties,
        )
        after = passed(state, outcome)
        if not forward:
            return after
        residual = self._residual(after.state.packed_params, state.packed_model_state, x, outcome, weights)
        return after._replace(residual=residual)

    def _residual(self, after: Packed, model_state: Packed, x: PyTree, outcome: Outcome, weights: Weights) -> Residual:
        signature = signature_of(x)
        params = (outcome.seen or after) if keeps_versions(weights) else None
        if not redoes_forward(weights):
            inputs = self._linearizations[signature].inputs_of(x)
            return Residual(outcome.values, inputs, params, signature=signature)
        # Policies choose weights. What a layer carries from batch to batch is always that of the batch's forward.
        return Residual(None, x, params, model_state, signature)

    def _split(
        self, variant: Variant, params: Packed, model_state: Packed, key: jax.Array, batch: Any
    ) -> SplitBackward:
        def both(
            params: Packed,
            key: jax.Array,
            batch: jax.Array,
            model_state: Packed,
            values: Any,
            held: tuple,
            gradient: Any,
        ) -> tuple[Outcome, PyTree]:
            grads, sent = self._gradients(variant, params, None, model_state, key, values, held, gradient, batch)
            ties = self.updates.ties
            grads = ties.summed(grads, None)
            return Outcome(sent=sent if self.stage.first else None, ties=ties.sent(grads)), ties.own(grads)

        assert variant.backward is not None  # there is a batch that goes backward
        x = shapes_of(variant.backward)
        forward = functools.partial(self._run, Variant(forward=True, weights=variant.weights))
        outcome = jax.eval_shape(
            forward, params, None, None, model_state, key, (), None, None, batch, x, batch, None, None
        )
        residual = self._residual(params, model_state, x, outcome, variant.weights)
        held = residual.inputs, residual.params, residual.model_state
        gradient = gradient_shapes(signature_of(outcome.y))
        return split(both, params, key, batch, model_state, residual.values, held, gradient)

    def _run(
        self,
        variant: Variant,
        params: Packed,
        opt_state: Packed | None,
        values: Packed | None,
        model_state: Packed,
        key: jax.Array,
        held: tuple,
        gradient: PyTree,
        norms: Packed | None,
        batch: jax.Array,
        x: PyTree,
        next_batch: jax.Array | None,
        others: tuple[jax.Array, ...] | None,
        ties: TiedGradients,
    ) -> Outcome:
        outcome = Outcome()
        if variant.backward is not None and opt_state is not None:
            grads, sent = self._gradients(variant, params, opt_state, model_state, key, values, held, gradient, batch)
            grads = self.updates.ties.summed(grads, ties)
            outcome = dataclasses.replace(
                self._updated(variant, grads, opt_state, params, norms, others),
                sent=sent if variant.sends else None,
                grads=grads if variant.observe else None,
                ties=self.updates.ties.sent(grads),
            )
            params, opt_state = outcome.params or params, outcome.opt_state or opt_state
        if variant.forward:
            seen = self.updates.forward_weights(params, opt_state, next_batch)
            arguments: tuple[Any, ...] = (seen.tree, x, model_state.tree, key, next_batch)
            if redoes_forward(variant.weights):
                (y, new_state), stored = self._apply(*arguments), None
            else:
                y, new_state, computed = self._linearization(*arguments).forward(*arguments)
                stored = pack(tuple(computed))
            held_on = seen if self.updates.looks_ahead and keeps_versions(variant.weights) else None
            outcome = dataclasses.replace(outcome, y=y, model_state=pack(new_state), values=stored, seen=held_on)
        return outcome

    def _gradients(
        self,
        variant: Variant,
        params: Packed,
        opt_state: Packed | None,
        model_state: Packed,
        key: jax.Array,
        values: Packed | None,
        held: tuple,
        gradient: PyTree,
        batch: jax.Array,
    ) -> Gradients:
        inputs, stashed, before = held
        chosen = self.updates.backward_weights(params, opt_state) if stashed is None else stashed.tree
        if values is None:
            arguments = (chosen, inputs, before.tree, key, batch)
            # The batch statistics that it gathers again are dropped: each batch counts once, in its forward.
            return self._linearization(*arguments).forward_then_backward(*arguments, again=True)[2](gradient)
        assert variant.backward is not None  # there are values of it
        structure, leaves = variant.backward
        x = jax.tree.unflatten(structure, [jax.numpy.zeros(shape, dtype) for shape, dtype in leaves])
        arguments = (chosen, x, model_state.tree, key, batch)
        return self._linearization(*arguments).backward(values.tree, inputs, gradient, *arguments)

    def _linearization(self, params: PyTree, x: PyTree, *rest: Any) -> Linearization:
        signature = signature_of(x)
        if signature not in self._linearizations:
            self._linearizations[signature] = linearize(self._apply, params, x, *rest)
        return self._linearizations[signature]


def _donated(variant: Variant) -> tuple[str, ...]:
    if variant.backward is None or variant.hold:
        return ()
    updated = ("params",) if variant.due and not keeps_versions(variant.weights) else ()
    return ("opt_state", *updated, "values") if variant.forward else ("opt_state", *updated)
