"""The program of a stage whose backward can be split: the gradient of its weights is then a dispatch of its own."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from jaxdecouple.engine.packing import Packed, pack
from jaxdecouple.engine.split_backward import SplitBackward
from jaxdecouple.engine.stage_program import Outcome, Passed, StageProgram, Variant, passed
from jaxdecouple.engine.state import Residual, StageState
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import Signature
from jaxdecouple.schedules import Weights, keeps_versions

TiedGradients = Mapping[str, Sequence[jax.Array]] | None  # by the tie's name, of each stage above that shares it


class SplitProgram(StageProgram):
    """A stage that leaves, between the two parts of a batch's backward, what the second needs of the first.

    That is a residual: ``values`` are what the first part has computed, ``inputs`` of what it was given, by reference.
    """

    def __init__(self, stage: Stage, optimizer: optax.GradientTransformation, donate: bool):
        super().__init__(stage, optimizer, donate)
        self._splits: dict[tuple[Signature, Weights], SplitBackward] = {}

    @abc.abstractmethod
    def _split(
        self, variant: Variant, params: Packed, model_state: Packed, key: jax.Array, batch: Any
    ) -> SplitBackward:
        """The backward ``(params, key, batch, *rest) -> outcome, gradient of the weights``, of ``variant.backward``."""

    def _early(self, state: StageState, variant: Variant, batch: int, *rest: Any) -> Passed:
        """Dispatches the first part."""
        outcome = self._compiled(self._run_early, variant)(
            state.packed_params, state.packed_model_state, state.key, batch, rest
        )
        inputs = self._splits[_kind(variant)].inputs_of(*rest)
        return passed(state, outcome, Residual(outcome.values, inputs, signature=variant.backward))

    def weight_gradient(
        self,
        state: StageState,
        residual: Residual,
        batch: int,
        weights: Weights,
        observe: bool = False,
        others: tuple[jax.Array, ...] | None = None,
        hold: bool = False,
        ties: TiedGradients = None,
    ) -> Passed:
        """The state after the update, from the gradient of the weights.

        Args:
          state: of the stage, with the weights that the batch's backward began with.
          residual: of the first part.
          batch: its index.
          weights, observe, others, hold, ties: as of `InnerProgram.backward`.
        """
        due = self.updates.due(batch)
        variant = Variant(residual.signature, due=due, observe=observe, weights=weights, hold=hold)
        donated = () if hold else ("opt_state", "params") if due and not keeps_versions(weights) else ("opt_state",)
        outcome = self._compiled(self._run_late, variant, donated)(
            state.packed_params,
            state.packed_opt_state,
            state.packed_model_state,
            state.key,
            residual.values,
            residual.inputs,
            state.packed_gradient_norms,
            batch,
            others,
            ties,
        )
        return passed(state, outcome)

    def _run_early(
        self, variant: Variant, params: Packed, model_state: Packed, key: jax.Array, batch: jax.Array, rest: tuple
    ) -> Outcome:
        split = self._known_split(variant, params, model_state, key, batch)
        outcome, computed = split.early(params, key, batch, *rest)
        return dataclasses.replace(outcome, values=pack(computed))

    def _run_late(
        self,
        variant: Variant,
        params: Packed,
        opt_state: Packed,
        model_state: Packed,
        key: jax.Array,
        computed: Packed,
        inputs: tuple[jax.Array, ...],
        norms: Packed | None,
        batch: jax.Array,
        others: tuple[jax.Array, ...] | None,
        ties: TiedGradients,
    ) -> Outcome:
        split = self._known_split(variant, params, model_state, key, batch)
        grads = split.late(computed.tree, inputs, params, key, batch)
        grads = self.updates.ties.with_others(grads, ties)
        outcome = self._updated(variant, grads, opt_state, params, norms, others)
        return dataclasses.replace(outcome, grads=grads) if variant.observe else outcome

    def _known_split(
        self, variant: Variant, params: Packed, model_state: Packed, key: jax.Array, batch: jax.Array
    ) -> SplitBackward:
        if _kind(variant) not in self._splits:
            self._splits[_kind(variant)] = self._split(variant, params, model_state, key, batch)
        return self._splits[_kind(variant)]


def _kind(variant: Variant) -> tuple[Signature, Weights]:
    assert variant.backward is not None  # of the batch whose backward is split
    return variant.backward, variant.weights
