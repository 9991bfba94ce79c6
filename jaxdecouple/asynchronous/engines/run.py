"""A run: from the settings of a solver to its result, whichever engine computes the outer iterations."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm
from jaxdecouple.asynchronous.algorithms.sampling import rows_of
from jaxdecouple.asynchronous.algorithms.step_sizes import CALLER, Steps
from jaxdecouple.asynchronous.engines import local, saving, simulated
from jaxdecouple.asynchronous.engines.messages import Go, Job, Task
from jaxdecouple.asynchronous.engines.options import Settings
from jaxdecouple.asynchronous.outer import Outer
from jaxdecouple.asynchronous.problems.problem import Problem
from jaxdecouple.asynchronous.result import Result
from jaxdecouple.asynchronous.trace import Meter, Record, Trace

CONVERGED = 1e-2  # what counts as converged where no tol is given


class ConvergenceWarning(UserWarning):
    """A run has ended before it converged."""


class EngineWarning(UserWarning):
    """Processes took longer than all that they computed: one loop, which sends no messages, would have been faster."""


class DivergenceWarning(ConvergenceWarning):
    """A run was stopped, since its objective rose far above where it began, or is no number any more."""


def solve(
    problem: Problem,
    algorithm: Algorithm,
    settings: Settings,
    steps: Steps,
    at: Outer | None = None,
    about: str = "",
    is_end: bool = True,
    prefix: str = "",
) -> Result:
    """Solves a problem by messages to a server, with any of the engines.

    Args:
      problem: the whole problem.
      algorithm: what is computed.
      settings: of the run.
      steps: the step sizes.
      at: where another run has ended that this one goes on from, which has shown it; None: as the settings say.
      about: what else makes the run the one it is, for its checkpoints.
      is_end: whether it is to say so if it has not converged.
      prefix: of ``step_size``, as the caller names it.

    Raises:
      ValueError: settings that cannot be used, a checkpoint among them, or a problem that cannot be sent to others.
      ServerLost: the server ended before its time.
      WorkersLost: a worker could not be kept alive.
    """
    settings = settings.for_(problem, algorithm)
    is_new = at is None
    if at is None:
        at = _dual_start(problem, algorithm, settings) if algorithm.has_dual else Outer(start_of(problem, settings))
    run = Run(problem, algorithm, settings, steps, about, is_end, prefix)
    at = run.resumed(at)
    if settings.engine == "simulated":
        outers = simulated.run(problem, algorithm, settings, at, run.epochs, steps.safeguarded)
    else:
        outers = _serve(run, at)
    return run.measured(at, outers, is_new=is_new)


def start_of(problem: Problem, settings: Settings) -> jax.Array:
    """w at the start.

    Raises:
      ValueError: it has another length than w.
    """
    start = problem.initial() if settings.start is None else jnp.asarray(settings.start, problem.dtype)
    if start.shape != (problem.d,):
        raise ValueError(f"start has shape {start.shape}, and w {(problem.d,)}; write that many numbers")
    return start


@jax.jit
def _initial_dual(problem: Problem) -> jax.Array:
    return problem.initial_dual()


def _dual_start(problem: Problem, algorithm: Algorithm, settings: Settings) -> Outer:
    if settings.start is not None:
        raise ValueError(f"start is given, and {algorithm.name} has a w that follows from alpha; leave it out")
    alpha = _initial_dual(problem)
    if settings.alpha is None:
        return Outer(jnp.zeros(problem.d, problem.dtype), alpha)
    given = jnp.asarray(settings.alpha, problem.dtype)
    if given.shape != alpha.shape:
        raise ValueError(f"alpha has shape {given.shape}, and here {alpha.shape}; write that of such a problem")
    given = problem.feasible(given)
    return Outer(problem.primal(given), given)


@dataclasses.dataclass
class Run:
    """One run, and what its outer iterations are measured, judged and saved by.

    Attributes:
      problem: the whole problem.
      algorithm: what is computed.
      settings: of the run.
      steps: the step sizes.
      about: what else makes the run the one it is.
      is_end: whether it is to say so if it has not converged.
      prefix: of ``step_size``, as the caller names it.
      began: objective and squared gradient at the start of the run that is gone on with, if one is.
    """

    problem: Problem
    algorithm: Algorithm
    settings: Settings
    steps: Steps
    about: str = ""
    is_end: bool = True
    prefix: str = ""
    began: tuple[float, float] | None = None

    @property
    def epochs(self) -> float:
        """Gradients of single examples in an outer iteration, by n."""
        of_messages = self.settings.inner_steps * self.algorithm.h * self.algorithm.gradients_per_example
        return of_messages / self.problem.n + (1 if self.algorithm.needs_mean else 0)

    @property
    def fingerprint(self) -> str:
        """What makes the run the one it is; a checkpoint of another is refused."""
        problem, settings = self.problem, self.settings
        what = f"{self.algorithm} of {type(problem).__name__} with n={problem.n}, d={problem.d}, l2={problem.l2!r}"
        own = [f"{name}={_short(getattr(settings, name))}" for name in ("workers", "inner_steps", "seed")]
        how = f"data {_digest(problem)}, {', '.join(own)}, steps {self._rule}"
        text = f"{what}, {how}{self.about and ', '}{self.about}"
        if settings.engine != "simulated":
            return text
        simulated = [f"{name}={_short(getattr(settings, name))}" for name in ("delays", "clock", "stragglers")]
        return f"{text}{saving.SIMULATED}{', '.join(simulated)}"

    @property
    def _rule(self) -> str:
        return "safeguarded" if self.steps.safeguarded else repr(self.steps)

    def resumed(self, at: Outer) -> Outer:
        """``at``, or what the checkpoint to go on from holds.

        Raises:
          ValueError: a checkpoint cannot be used, or could not be written.
        """
        if self.settings.checkpoint:
            saving.check_writable(self.settings.checkpoint)
        if not self.settings.resume:
            return at
        at, self.steps.state, self.began = saving.load(self.settings.resume, self.fingerprint)
        return at

    def measured(self, at: Outer, outers: Generator[Outer, Any, None], *, is_new: bool = True) -> Result:
        """The result: each outer iteration is measured when it is done, judged, shown and saved.

        Args:
          at: the start.
          outers: the outer iterations after it; each is sent how to `Go` on.
          is_new: whether the start is to be shown.
        """
        settings, best = self.settings, self.settings.optimum
        if best is None and (known := self.problem.optimum()) is not None:
            best = known[1] if isinstance(known[1], Tracer) else float(known[1])
        meter, start = Meter(self.problem, best, settings.on_record), at
        fingerprint = self.fingerprint if settings.checkpoint else ""
        record = initial = meter.measure(at, self.steps.of(at.outer))
        began = self.began or (initial.objective, initial.squared_gradient)
        first = dataclasses.replace(initial, objective=began[0], squared_gradient=began[1])
        meter.add(record, at.w, is_shown=is_new)
        with contextlib.closing(outers), _terminated() as is_terminated:
            while at.outer < settings.outer_steps and not self._is_over(first, record):
                eta = self.steps.of(at.outer)
                if record is initial:
                    next(outers)
                done = outers.send(Go(self.algorithm.shrunk(eta, settings.workers), not record.kept))
                at, record = self._judged(at, record, done, meter.measure(done, eta))
                if settings.checkpoint:
                    saving.save(settings.checkpoint, at, self.steps.state, began, fingerprint)
                meter.add(record, at.w)
                if is_terminated():
                    raise SystemExit(128 + signal.SIGTERM)
        self._warn(first, record)
        self._warn_of_messages(start, at)
        alpha = None if at.alpha is None else jnp.asarray(at.alpha)
        converged = self._has_converged(first, record, settings.tol or CONVERGED)
        return Result(jnp.asarray(at.w), alpha, Trace(meter.records), self.steps.first, at.lost, converged)

    def _judged(self, before: Outer, last: Record, done: Outer, record: Record) -> tuple[Outer, Record]:
        """What there is then, and its record; w and alpha are those before, if it got worse."""
        if not self.steps.safeguarded or self.steps.keeps(_merit(last), _merit(record)):
            return done, record
        level = ("objective", "squared_gradient", "gap", "relation", "suboptimality")
        as_before = {name: getattr(last, name) for name in level}
        return (
            dataclasses.replace(done, w=before.w, alpha=before.alpha),
            dataclasses.replace(record, kept=False, **as_before),
        )

    def _is_over(self, first: Record, record: Record) -> bool:
        if isinstance(record.objective, Tracer):
            return False
        tol = self.settings.tol
        return self._has_diverged(first, record) or bool(tol and self._has_converged(first, record, tol))

    def _has_diverged(self, first: Record, record: Record) -> bool:
        """Whether the objective is no number, or, where that means something, far above where it began."""
        height = 10 * (abs(first.objective) or first.squared_gradient)
        too_high = self.algorithm.can_diverge and record.objective > first.objective + height
        return too_high or not math.isfinite(record.objective)

    def _distance(self, first: Record, record: Record) -> tuple[Any, str]:
        """How far a run is from its minimum, as ``tol`` counts it, and in words.

        Where P is strongly convex, with l2, it is at most ``|grad P|^2 / (2 l2)`` above its minimum.
        """
        l2 = self.problem.l2
        if record.gap is not None:
            gap, what = record.gap, "the duality gap is"
        elif self.problem.is_convex and (isinstance(l2, Tracer) or l2 > 0):
            gap, what = record.squared_gradient / (2 * l2), "the objective may be above its minimum by"
        elif _traced(record):
            return (record.squared_gradient / jnp.maximum(first.squared_gradient, jnp.finfo(float).tiny)) ** 0.5, ""
        else:
            share = (record.squared_gradient / (first.squared_gradient or 1.0)) ** 0.5
            return share, f"the gradient's norm is {share:.2g} times that at the start"
        if _traced(record):
            return gap / abs(record.objective), what
        if gap <= 0:  # by rounding
            return 0.0, what
        share = gap / abs(record.objective) if record.objective else math.inf
        return share, f"{what} {gap:.3g}, {share:.2g} of the objective"

    def _has_converged(self, first: Record, record: Record, tol: float) -> Any:
        return self._distance(first, record)[0] <= tol

    def _warn(self, first: Record, record: Record) -> None:
        """Says it where the run did not converge."""
        if _traced(record):
            return
        name = self.algorithm.name
        if self._has_diverged(first, record):
            text = f"{name} diverged: the objective was {first.objective:.6g} and is {record.objective:.6g} after "
            text += f"outer iteration {record.outer}"
            if self.algorithm.can_diverge:
                text += f", with {self.prefix}step_size {record.step_size:.6g}; write a smaller {self.prefix}step_size"
            else:
                text += "; write a larger l2, or X with columns of one size"
            warnings.warn(text, DivergenceWarning, **CALLER)
            return
        if not self.is_end or self._has_converged(first, record, self.settings.tol or CONVERGED):
            return
        _, far = self._distance(first, record)
        remedy = "write more outer_steps, or a larger tol" if self.settings.tol else "write more outer_steps, or a tol"
        text = f"{name} has not converged: after {record.outer} outer iterations {far}; {remedy} that is reached"
        warnings.warn(text, ConvergenceWarning, **CALLER)

    def _warn_of_messages(self, start: Outer, end: Outer) -> None:
        """Says it where most of the time went into messages. Who is late on purpose, or what shares w, is left out."""
        computing, took = end.computing - start.computing, end.seconds - start.seconds
        if self.settings.stragglers.probability or not 0 < computing < took:
            return
        workers = "1 worker" if self.settings.workers == 1 else f"{self.settings.workers} workers"
        text = f"{workers} took {took:.3g} s for what takes {computing:.3g} s to compute: one loop, which sends no "
        text += "messages, would be faster; write engine='simulated', or more examples in a message than "
        text += f"{self.algorithm.h}"
        warnings.warn(text, EngineWarning, **CALLER)


def _merit(record: Record) -> float:
    """What is to be small: the duality gap, or the objective where there is none; infinite where it is no number."""
    merit = record.objective if record.gap is None else record.gap
    return merit if math.isfinite(merit) else math.inf


def _traced(record: Record) -> bool:
    return isinstance(record.objective, Tracer)


def _digest(problem: Problem) -> str:
    """Of all numbers that a problem is made of, and of what else makes it the one it is."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(problem):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    for field in dataclasses.fields(problem):
        value = getattr(problem, field.name)
        if field.metadata.get("static"):
            name = getattr(value, "__qualname__", None)  # of a function, whose repr has its address
            digest.update(f"{field.name}={name or repr(value)}".encode())
    return digest.hexdigest()[:12]


