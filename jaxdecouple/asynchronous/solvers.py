"""The solvers: one function for each method of the thesis's chapters 2 and 3, run by any of the engines."""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.algorithms import bounds
from jaxdecouple.asynchronous.algorithms.algorithm import (
    Algorithm,
    DualAscent,
    DualFree,
    Server,
    Sgd,
    Svrg,
    SvrgInRounds,
)
from jaxdecouple.asynchronous.algorithms.sampling import SAMPLINGS, Sampling, draws, rows_of
from jaxdecouple.asynchronous.engines import clock as plan
from jaxdecouple.asynchronous.engines import run as running
from jaxdecouple.asynchronous.engines import simulated
from jaxdecouple.asynchronous.engines.options import Options, Settings
from jaxdecouple.asynchronous.problems.problem import Linear, Problem
from jaxdecouple.asynchronous.result import Result
from jaxdecouple.asynchronous.trace import Meter, Record, Trace


def sgd(
    problem: Problem, *, step_size: float, decay: float = 0.0, batch_size: int = 10, **options: Unpack[Options]
) -> Result:
    """Stochastic gradient descent with the polynomial rate of section 2.5.1; asynchronous with several workers
    (AsySGD).

        w <- w - eta_s (1/|I|) sum_{i in I} grad f_i(w_{t - tau})        eta_s = step_size / (1 + s)^decay

    Args:
      problem: any.
      step_size: alpha of section 2.5.1.
      decay: beta of section 2.5.1, from 0 to 1; s counts outer iterations, which are epochs if ``inner_steps`` is not
        given.
      batch_size: |I|.
      **options: as of `Options`.

    Raises:
      ValueError: settings that cannot be used.
    """
    _check_positive("step_size", step_size)
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is {decay}; write a number from 0 to 1")
    settings = Settings.of("sgd", options)
    steps = [step_size / (1 + s) ** decay for s in range(settings.outer_steps)]
    return _solve(problem, Sgd(batch_size), settings, steps)


def distributed_asysvrg(
    problem: Problem, *, step_size: float | None = None, batch_size: int = 10, **options: Unpack[Options]
) -> Result:
    """Distributed-AsySVRG, Algorithms 2 and 3; the plain SVRG with one worker (`svrg`).

        v = (1/|I|) sum_{i in I} (grad f_i(w_{t-tau}) - grad f_i(snapshot) + grad f(snapshot))          (eq. 2.33)
        w <- w - eta v                                                                                  (eq. 2.32)

    Args:
      problem: any.
      step_size: eta, constant; None: a tenth of 1 / (L + l2), where L is known.
      batch_size: |I|.
      **options: as of `Options`; ``inner_steps`` is m.

    Raises:
      ValueError: settings that cannot be used.

    Warns:
      StepSizeWarning: ``step_size`` is given and beyond what theorem 2.4.1 allows.
    """
    return _svrg(problem, Svrg(batch_size), step_size, Settings.of("distributed_asysvrg", options))


def svrg(
    problem: Problem, *, step_size: float | None = None, batch_size: int = 10, **options: Unpack[Options]
) -> Result:
    """Stochastic variance reduced gradient: `distributed_asysvrg` with one worker and no delay."""
    return distributed_asysvrg(problem, step_size=step_size, batch_size=batch_size, **_alone("svrg", options))


def distributed_svrg(
    problem: Problem, *, step_size: float | None = None, batch_size: int = 10, **options: Unpack[Options]
) -> Result:
    """Synchronous SVRG: `distributed_asysvrg` in rounds, each a step along the mean of one message of every worker."""
    return _svrg(problem, SvrgInRounds(batch_size), step_size, Settings.of("distributed_svrg", options))


def _svrg(problem: Problem, algorithm: Algorithm, step_size: float | None, settings: Settings) -> Result:
    largest = None if problem.smoothness is None else float(np.max(problem.smoothness)) + problem.l2
    if step_size is None:
        if largest is None:
            raise ValueError("no Lipschitz constant is known for this problem; write step_size=...")
        step_size = 0.1 / largest
    elif largest is not None:
        settings = settings.for_(problem, algorithm)
        delay = settings.expected_delay
        bound = bounds.variance_reduced(largest=largest, h=algorithm.h, delay=delay, inner_steps=settings.inner_steps)
        terms = f"L = {largest:.3g}, b = {algorithm.h}, Delta = {delay}, m = {settings.inner_steps}"
        bounds.warn_beyond(step_size, bound, "theorem 2.4.1", terms)
    _check_positive("step_size", step_size)
    return _solve(problem, algorithm, settings, [step_size] * settings.outer_steps)


