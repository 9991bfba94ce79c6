"""The program of a stage whose backward can be split: the gradient of its weights is then a dispatch of its own.

What the stage below waits for, and the gradient of the weights, are parts of one record, and no equation of it is in
both, but for what follows from weights alone. The first part has all that leads to the gradient of the stage's input:
the gradients with respect to what each layer puts out. Of these, and of the activations, the second part takes what the
gradients of weights are made of. So together they do the arithmetic of the backward in one piece. What cannot be
divided is done in the first part, if that needs any of it: a loop over identical layers (`stack`), a layer under
``jax.checkpoint``.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import optax
from jax.extend.core import Literal

from jaxdecouple.engine.packing import Packed, pack
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
from jaxdecouple.network.jax_internals import bind, dependents
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, Signature
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


Known = dict[Any, Any]  # variable -> value


@dataclasses.dataclass(frozen=True)
class SplitBackward:
    """A recorded function ``(weights, key, batch, *rest) -> (early, late)``, in two parts.

    Attributes:
      record: of the function.
      shapes: of ``early`` and ``late``.
      first, second: equations of the two parts, in order.
      computed: what the second part needs of the first: variables.
      inputs: what it needs of ``rest``: which leaves.
      num_again: how many of the record's inputs are at hand in both parts: weights, key and batch.
    """

    record: Any
    shapes: tuple[PyTree, PyTree]
    first: tuple[Any, ...]
    second: tuple[Any, ...]
    computed: tuple[Any, ...]
    inputs: tuple[int, ...]
    num_again: int

    def early(self, *args: PyTree) -> tuple[PyTree, tuple[jax.Array, ...]]:
        """``early``, and what is computed for `late`, for the function's arguments."""
        known = self._known(self.record.jaxpr.invars, jax.tree.leaves(args))
        _evaluate(self.first, known)
        outputs, structure = self.record.jaxpr.outvars, jax.tree.structure(self.shapes[0])
        early = _read(known, outputs[: structure.num_leaves])
        return jax.tree.unflatten(structure, early), tuple(_read(known, self.computed))

    def inputs_of(self, *rest: PyTree) -> tuple[jax.Array, ...]:
        """What `late` needs of ``rest``, by reference."""
        leaves = jax.tree.leaves(rest) if self.inputs else ()
        return tuple(leaves[position] for position in self.inputs)

    def late(
        self, computed: Sequence[jax.Array], inputs: Sequence[jax.Array], weights: PyTree, key: jax.Array, batch: Any
    ) -> PyTree:
        """``late``, from what `early` has computed, from `inputs_of` its arguments, and the others as they were."""
        variables = self.record.jaxpr.invars
        known = self._known(variables[: self.num_again], jax.tree.leaves((weights, key, batch)))
        known.update(zip((variables[self.num_again + position] for position in self.inputs), inputs, strict=True))
        known.update(zip(self.computed, computed, strict=True))
        _evaluate(self.second, known)
        structure = jax.tree.structure(self.shapes[1])
        late = _read(known, self.record.jaxpr.outvars[-structure.num_leaves :] if structure.num_leaves else ())
        return jax.tree.unflatten(structure, late)

    def _known(self, variables: Sequence[Any], values: Sequence[Any]) -> Known:
        return dict(zip((*self.record.jaxpr.constvars, *variables), (*self.record.consts, *values), strict=True))


def split(
    function: Callable[..., tuple[PyTree, PyTree]], weights: PyTree, key: jax.Array, batch: Any, *rest: PyTree
) -> SplitBackward:
    """Records ``function(weights, key, batch, *rest) -> (early, late)``, for arguments of these shapes."""
    record, shapes = jax.make_jaxpr(function, return_shape=True)(weights, key, batch, *rest)
    record = jax.make_jaxpr(functools.partial(_call, record))(*(variable.aval for variable in record.jaxpr.invars))
    jaxpr, num_weights = record.jaxpr, len(jax.tree.leaves(weights))
    num_early, num_again = len(jax.tree.leaves(shapes[0])), len(jax.tree.leaves((weights, key, batch)))
    # What follows from weights alone is computed again, not kept: it may be as large as they are.
    lasting = dependents(jaxpr, [position >= num_weights for position in range(len(jaxpr.invars))])
    effects = [equation for equation in jaxpr.eqns if equation.effects]
    first, _ = _leading_to(jaxpr.outvars[:num_early], jaxpr.eqns, lambda _: True, effects)
    own = {variable for equation in first if lasting.intersection(equation.outvars) for variable in equation.outvars}
    second, needed = _leading_to(
        jaxpr.outvars[num_early:], jaxpr.eqns, lambda equation: not own.intersection(equation.outvars)
    )
    computed = [variable for equation in first for variable in equation.outvars if variable in own & needed]
    inputs = [position for position, variable in enumerate(jaxpr.invars[num_again:]) if variable in needed]
    return SplitBackward(record, shapes, tuple(first), tuple(second), tuple(computed), tuple(inputs), num_again)


def _leading_to(
    outputs: Sequence[Any], equations: Sequence[Any], may: Callable[[Any], bool], always: Sequence[Any] = ()
) -> tuple[list[Any], set[Any]]:
    """The equations that ``outputs`` come from, of those that one ``may`` take; and the variables that are needed."""
    needed, found = {variable for variable in outputs if not isinstance(variable, Literal)}, []
    wanted = set(map(id, always))
    for equation in reversed(equations):
        if (id(equation) in wanted or needed.intersection(equation.outvars)) and may(equation):
            found.append(equation)
            needed.update(variable for variable in equation.invars if not isinstance(variable, Literal))
    return found[::-1], needed


def _call(closed: Any, *args: jax.Array) -> list[jax.Array]:
    known = dict(zip((*closed.jaxpr.constvars, *closed.jaxpr.invars), (*closed.consts, *args), strict=True))
    _evaluate(closed.jaxpr.eqns, known)
    return _read(known, closed.jaxpr.outvars)


def _evaluate(equations: Iterable[Any], known: Known) -> None:
    for equation in equations:
        given = _read(known, equation.invars)
        apart = equation.primitive.name in ("jit", "pjit")  # functions within, to be divided like the rest
        outputs = _call(equation.params["jaxpr"], *given) if apart else bind(equation, given)
        known.update(zip(equation.outvars, outputs, strict=True))


def _read(known: Known, variables: Iterable[Any]) -> list[Any]:
    return [variable.val if isinstance(variable, Literal) else known[variable] for variable in variables]
