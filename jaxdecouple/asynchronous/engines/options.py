"""What every solver accepts besides its own arguments."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, TypedDict

import jax
import numpy as np

from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm
from jaxdecouple.asynchronous.engines.clock import NO_STRAGGLERS, Clock, DrawnDelays, Stragglers
from jaxdecouple.asynchronous.problems.problem import Problem
from jaxdecouple.asynchronous.trace import Record

ENGINES = ("simulated", "local", "ray")


class Options(TypedDict, total=False):
    """What every solver accepts.

    Attributes:
      workers: K (4).
      engine: "simulated", the default: one process, with given delays or a virtual clock; "local": worker processes on
        this
        machine; "ray": Ray actors, on this machine or a cluster.
      delays: the simulated engine's: None, those of the virtual clock; a number, for every message; an array, one for
        each; or `DrawnDelays`.
      outer_steps: S, outer iterations (30).
      inner_steps: T or m, messages of an outer iteration; as many as read n examples, if not given.
      seed: of the examples that are chosen (0).
      clock: what things cost on the virtual clock.
      stragglers: workers that are sometimes late, on the virtual clock or the wall.
      start: w at the start, for methods without a dual state; the problem's own, if not given.
      optimum: P(w*), for the trace's suboptimality; that of the problem, if it is known and nothing is given.
      on_record: called with every `Record` and the w that it is of, at once by the simulated engine, at the end by the
        others.
      checkpoint: a file, which the local and the ray engine write at the end of every outer iteration.
      resume: such a file, to go on from.
    """

    workers: int
    engine: str
    delays: int | np.ndarray | DrawnDelays | None
    outer_steps: int
    inner_steps: int | None
    seed: int
    clock: Clock
    stragglers: Stragglers
    start: Any
    optimum: float | None
    on_record: Callable[[Record, jax.Array], None] | None
    checkpoint: str | None
    resume: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """`Options` with their defaults."""

    workers: int = 4
    engine: str = "simulated"
    delays: int | np.ndarray | DrawnDelays | None = None
    outer_steps: int = 30
    inner_steps: int | None = None
    seed: int = 0
    clock: Clock = Clock()
    stragglers: Stragglers = NO_STRAGGLERS
    start: Any = None
    optimum: float | None = None
    on_record: Callable[[Record, jax.Array], None] | None = None
    checkpoint: str | None = None
    resume: str | None = None

    @staticmethod
    def of(solver: str, options: Options) -> Settings:
        """From what a solver was given.

        Raises:
          TypeError: it has no such argument.
        """
        known = [field.name for field in dataclasses.fields(Settings)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise TypeError(f"{solver} has no argument {name!r}; {hint}it takes its own and {', '.join(known)}")
        return Settings(**options)

    def for_(self, problem: Problem, algorithm: Algorithm) -> Settings:
        """These settings with the number of inner steps, checked against the problem.

        Raises:
          ValueError: something cannot be done; says what was given, what was expected, and what to write.
        """
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}; write one of {', '.join(ENGINES)}")
        if self.engine != "simulated" and self.delays is not None:
            raise ValueError(f"delays are given, and engine {self.engine!r} has its own; write engine='simulated'")
        if self.engine == "simulated" and (self.checkpoint or self.resume):
            raise ValueError("a checkpoint is for engines that can lose their server; write engine='local' or 'ray'")
        for name in ("workers", "outer_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; write at least 1")
        if self.workers > problem.n:
            raise ValueError(
                f"workers is {self.workers}, and there are {problem.n} examples; write {problem.n} or less"
            )
        if max(self.stragglers.workers, default=0) >= self.workers:
            raise ValueError(
                f"stragglers are workers {self.stragglers.workers}, and there are {self.workers}, counted from 0; "
                "write "
                f"numbers below {self.workers}"
            )
        smallest = problem.n // self.workers
        if not 1 <= algorithm.h <= smallest:
            raise ValueError(
                f"a message is to be made of {algorithm.h} examples, and a worker has {smallest}; write a number "
                "from 1 to "
                f"{smallest}, or fewer workers"
            )
        return dataclasses.replace(self, inner_steps=self._inner_steps(problem, algorithm))

    def _inner_steps(self, problem: Problem, algorithm: Algorithm) -> int:
        inner_steps = self.inner_steps
        if inner_steps is None:
            inner_steps = max(-(-problem.n // algorithm.h), self.workers)
            return -(-inner_steps // self.workers) * self.workers if algorithm.in_rounds else inner_steps
        if algorithm.in_rounds and (inner_steps < 1 or inner_steps % self.workers):
            raise ValueError(
                f"inner_steps is {inner_steps}, and a round takes {self.workers} messages, one of each worker; write a "
                f"multiple of {self.workers}"
            )
        if inner_steps < self.workers:
            raise ValueError(
                f"inner_steps is {inner_steps}, for {self.workers} workers: a slow one would never be heard, since "
                "every "
                f"outer iteration begins anew; write {self.workers} or more"
            )
        return inner_steps

    @property
    def expected_delay(self) -> int:
        """The longest delay, for a theorem's step size; that of equally fast workers, where it is not given."""
        if isinstance(self.delays, DrawnDelays):
            return self.delays.bound
        return self.workers - 1 if self.delays is None else int(np.max(self.delays))
