"""Dis-dfSDCA against CoCoA+ where a worker is sometimes late: what figures 6 and 7 have in common (section 3.5.1)."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sklearn.preprocessing

from experiments.asynchronous import scales
from experiments.asynchronous.curves import Curve, least, rows_of
from experiments.asynchronous.scales import option
from experiments.asynchronous.solving import ENGINES, guard, stragglers
from experiments.settings import choose
from experiments.training.progress import NonFiniteLoss
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import Clock, Linear, Record, Result, StepSizeWarning, Stragglers
from jaxdecouple.asynchronous.data.sources import load, signs

NAMES = {"dis_dfsdca": "Dis-dfSDCA", "cocoa_plus": "CoCoA+"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What things cost on the virtual clock, and who is late; each field is a flag."""

    engine: str = option("simulated", f"one of {', '.join(ENGINES)}; seconds are a virtual clock's, or real ones")
    straggler_probability: float = option(0.2, "p: how often a message of worker 0 is late", least=0)
    straggler_slowdown: tuple[float, ...] = option((0.0, 10.0), "it is late by m computing times, m between these")
    example_seconds: float = option(1e-6, "virtual clock: a gradient of one example", least=0)
    message_seconds: float = option(1e-5, "virtual clock: the way to the server and back", thesis=1e-4, least=0)
    update_seconds: float = option(1e-6, "virtual clock: an update by the server", thesis=1e-5, least=0)
    dtype: str = option("float64", "float64 or float32")
    seed: int = option(0, "of the examples that are chosen, of lateness, and of made data", least=0)

    def check(self) -> None:
        """Refuses what cannot be used.

        Raises:
          ValueError: says what was given, what was expected, and what to write.
        """
        scales.check(self)
        choose("engine", self.engine, ENGINES)
        self.late()

    def clock(self) -> Clock:
        """The virtual clock."""
        return Clock(self.example_seconds, self.message_seconds, self.update_seconds)

    def late(self, probability: float | None = None) -> Stragglers:
        """Worker 0 is late, with this probability or that of the flag."""
        p = self.straggler_probability if probability is None else probability
        return stragglers(p, self.straggler_slowdown, seed=self.seed)

    def options(self) -> dict[str, Any]:
        """What solvers take of it."""
        return {"engine": self.engine, "clock": self.clock(), "stragglers": self.late(), "seed": self.seed}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What problems the methods are compared on, besides the data; each field is a flag."""

    num_examples: int = option(0, "the first so many examples of each data set; 0: all", least=0)
    normalize: bool = option(False, "scale each example to Euclidean norm 1")
    l2: float = option(0.1, "lambda")

    def quadratic(self, name: str, *, dtype: str, seed: int) -> Linear:
        """The problem of eq. 3.38, a binary classification with the quadratic loss.

        Raises:
          ValueError: the data cannot be had.
        """
        source = load(name, dtype=np.dtype(dtype), seed=seed).first(self.num_examples)
        x = sklearn.preprocessing.normalize(source.x) if self.normalize else source.x
        return asynchronous.quadratic(x, signs(source.y), l2=self.l2)


def attempt(solver: Callable[..., Result], *arguments: Any, above: float = math.inf, **options: Any) -> Result | None:
    """Runs a solver, without its warnings of step sizes; None, if the run diverged.

    Args:
      solver: one of `jaxdecouple.asynchronous`.
      *arguments: for it.
      above: an objective that counts as diverged.
      **options: for it.
    """

    def note(record: Record, _: Any) -> None:
        guard(record)
        if record.objective > above:
            raise NonFiniteLoss(f"the objective is {record.objective}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StepSizeWarning)
        try:
            return solver(*arguments, on_record=note, **options)
        except NonFiniteLoss:
            return None


def tuned(
    problem: Linear,
    method: str,
    steps: Sequence[float],
    score: Callable[[Curve], Any],
    about: dict[str, Any],
    **options: Any,
) -> Curve | None:
    """The best run of a method among step sizes, if it has one; None, if all diverged.

    Args:
      problem: what is solved.
      method: "dis_dfsdca" or "cocoa_plus".
      steps: step sizes of Dis-dfSDCA to try; 0: the solver's own.
      score: what is to be small.
      about: of the curve.
      **options: of the solver.
    """
    solver = getattr(asynchronous, method)
    worst = 1e3 * float(problem.objective(problem.initial()))
    curves = []
    for step in steps if method == "dis_dfsdca" else (0.0,):
        chosen = {"step_size": step} if step else {}
        result = attempt(solver, problem, above=worst, **chosen, **options)
        if result is not None:
            step_size = {"step_size": result.step_size} if method == "dis_dfsdca" else {}
            curves.append(Curve({**about, **step_size}, rows_of(result.trace)))
    return least(curves, score)
