"""The program of a stage whose backward can be split: the gradient of its weights is then a dispatch of its own."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import optax

from jaxdecouple.engine.packing import Packed, pack
from jaxdecouple.engine.split_backward import SplitBackward
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
from jaxdecouple.engine.state import Residual, StageState
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import Signature
from jaxdecouple.schedules import Weights, keeps_versions


class SplitProgram(StageProgram):
    """A stage that leaves, between the two parts of a batch's backward, what the second needs of the first.

    That is a residual: ``values`` are what the first part has computed, ``inputs`` of what it was given, by reference.
    """

    def __init__(self, stage: Stage, optimizer: optax.GradientTransformation, donate: bool):
        super().__init__(stage, optimizer, donate)
        self._splits: dict[tuple[Signature, Weights], SplitBackward] = {}

    @abc.abstractmethod
    def _split(self, variant: Variant, state: StageState, batch: Any) -> SplitBackward:
        """The backward ``(params, key, batch, *rest) -> outcome, gradient of the weights``, of ``variant.backward``."""

    def _early(self, state: StageState, variant: Variant, batch: int, *rest: Any) -> Passed:
        """Dispatches the first part."""
        outcome = self._call(self._run_early, variant, state.bare, batch, rest)
        inputs = self._splits[_kind(variant)].inputs_of(*rest)
        return Passed(after(state, outcome), outcome, Residual(outcome.values, inputs, signature=variant.backward))

    def weight_gradient(
        self, state: StageState, residual: Residual, batch: int, weights: Weights, context: UpdateContext = ALONE
    ) -> Passed:
        """The state after the update, from the gradient of the weights.

        Args:
          state: of the stage, with the weights that the batch's backward began with.
          residual: of the first part.
          batch: its index.
          weights, context: as of `InnerProgram.backward`.
        """
        due = self.updates.due(batch)
        variant = Variant(residual.signature, due=due, weights=weights)
        donated = replaced(context, params=due and not keeps_versions(weights))
        rest = residual.values, residual.inputs, batch, context
        outcome = self._call(self._run_late, variant, state, *rest, donated=donated)
        return Passed(after(state, outcome), outcome)

    def _run_early(self, variant: Variant, state: StageState, batch: jax.Array, rest: tuple) -> Outcome:
        split = self._known_split(variant, state, batch)
        outcome, computed = split.early(state.packed_params, state.key, batch, *rest)
        return dataclasses.replace(outcome, values=pack(computed))

    def _run_late(
        self,
        variant: Variant,
        state: StageState,
        computed: Packed,
        inputs: tuple[jax.Array, ...],
        batch: jax.Array,
        context: UpdateContext,
    ) -> Outcome:
        split = self._known_split(variant, state, batch)
        grads = split.late(computed.tree, inputs, state.packed_params, state.key, batch)
        return self._updated(variant, state, self.updates.ties.with_others(grads, context.ties), context)

    def _known_split(self, variant: Variant, state: StageState, batch: jax.Array) -> SplitBackward:
        if _kind(variant) not in self._splits:
            self._splits[_kind(variant)] = self._split(variant, state.bare, batch)
        return self._splits[_kind(variant)]


def _kind(variant: Variant) -> tuple[Signature, Weights]:
    assert variant.backward is not None  # of the batch whose backward is split
    return variant.backward, variant.weights
