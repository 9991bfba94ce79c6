"""A split backward is a backward in two parts: what the stage below waits for, and the gradient of the weights.

Both are parts of one record, and no equation of it is in both, but for what follows from weights alone. The first part
has all that leads to the gradient of the stage's input: the gradients with respect to what each layer puts out. Of
these, and of the activations, the second part takes what the gradients of weights are made of. So together they do the
arithmetic of the backward in one piece. What cannot be divided is done in the first part, if that needs any of it: a
loop over identical layers (`stack`), a layer under ``jax.checkpoint``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import Literal

from jaxdecouple.network.jax_internals import bind, dependents
from jaxdecouple.network.trees import PyTree

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