def _short(value: Any) -> str:
    return hashlib.sha256(value.tobytes()).hexdigest()[:12] if isinstance(value, np.ndarray) else repr(value)


@contextlib.contextmanager
def _terminated() -> Iterator[Any]:
    """Whether this process was asked to end: it does so at the end of an outer iteration, when that is saved."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield lambda: bool(asked)
        return
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _serve(run: Run, at: Outer) -> Generator[Outer, Any, None]:
    """The outer iterations after ``at`` by processes or actors."""
    problem, algorithm, settings, steps = run.problem, run.algorithm, run.settings, run.steps
    of_all = [algorithm.shrunk(steps.of(outer), settings.workers) for outer in range(settings.outer_steps)]
    job = Job(
        in_rounds=algorithm.in_rounds,
        needs_mean=algorithm.needs_mean,
        n=problem.n,
        l2=float(problem.l2),
        workers=settings.workers,
        inner_steps=settings.inner_steps,
        epochs=run.epochs,
        steps=tuple(of_all),
        safeguarded=steps.safeguarded,
        checkpoint=settings.checkpoint,
    )
    at = dataclasses.replace(at, w=np.asarray(at.w), alpha=None if at.alpha is None else np.asarray(at.alpha))
    tasks = []
    for worker in range(settings.workers):
        part = on_host(problem.part(rows_of(worker, settings.workers, problem.n)))
        tasks.append(Task(part, algorithm, worker, settings.seed, settings.stragglers))
    if settings.engine == "ray":
        from jaxdecouple.asynchronous.engines import ray_actors  # Ray need not be installed

        return ray_actors.serve(job, at, tasks)
    return local.serve(job, at, tasks)


def on_host(problem: Problem) -> Problem:
    """The problem with arrays of NumPy, which any process can read."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, problem)
