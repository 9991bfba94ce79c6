"""A trace is what was measured of a run: a record at its start, and one at the end of each outer iteration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.problems.problem import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement.

    Attributes:
      outer: outer iterations so far.
      messages: messages that the server has taken so far.
      epochs: gradients of single examples computed for them, and for full gradients, by n.
      seconds: since the start, on the virtual clock or the wall; NaN where delays were given. What measuring takes is
        not
        counted.
      objective: P(w).
      squared_gradient: |grad P(w)|^2.
      gap: P(w) - D(alpha), or None without a dual.
      relation: the largest component of w - w(alpha) (eq. 3.3), which is 0 but for rounding; None without a dual.
      suboptimality: P(w) - P(w*), or None where w* is not known.
      largest_delay: of the messages since the last record, in server updates.
      mean_delay: of the same.
    """

    outer: int
    messages: int
    epochs: float
    seconds: float
    objective: float
    squared_gradient: float
    gap: float | None
    relation: float | None
    suboptimality: float | None
    largest_delay: int
    mean_delay: float

    def as_json(self) -> dict[str, Any]:
        """A dict of what is known."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value is not None and value == value}


class Trace(Sequence[Record]):
    """The records of a run, in order."""

    def __init__(self, records: Sequence[Record]):
        self._records = list(records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        return self._records[index]

    def __repr__(self) -> str:
        if not self._records:
            return "Trace of 0 records"
        return f"Trace of {len(self)} records, from {self._records[0]} to {self._records[-1]}"

    def column(self, name: str) -> np.ndarray:
        """One field of all records, such as ``gap``; NaN where it is not known.

        Raises:
          ValueError: there is no such field.
        """
        names = [field.name for field in dataclasses.fields(Record)]
        if name not in names:
            raise ValueError(f"a record has no {name!r}; write one of {', '.join(names)}")
        values = [getattr(record, name) for record in self._records]
        return np.array([math.nan if value is None else value for value in values])


@jax.jit
def measures(problem: Problem, w: jax.Array, alpha: jax.Array | None) -> tuple[Any, Any, Any, Any]:
    """Objective, squared norm of the gradient; duality gap or None, and by how much w is not w(alpha)."""
    gradient, gap, relation = problem.gradient(w), None, None
    if alpha is not None:
        gap, relation = problem.dual_gap(w, alpha), jnp.max(jnp.abs(w - problem.primal(alpha)))
    return problem.objective(w), gradient @ gradient, gap, relation


@dataclasses.dataclass
class Meter:
    """Measures a run on ``problem``.

    Attributes:
      problem: the whole problem.
      best: P(w*), or None.
      on_record: called with every record and the w that it is of, or None.
      records: so far.
    """

    problem: Problem
    best: float | None = None
    on_record: Callable[[Record, Any], None] | None = None
    records: list[Record] = dataclasses.field(default_factory=list)

    def record(
        self,
        w: Any,
        alpha: Any,
        *,
        outer: int = 0,
        messages: int = 0,
        epochs: float = 0.0,
        seconds: float = 0.0,
        delays: np.ndarray | None = None,
    ) -> None:
        """Adds a record of ``w`` and ``alpha``, as they are after so many messages."""
        objective, squared, gap, relation = measures(self.problem, w, alpha)
        any_delays = delays is not None and len(delays) > 0
        record = Record(
            outer=outer,
            messages=messages,
            epochs=epochs,
            seconds=seconds,
            objective=float(objective),
            squared_gradient=float(squared),
            gap=None if gap is None else float(gap),
            relation=None if relation is None else float(relation),
            suboptimality=None if self.best is None else float(objective) - self.best,
            largest_delay=int(delays.max()) if any_delays else 0,
            mean_delay=float(delays.mean()) if any_delays else 0.0,
        )
        self.records.append(record)
        if self.on_record is not None:
            self.on_record(record, w)
