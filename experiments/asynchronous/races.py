"""Dis-dfSDCA against CoCoA+ where a worker is sometimes late: what figures 6 and 7 have in common (section 3.5.1)."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.asynchronous import figures
from experiments.asynchronous.curves import Curve, named, rows_of, shown
from experiments.asynchronous.solving import DTYPES, ENGINES, guard, stragglers
from experiments.settings import option
from experiments.training.stopping import NonFiniteLoss
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import (
    Clock,
    ConvergenceWarning,
    DivergenceWarning,
    EngineWarning,
    Linear,
    Record,
    Result,
    StepSizeWarning,
    Stragglers,
)
from jaxdecouple.asynchronous.sources import load, signs

NAMES = {"dis_dfsdca": "Dis-dfSDCA", "cocoa_plus": "CoCoA+"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs(figures.Figure):
    """What things cost on the virtual clock, and who is late; each field is a flag."""

    engine: str = option(
        "simulated", f"one of {', '.join(ENGINES)}; seconds are a virtual clock's, or real ones", choices=ENGINES
    )
    straggler_probability: float = option(0.2, "p: how often a message of worker 0 is late", least=0)
    straggler_slowdown: tuple[float, ...] = option((0.0, 10.0), "it is late by m computing times, m between these")
    example_seconds: float = option(1e-6, "virtual clock: a gradient of one example", least=0)
    message_seconds: float = option(1e-5, "virtual clock: the way to the server and back", thesis=1e-4, least=0)
    update_seconds: float = option(1e-6, "virtual clock: an update by the server", thesis=1e-5, least=0)
    dtype: str = option("float64", "float64 or float32", choices=DTYPES)
    seed: int = option(0, "of the examples that are chosen, of lateness, and of made data", least=0)

    def check(self) -> None:
        super().check()
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


def attempt(solver: Callable[..., Result], *arguments: Any, above: float = math.inf, **options: Any) -> Result | None:
    """Runs a solver, without its warnings; None, if the run diverged.

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
        for expected in (StepSizeWarning, ConvergenceWarning, EngineWarning):
            warnings.simplefilter("ignore", expected)
        warnings.simplefilter("error", DivergenceWarning)
        try:
            return solver(*arguments, on_record=note, **options)
        except (NonFiniteLoss, DivergenceWarning):
            return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Race(Costs):
    """Dis-dfSDCA and CoCoA+ on the quadratic loss of eq. 3.38, to a duality gap; each field is a flag."""

    data: tuple[str, ...] = option(
        ("made:10000x22:0.41", "made:20000x54:0.22"),
        "data sets: libsvm:PATH, digits, npz:PATH, made:NxD:DENSITY",
        thesis=("made:49990x22:0.41", "made:581012x54:0.22", "made:677399x47236:0.0016"),
    )
    num_examples: int = option(0, "the first so many examples of each data set; 0: all", least=0)
    normalize: bool = option(False, "scale each example to Euclidean norm 1")
    l2: float = option(0.1, "lambda")
    workers: tuple[int, ...] = option((4,), "K", least=1)
    step_sizes: tuple[float, ...] = option(
        (0.0,), "eta of Dis-dfSDCA to try; 0: the solver's own", thesis=(0.0, 1.0, 0.1, 1e-3, 1e-4), least=0
    )
    outer_steps: int = option(20, "S, outer iterations of an epoch each", thesis=50, least=1)
    target: float = option(1e-6, "the duality gap whose time is told")

    def check(self) -> None:
        super().check()
        if not self.target > 0:
            raise ValueError(f"target is {self.target}; write a duality gap above 0, such as 1e-6")

    def problem(self, name: str) -> Linear:
        """The binary classification of this data set.

        Raises:
          ValueError: the data cannot be had.
        """
        source = load(name, dtype=np.dtype(self.dtype), seed=self.seed).first(self.num_examples)
        x = source.x
        if self.normalize:
            import sklearn.preprocessing  # --help need not wait for it

            x = sklearn.preprocessing.normalize(x)
        return asynchronous.quadratic(x, signs(source.y), l2=self.l2)

    def seconds(self, curve: Curve) -> float:
        """Until the target; infinite, if it is not reached."""
        return curve.reaches(self.target, "gap", "seconds")

    def race(self, name: str, problem: Linear, method: str, workers: int, h: int, **options: Any) -> Curve:
        """The run of a method that is first at the target, among the step sizes if it has any; prints a line.

        Raises:
          ValueError: all step sizes diverge.
        """
        worst = 1e3 * float(problem.objective(problem.initial()))
        about = {"data": named(name), "n": problem.n, "d": problem.d, "method": method, "workers": workers}
        about |= {"h": h}
        # Both as section 3.4.1 and Algorithm 4: a random order of all examples, which CoCoA+ has, would favour it.
        drawn = {"sampling": "uniform", "local_steps": h}
        options = {"workers": workers, "outer_steps": self.outer_steps, **drawn, **self.options(), **options}
        curves = []
        for step in self.step_sizes if method == "dis_dfsdca" else (0.0,):
            chosen = {"step_size": step} if step else {}
            result = attempt(getattr(asynchronous, method), problem, above=worst, **chosen, **options)
            if result is not None:
                own = {"step_size": result.step_size} if method == "dis_dfsdca" else {}
                curves.append(Curve({**about, **own}, rows_of(result.trace)))
        if not curves:
            raise ValueError(
                f"all step sizes diverge on {name}, {workers} workers, H = {h}; write smaller --step_sizes"
            )
        best = min(curves, key=lambda curve: (self.seconds(curve), curve.last("gap")))
        when = f"{shown(self.seconds(best))} s, {shown(best.reaches(self.target, 'gap', 'epochs'))} epochs"
        who = f"{about['data']}, {workers} workers, {NAMES[method]}, H = {h}"
        print(f"{who}: gap {self.target:g} after {when}; at the end {best.last('gap'):.2e}", flush=True)
        return best

    def columns(self, curves: Sequence[Curve]) -> figures.Columns:
        return {
            "data": lambda curve: curve.about["data"],
            "n x d": lambda curve: f"{curve.about['n']} x {curve.about['d']}",
            "workers": lambda curve: str(curve.about["workers"]),
            "method": lambda curve: NAMES[curve.about["method"]],
            "H": lambda curve: str(curve.about["h"]),
            "eta": lambda curve: shown(curve.about.get("step_size", math.nan)),
            f"time to gap {self.target:g} (s)": lambda curve: shown(self.seconds(curve)),
            "epochs to it": lambda curve: shown(curve.reaches(self.target, "gap", "epochs")),
            "gap at the end": lambda curve: f"{curve.last('gap'):.2e}",
        }

    def described_straggler(self) -> str:
        """For the title of a picture."""
        low, high = self.straggler_slowdown
        return f"worker 0 late with p = {self.straggler_probability:g} by {low:g} to {high:g} computing times"