def sgd_svrg(
    problem: Problem,
    *,
    sgd_epochs: int = 10,
    sgd_step_size: float,
    sgd_decay: float = 0.0,
    step_size: float | None = None,
    batch_size: int = 10,
    **options: Unpack[Options],
) -> Result:
    """SVRG from where some epochs of SGD have led (SGD_SVRG, section 2.5.1); the trace holds both parts.

    Args:
      problem: any.
      sgd_epochs: outer iterations of `sgd`; they are taken from ``outer_steps``.
      sgd_step_size: of `sgd`.
      sgd_decay: of `sgd`.
      step_size: of `distributed_asysvrg`, as are the rest.
      batch_size: |I|.
      **options: as of `Options`.

    Raises:
      ValueError: settings that cannot be used.
    """
    settings = Settings.of("sgd_svrg", options)
    if not 1 <= sgd_epochs < settings.outer_steps:
        raise ValueError(
            f"sgd_epochs is {sgd_epochs} of {settings.outer_steps} outer_steps; write a number from 1 to "
            f"{settings.outer_steps - 1}"
        )
    if settings.checkpoint or settings.resume:
        raise ValueError("sgd_svrg is two runs; write sgd and distributed_asysvrg(start=...), each with its checkpoint")
    warm = options | {"outer_steps": sgd_epochs}
    first = sgd(problem, step_size=sgd_step_size, decay=sgd_decay, batch_size=batch_size, **warm)
    at, records = first.trace[-1], list(first.trace)

    def go_on(record: Record, w: jax.Array) -> None:
        """Counts on from the first run, whose last record is the second's first."""
        if record.outer:
            counts = ("outer", "messages", "epochs", "seconds")
            both = {name: getattr(record, name) + getattr(at, name) for name in counts}
            records.append(dataclasses.replace(record, **both))
            if settings.on_record:
                settings.on_record(records[-1], w)

    rest = {"outer_steps": settings.outer_steps - sgd_epochs, "start": first.w, "on_record": go_on}
    rest["seed"] = settings.seed + 1  # other examples than those of the first run
    second = distributed_asysvrg(problem, step_size=step_size, batch_size=batch_size, **(options | rest))
    return dataclasses.replace(second, trace=Trace(records), lost=first.lost + second.lost)


def dis_dfsdca(
    problem: Problem,
    *,
    local_steps: int = 100,
    step_size: float | None = None,
    sampling: Sampling = "uniform",
    **options: Unpack[Options],
) -> Result:
    """Dis-dfSDCA, Algorithms 6 and 7: dual-free coordinate ascent by workers that nobody waits for.

        kappa = grad phi_i(w_{d(t)}) + alpha_i,  alpha_i <- alpha_i - eta l2 n kappa,  v <- v + kappa   (eqs. 3.6-3.8)
        w <- w - eta v                                                                                  (eq. 3.5)

    Args:
      problem: with l2 above 0; its phi_i may be non-convex, if their sum is convex.
      local_steps: H, examples of a message.
      step_size: eta; None: that of `bounds.dual_free_default`.
      sampling: of examples: "uniform", "importance" or "adaptive" (section 3.3.2).
      **options: as of `Options`; ``inner_steps`` is T.

    Raises:
      ValueError: settings that cannot be used.

    Warns:
      StepSizeWarning: ``step_size`` is given and beyond eq. 3.18, or 3.30 for phi_i that are not convex.
    """
    _check_dual(problem, "dis_dfsdca")
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling is {sampling!r}; write one of {', '.join(SAMPLINGS)}")
    if sampling != "uniform" and problem.smoothness is None:
        raise ValueError(f"{sampling} sampling needs Lipschitz constants; write sampling='uniform', or give bounds")
    algorithm = DualFree(local_steps, sampling)
    settings = Settings.of("dis_dfsdca", options).for_(problem, algorithm)
    if step_size is None:
        step_size = bounds.dual_free_default(problem, h=local_steps, workers=settings.workers)
    elif problem.smoothness is not None:
        convex = isinstance(problem, Linear) or getattr(problem, "convex_parts", False)
        bound = bounds.dual_free_convex if convex else bounds.dual_free_nonconvex
        largest, delay = float(np.max(problem.smoothness)), settings.expected_delay
        limit = bound(largest=largest, l2=problem.l2, n=problem.n, h=local_steps, delay=delay)
        terms = f"L = {largest:.3g}, H = {local_steps}, tau = {delay}, n = {problem.n}, l2 = {problem.l2:g}"
        bounds.warn_beyond(step_size, limit, f"eq. {'3.18' if convex else '3.30'}", terms)
    _check_positive("step_size", step_size)
    return _solve(problem, algorithm, settings, [step_size] * settings.outer_steps)


def dfsdca(
    problem: Problem, *, step_size: float | None = None, sampling: Sampling = "uniform", **options: Unpack[Options]
) -> Result:
    """Dual-free SDCA, Algorithm 5: `dis_dfsdca` with one worker and one example in a message."""
    alone = _alone("dfsdca", options)
    return dis_dfsdca(problem, local_steps=1, step_size=step_size, sampling=sampling, **alone)


