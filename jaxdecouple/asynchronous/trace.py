"""A trace is what was measured of a run: a record at its start, and one at the end of each outer iteration."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxdecouple.asynchronous.outer import Outer
from jaxdecouple.asynchronous.problems.problem import Problem


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement.

    Attributes:
      outer: outer iterations so far.
      messages: messages that the server has taken so far.
      epochs: gradients of single examples computed for them, and for full gradients, by n.
      seconds: since the start, on the virtual clock or the wall, without measuring; NaN where delays were given.
      wall: seconds of the wall since the solver was called, all included.
      compiling: those of them in which this process traced and compiled.
      step_size: eta of the outer iteration; that of the first one in the record of the start.
      kept: whether its w was kept; False where the run got worse, and the w before was taken again, with a smaller eta.
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
    wall: float
    compiling: float
    step_size: float
    kept: bool
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


jax.tree_util.register_pytree_node(Trace, lambda trace: ((trace[:],), None), lambda _, children: Trace(*children))


# The operations are so small that the hand-offs between several threads would cost more than they.
ONE_THREAD: Any = {"xla_cpu_multi_thread_eigen": False}


@functools.partial(jax.jit, compiler_options=ONE_THREAD)
def _measures(problem: Problem, w: jax.Array, alpha: jax.Array | None) -> dict[str, Any]:
    gradient, gap, relation = problem.gradient(w), None, None
    if alpha is not None:
        gap, relation = problem.dual_gap(w, alpha), jnp.max(jnp.abs(w - problem.primal(alpha)))
    found = {"objective": problem.objective(w), "squared_gradient": gradient @ gradient}
    return {**found, "gap": gap, "relation": relation}


class _Compiling:
    """Seconds that this process has spent on tracing and compiling, as JAX tells them."""

    seconds = 0.0

    @classmethod
    def note(cls, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            cls.seconds += duration_secs


jax.monitoring.register_event_duration_secs_listener(_Compiling.note)


class Meter:
    """Measures a run on ``problem``.

    Attributes:
      records: so far.
    """

    def __init__(self, problem: Problem, best: Any = None, on_record: Callable[[Record, Any], None] | None = None):
        """Begins to count seconds.

        Args:
          problem: the whole problem.
          best: P(w*), or None.
          on_record: called with every record and the w that it is of.
        """
        self._problem, self._best, self._on_record = problem, best, on_record
        self._begun, self._compiled = time.perf_counter(), _Compiling.seconds
        self.records: list[Record] = []

    def measure(self, at: Outer, step_size: float) -> Record:
        """A record of what is there; arrays instead of numbers where the problem is being traced."""
        found: dict[str, Any] = _measures(self._problem, at.w, at.alpha)
        if not any(isinstance(value, Tracer) for value in found.values()):
            found = {name: None if value is None else float(value) for name, value in found.items()}
        there = len(at.delays) > 0
        return Record(
            outer=at.outer,
            messages=at.messages,
            epochs=at.epochs,
            seconds=at.seconds,
            wall=time.perf_counter() - self._begun,
            compiling=_Compiling.seconds - self._compiled,
            step_size=step_size,
            kept=True,
            suboptimality=None if self._best is None else found["objective"] - self._best,
            largest_delay=int(at.delays.max()) if there else 0,
            mean_delay=float(at.delays.mean()) if there else 0.0,
            **found,
        )

    def add(self, record: Record, w: Any, *, is_shown: bool = True) -> None:
        """Keeps a record, and shows it to whoever wants to see it."""
        self.records.append(record)
        if self._on_record is not None and is_shown:
            self._on_record(record, w)
