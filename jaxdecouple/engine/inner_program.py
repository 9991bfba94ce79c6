"""The program of a stage below the loss, which waits for a gradient between the forward and the backward of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from jaxdecouple.engine.linearization import Gradients, Linearization, linearize
from jaxdecouple.engine.packing import Packed, pack
from jaxdecouple.engine.stage_program import Outcome, Passed, StageProgram, Variant, passed
from jaxdecouple.engine.state import Residual, StageState
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, Signature, signature_of
from jaxdecouple.schedules import Weights, keeps_versions, redoes_forward

TiedGradients = Mapping[str, Sequence[jax.Array]] | None  # by the tie's name, of each stage above that shares it


class InnerProgram(StageProgram):
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
        return after._replace(residual=self._residual(state, after.state, x, outcome, weights)) if forward else after

    def _residual(
        self, before: StageState, after: StageState, x: PyTree, outcome: Outcome, weights: Weights
    ) -> Residual:
        signature = signature_of(x)
        params = (outcome.seen or after.packed_params) if keeps_versions(weights) else None
        if not redoes_forward(weights):
            inputs = self._linearizations[signature].inputs_of(x)
            return Residual(outcome.values, inputs, params, signature=signature)
        # Policies choose weights. What a layer carries from batch to batch is always that of the batch's forward.
        return Residual(None, x, params, before.packed_model_state, signature)

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
        opt_state: Packed,
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
