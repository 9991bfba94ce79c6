"""A recorded function of the trees of many layers, evaluated for those layers that it treats alike at once.

The function is given as what JAX records of it when each layer stands alone. Where its equations for all layers of a
stack are the same, they are evaluated once, mapped over the layers: a thousand layers then compile like one. What is
computed from several layers together, such as a norm of all, is evaluated as it stands; what follows from that, once
more for all layers.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxdecouple.network.jax_internals import bind


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an input of the function is: layer ``layer`` of a stack, [layers, ...]; or all of an array.

    Attributes:
      array: which of the arrays.
      stack, layer: ``None`` if it is the whole.
    """

    array: int
    stack: str | None = None
    layer: int | None = None


class _Owned(NamedTuple):
    """A value of one layer.

    Attributes:
      stack, layer: whose.
      number: of the layer's values, in the order of the record.
      phase: how many times values of several layers have to come together before it can be computed.
    """

    stack: str
    layer: int
    number: int
    phase: int


class _Equation(NamedTuple):
    """An equation of the record.

    Attributes:
      record: what JAX recorded.
      inputs, outputs: its values: objects that stand for them, or literals.
    """

    record: Any
    inputs: list[Any]
    outputs: list[Any]


@dataclasses.dataclass
class _Part:
    """The equations of one layer.

    Attributes:
      equations: by phase, with the numbers of what they compute.
      signature: equal for layers that are treated alike.
    """

    equations: dict[int, list[tuple[Any, list[int]]]]
    signature: list[Any]


