"""What every solver accepts besides its own arguments."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Callable
from typing import Any, TypedDict

import jax
import numpy as np

from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm
from jaxdecouple.asynchronous.engines.clock import NO_STRAGGLERS, Clock, DrawnDelays, Stragglers
from jaxdecouple.asynchronous.problems.problem import Problem
from jaxdecouple.asynchronous.trace import Record

ENGINES = ("simulated", "local", "ray")
WORKERS = 4  # or one for each example, where there are fewer


class Options(TypedDict, total=False):
    """What every solver accepts.

    Attributes:
      workers: K (4, or as many as there are examples, or cores for "local" and "ray", if they are fewer).
      engine: "simulated", the default: one process, with given delays or a virtual clock; "local": worker processes
        on this machine; "ray": Ray actors, on this machine or a cluster.
      delays: the simulated engine's: None, those of the virtual clock; a number, for every message; an array, one for
        each; or `DrawnDelays`.
      outer_steps: S, outer iterations (30).
      inner_steps: T or m, messages of an outer iteration; as many as read n examples, if not given.
      tol: when to stop: at a duality gap of at most ``tol |P(w)|``; of methods without a dual, when P is known to be no
        further above its minimum, from its gradient and l2; of problems that may not be convex, when the gradient's
        norm is ``tol`` times that at the start. Not given: nothing stops the run, and it counts as converged at 0.01.
      seed: of the examples that are chosen (0).
      clock: what things cost on the virtual clock.
      stragglers: workers that are sometimes late, on the virtual clock or the wall.
      start: w at the start, for methods without a dual state; the problem's own, if not given.
      alpha: the dual state at the start, for methods that have one: another run's, perhaps with another ``l2``.
      optimum: P(w*), for the trace's suboptimality; that of the problem, if it is known and nothing is given.
      on_record: called with every `Record` and the w that it is of, as soon as an outer iteration is done.
      checkpoint: a file that is written at the end of every outer iteration.
      resume: such a file, to go on from.
    """

    workers: int
    engine: str
    delays: int | np.ndarray | DrawnDelays | None
    outer_steps: int
    inner_steps: int | None
    tol: float | None
    seed: int
    clock: Clock
    stragglers: Stragglers
    start: Any
    alpha: Any
    optimum: float | None
    on_record: Callable[[Record, jax.Array], None] | None
    checkpoint: str | None
    resume: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """`Options` with their defaults; ``workers`` and ``inner_steps`` are 0 until `for_` fills them in."""

    workers: int = 0
    engine: str = "simulated"
    delays: int | np.ndarray | DrawnDelays | None = None
    outer_steps: int = 30
    inner_steps: int = 0
    tol: float | None = None
    seed: int = 0
    clock: Clock = Clock()
    stragglers: Stragglers = NO_STRAGGLERS
    start: Any = None
    alpha: Any = None
    optimum: float | None = None
    on_record: Callable[[Record, jax.Array], None] | None = None
    checkpoint: str | None = None
    resume: str | None = None

    @staticmethod
    def of(solver: str, options: Options, problem: Problem) -> Settings:
        """From what a solver was given.

        Raises:
          TypeError: it has no such argument.
          ValueError: a number is none, or there are more workers than examples.
        """
        known = [field.name for field in dataclasses.fields(Settings)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise TypeError(f"{solver} has no argument {name!r}; {hint}it takes its own and {', '.join(known)}")
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        for name, least in (("workers", 1), ("outer_steps", 1), ("inner_steps", 1), ("seed", 0)):
            if name in given:
                check_whole(name, given[name], least)
        for name in ("tol", "optimum"):
            if name in given and not math.isfinite(given[name]):
                raise ValueError(f"{name} is {given[name]}; write a number")
        usual = min(WORKERS, problem.n, _cores(given.get("engine", "simulated")))
        settings = Settings(**{"workers": usual, **given})
        if (settings.tol or 0) < 0:
            raise ValueError(f"tol is {settings.tol}; write a number of at least 0, such as 1e-6")
        if settings.workers > problem.n:
            raise ValueError(
                f"workers is {settings.workers}, and there are {problem.n} examples; write {problem.n} or less"
            )
        return settings

    def per_message(self, problem: Problem, given: int | None, usual: int, name: str) -> int:
        """How many examples a message is made of: as many as were ``given``, or ``usual`` if a worker has them.

        Raises:
          ValueError: a worker has fewer than were given.
        """
        smallest = problem.n // self.workers
        if given is None:
            return min(usual, smallest)
        check_whole(name, given, 1)
        if given > smallest:
            raise ValueError(
                f"{name} is {given}: a message is to be made of {given} examples, and a worker has {smallest}; write a "
                f"number from 1 to {smallest}, or fewer workers"
            )
        return int(given)

    def for_(self, problem: Problem, algorithm: Algorithm) -> Settings:
        """These settings with the number of inner steps, checked against the problem.

        Raises:
          ValueError: something cannot be done; says what was given, what was expected, and what to write.
        """
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}; write one of {', '.join(ENGINES)}")
        if self.engine != "simulated" and self.delays is not None:
            raise ValueError(f"delays are given, and engine {self.engine!r} has its own; write engine='simulated'")
        if max(self.stragglers.workers, default=0) >= self.workers:
            raise ValueError(
                f"stragglers are workers {self.stragglers.workers}, and there are {self.workers}, counted from 0; "
                f"write numbers below {self.workers}"
            )
        return dataclasses.replace(self, inner_steps=self._inner_steps(problem, algorithm))

    def _inner_steps(self, problem: Problem, algorithm: Algorithm) -> int:
        inner_steps = self.inner_steps
        if not inner_steps:
            inner_steps = max(-(-problem.n // algorithm.h), self.workers)
            return -(-inner_steps // self.workers) * self.workers if algorithm.in_rounds else inner_steps
        if algorithm.in_rounds and inner_steps % self.workers:
            raise ValueError(
                f"inner_steps is {inner_steps}, and a round takes {self.workers} messages, one of each worker; write a "
                f"multiple of {self.workers}"
            )
        if inner_steps < self.workers:
            raise ValueError(
                f"inner_steps is {inner_steps}, for {self.workers} workers: a slow one would never be heard, since "
                f"every outer iteration begins anew; write {self.workers} or more"
            )
        return inner_steps

    @property
    def counts(self) -> dict[str, int]:
        """What a plan is made of: workers, outer and inner steps."""
        return {name: int(getattr(self, name)) for name in ("workers", "outer_steps", "inner_steps")}

    @property
    def expected_delay(self) -> int:
        """The longest delay, for a theorem's step size; that of equally fast workers, where it is not given."""
        if isinstance(self.delays, DrawnDelays):
            return self.delays.bound
        return self.workers - 1 if self.delays is None else int(np.max(self.delays))


def _cores(engine: str) -> int:
    """How many workers can compute side by side."""
    if engine == "simulated":
        return WORKERS
    ray = sys.modules.get("ray")
    if engine == "ray" and ray is not None and ray.is_initialized():
        return max(1, int(ray.cluster_resources().get("CPU", 1)))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_coordinates(problem: Problem, coordinates: Any) -> int:
    """How many coordinates of w an update changes.

    Raises:
      ValueError: there are not so many.
    """
    check_whole("coordinates", coordinates, 1)
    if coordinates > problem.d:
        raise ValueError(f"coordinates is {coordinates}, and w has {problem.d}; write a number from 1 to {problem.d}")
    return int(coordinates)


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuses what is no whole number.

    Raises:
      ValueError: it is none, or less than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} is {value!r}; write a whole number")
    if value < least:
        raise ValueError(f"{name} is {value}; write at least {least}")