def cocoa_plus(problem: Problem, *, local_steps: int = 100, **options: Unpack[Options]) -> Result:
    """CoCoA+ with SDCA as local solver (Ma et al. 2015), the baseline of section 3.5; synchronous, and without a step
    size.

    Args:
      problem: a linear one with a known dual.
      local_steps: H, examples of a message.
      **options: as of `Options`.

    Raises:
      ValueError: settings that cannot be used, or a problem without a dual.
    """
    _check_dual(problem, "cocoa_plus")
    if not isinstance(problem, Linear):
        raise ValueError(
            f"cocoa_plus needs the conjugates of the phi_i, which {type(problem).__name__} does not have; write "
            "dis_dfsdca, "
            "which does without"
        )
    settings = Settings.of("cocoa_plus", options)
    algorithm = DualAscent(local_steps, sigma=float(settings.workers))
    return _solve(problem, algorithm, settings, [1.0] * settings.outer_steps)


def sdca(problem: Problem, **options: Unpack[Options]) -> Result:
    """Stochastic dual coordinate ascent, Algorithm 4: `cocoa_plus` with one worker."""
    h = min(100, problem.n)
    return cocoa_plus(problem, local_steps=h, **_alone("sdca", options))


def _alone(name: str, options: Options) -> Any:
    """The options of a solver that has one worker."""
    Settings.of(name, options)
    if options.get("workers", 1) != 1:
        raise ValueError(f"workers is {options['workers']}, and {name} has one; leave it out")
    return {**options, "workers": 1}


def _check_positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; write a positive number")


def _check_dual(problem: Problem, name: str) -> None:
    if problem.l2 <= 0:
        raise ValueError(
            f"l2 is {problem.l2:g}, and {name} needs it above 0: w is the sum of the dual vectors by l2 n; write a "
            "positive l2"
        )


def _solve(problem: Problem, algorithm: Algorithm, settings: Settings, steps: list[float]) -> Result:
    settings = settings.for_(problem, algorithm)
    start = problem.initial() if settings.start is None else jnp.asarray(settings.start, problem.dtype)
    if start.shape != (problem.d,):
        raise ValueError(f"start has shape {start.shape}, and w {(problem.d,)}; write that many numbers")
    if algorithm.has_dual:
        if settings.start is not None:
            raise ValueError(f"start is given, and {algorithm.name} begins where its dual vectors are 0; leave it out")
        server = Server(jnp.zeros(problem.d, problem.dtype), problem.initial_dual())
    else:
        server = Server(jnp.array(start))  # a copy, since it will be given up
    applied = [algorithm.shrunk(step, settings.workers) for step in steps]
    meter = Meter(problem, best_of(problem, settings.optimum), settings.on_record)
    per_outer = epochs_per_outer(problem, algorithm, settings)
    if settings.engine != "simulated":
        return running.run(problem, algorithm, settings, server, applied, meter, per_outer)
    return _simulate(problem, algorithm, settings, server, applied, meter, per_outer)


def _simulate(
    problem: Problem,
    algorithm: Algorithm,
    settings: Settings,
    server: Server,
    steps: list[float],
    meter: Meter,
    per_outer: float,
) -> Result:
    workers = settings.workers
    mine = [rows_of(k, workers, problem.n) for k in range(workers)]
    plans = _plans(algorithm, settings, [len(rows) for rows in mine])
    drawn = [
        draws(problem, mine[k], h=algorithm.h, sampling=algorithm.sampling, seed=(settings.seed, k, 0))
        for k in range(workers)
    ]
    meter.record(jnp.copy(server.w), server.alpha)  # a copy, since the server's own is given up
    states = simulated.run(problem, algorithm, server, plans, drawn, steps)
    for outer, (of_outer, state) in enumerate(zip(plans, states, strict=True), 1):
        server = state
        meter.record(
            jnp.copy(state.w),
            state.alpha,
            outer=outer,
            messages=outer * settings.inner_steps,
            epochs=outer * per_outer,
            seconds=of_outer.end,
            delays=of_outer.delay,
        )
    return Result(server.w, server.alpha, Trace(meter.records), steps[0])


def best_of(problem: Problem, optimum: float | None) -> float | None:
    """P(w*), if it is given or known."""
    if optimum is not None:
        return optimum
    known = problem.optimum()
    return None if known is None else float(known[1])


def epochs_per_outer(problem: Problem, algorithm: Algorithm, settings: Settings) -> float:
    """Gradients of single examples in an outer iteration, by n."""
    of_messages = settings.inner_steps * algorithm.h * algorithm.gradients_per_example
    return of_messages / problem.n + (1 if algorithm.needs_mean else 0)


def _plans(algorithm: Algorithm, settings: Settings, sizes: list[int]) -> list[plan.Plan]:
    counts = {name: getattr(settings, name) for name in ("workers", "outer_steps", "inner_steps")}
    if settings.delays is not None:
        if algorithm.in_rounds:
            raise ValueError(f"delays are given, and {algorithm.name} is synchronous; leave them out")
        return plan.given(settings.delays, **counts)
    of_outer = tuple(sizes) if algorithm.needs_mean else ()
    work = plan.Work(algorithm.h * algorithm.gradients_per_example, of_outer)
    make = plan.synchronous if algorithm.in_rounds else plan.asynchronous
    return make(settings.clock, settings.stragglers, work, **counts)