class ByLayer:
    """The equations of a record, sorted by the layer that they are of.

    Attributes:
      alike: whether all layers of each stack are treated alike; else only `jaxpr_as_fun` can evaluate the record.
      inputs, outputs: the values that it is given and gives, as objects that stand for them.
    """

    def __init__(self, closed: Any, places: Sequence[Place]):
        """Sorts the equations of ``closed``, whose inputs are at ``places``."""
        self._places = places
        self._owned: dict[Any, _Owned] = {}
        self._phase: dict[Any, int] = {}  # of values that belong to no one layer
        self._alias: dict[Any, Any] = {}  # of those that are computed several times: the first that is the same
        self._common: dict[int, list[Any]] = collections.defaultdict(list)
        self._texts: dict[int, str] = {}
        self._parts: dict[tuple[str, int], _Part] = {}
        self._counts: collections.Counter[tuple[str, int]] = collections.Counter()
        self._arrays: dict[tuple[str, int], int] = {}  # by stack and number of a value: the input that it is
        self.constants: dict[Any, Any] = {}
        self.inputs: list[Any] = [object() for _ in places]
        equations, self.outputs = self._flat(closed, self.inputs)
        self._phase.update(dict.fromkeys(self.constants, 0))
        for variable, place in zip(self.inputs, places, strict=True):
            if place.stack is None or place.layer is None:
                self._phase[variable] = 0
            else:
                self._arrays[place.stack, self._own(variable, place.stack, place.layer, 0)] = place.array
                self._part(place.stack, place.layer).signature.append(place.array)
        known: dict[Any, Any] = {}
        for equation in equations:
            self._sort(equation, known)
        stacks = collections.defaultdict(list)
        for (stack, _), part in self._parts.items():
            stacks[stack].append(part.signature)
        self.alike = all(part == parts[0] for parts in stacks.values() for part in parts)

    def _flat(self, closed: Any, inputs: Sequence[Any]) -> tuple[list[_Equation], list[Any]]:
        """The equations, those of functions within that are compiled by themselves included, and the outputs."""
        found: list[_Equation] = []
        names: dict[Any, Any] = dict(zip(closed.jaxpr.invars, inputs, strict=True))
        for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            names[variable] = object()
            self.constants[names[variable]] = value

        def name(variable: Any) -> Any:
            return variable if isinstance(variable, Literal) else names[variable]

        for record in closed.jaxpr.eqns:
            given = [name(variable) for variable in record.invars]
            if record.primitive.name in ("jit", "pjit"):
                equations, outputs = self._flat(record.params["jaxpr"], given)
                found += equations
            else:
                outputs = [object() for _ in record.outvars]
                found.append(_Equation(record, given, outputs))
            names.update(zip(record.outvars, outputs, strict=True))
        return found, [name(variable) for variable in closed.jaxpr.outvars]

    def evaluate(self, arrays: Sequence[jax.Array]) -> _Values:
        """The values of the record, for inputs in these arrays."""
        values = _Values(self, arrays)
        for phase in range(max([0, *self._common, *(p for part in self._parts.values() for p in part.equations)]) + 1):
            for equation in self._common[phase]:
                outputs = bind(equation.record, [values.read(value) for value in equation.inputs])
                values.common.update(zip(equation.outputs, outputs, strict=True))
            for (stack, layer), part in self._parts.items():
                if not layer and phase in part.equations:
                    self._evaluate_stack(values, stack, part.equations[phase])
        return values

    def _evaluate_stack(self, values: _Values, stack: str, equations: list[tuple[Any, list[int]]]) -> None:
        def of_layer(own: dict[int, jax.Array]) -> dict[int, jax.Array]:
            computed: dict[int, jax.Array] = {}

            def read(variable: Any) -> Any:
                owned = None if isinstance(variable, Literal) else self._owned.get(variable)
                if owned is None:
                    return values.read(variable)
                return computed[owned.number] if owned.number in computed else own[owned.number]

            for equation, numbers in equations:
                outputs = bind(equation.record, [read(value) for value in equation.inputs])
                computed.update(zip(numbers, outputs, strict=True))
            return computed

        values.stacked[stack].update(jax.vmap(of_layer)(values.stacked[stack]))

    def _sort(self, equation: _Equation, known: dict[Any, Any]) -> None:
        inputs = [value for value in equation.inputs if not isinstance(value, Literal)]
        owners = {self._owned[v][:2] for v in inputs if v in self._owned}
        phase = max([0, *(self._owned[v].phase if v in self._owned else self._phase[v] for v in inputs)])
        if len(owners) == 1:
            ((stack, layer),) = owners
            part = self._part(stack, layer)
            part.signature.append((self._kind(equation.record), *map(self._name, equation.inputs)))
            numbers = [self._own(variable, stack, layer, phase) for variable in equation.outputs]
            part.equations.setdefault(phase, []).append((equation, numbers))
            return
        phase += len(owners) > 1
        self._phase.update(dict.fromkeys(equation.outputs, phase))
        if not owners and not equation.record.effects:
            same = known.setdefault((self._kind(equation.record), *map(self._name, equation.inputs)), equation)
            if same is not equation:  # a learning rate, say, once for every tensor
                self._alias.update(zip(equation.outputs, same.outputs, strict=True))
                return
        self._common[phase].append(equation)

    def _own(self, variable: Any, stack: str, layer: int, phase: int) -> int:
        number = self._counts[stack, layer]
        self._counts[stack, layer] += 1
        self._owned[variable] = _Owned(stack, layer, number, phase)
        return number

    def _part(self, stack: str, layer: int) -> _Part:
        return self._parts.setdefault((stack, layer), _Part({}, []))

    def _kind(self, equation: Any) -> Any:
        """What an equation does, to compare."""
        params = tuple((name, self._text(value)) for name, value in sorted(equation.params.items()))
        return equation.primitive.name, params, tuple(str(variable.aval) for variable in equation.outvars)

    def _text(self, value: Any) -> str:
        if not hasattr(value, "eqns"):
            return str(value)
        if id(value) not in self._texts:  # JAX records a function that is called often once
            self._texts[id(value)] = f"{value} {[id(constant) for constant in getattr(value, 'consts', ())]}"
        return self._texts[id(value)]

    def _name(self, variable: Any) -> Any:
        """What a value is to the layer that uses it, to compare."""
        if isinstance(variable, Literal):
            return str(variable.val), str(variable.aval)
        owned = self._owned.get(variable)
        return owned.number if owned is not None else self._alias.get(variable, variable)


class _Values:
    """Values of a record.

    Attributes:
      common: of no one layer, by variable.
      stacked: by stack, then by number of the layer's value: [layers, ...].
    """

    def __init__(self, record: ByLayer, arrays: Sequence[jax.Array]):
        self._record = record
        self.common: dict[Any, Any] = dict(record.constants)
        self.stacked: dict[str, dict[int, jax.Array]] = collections.defaultdict(dict)
        for variable, place in zip(record.inputs, record._places, strict=True):
            if place.stack is None:
                self.common[variable] = arrays[place.array]
        for (stack, number), array in record._arrays.items():
            self.stacked[stack][number] = arrays[array]

    def read(self, variable: Any) -> Any:
        """One value."""
        if isinstance(variable, Literal):
            return variable.val
        owned = self._record._owned.get(variable)
        if owned is None:
            return self.common[self._record._alias.get(variable, variable)]
        return self.stacked[owned.stack][owned.number][owned.layer]

    def read_all(self, variables: Sequence[Any]) -> jax.Array:
        """The values of all layers of a stack, in order: [layers, ...]."""
        owned = [None if isinstance(v, Literal) else self._record._owned.get(v) for v in variables]
        first = owned[0]
        if first is not None and [each and each[:3] for each in owned] == [
            (first.stack, i, first.number) for i in range(len(owned))
        ]:
            return self.stacked[first.stack][first.number]
        return jnp.stack([jnp.asarray(self.read(variable)) for variable in variables])
