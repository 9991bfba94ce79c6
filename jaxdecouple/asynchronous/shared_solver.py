"""Shared-AsySVRG, Algorithm 1: threads that change a few random coordinates of one shared vector, without a lock.

What a thread reads is no version of w: of the last updates it may see some and not others (eq. 2.6).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.algorithms import bounds
from jaxdecouple.asynchronous.algorithms.algorithm import Svrg, View
from jaxdecouple.asynchronous.algorithms.sampling import coordinate_draws, draws
from jaxdecouple.asynchronous.engines import clock as plan
from jaxdecouple.asynchronous.engines import sharing
from jaxdecouple.asynchronous.engines.clock import DrawnDelays, Plan
from jaxdecouple.asynchronous.engines.options import Options, Settings
from jaxdecouple.asynchronous.problems.problem import Problem
from jaxdecouple.asynchronous.result import Result
from jaxdecouple.asynchronous.solvers import best_of, epochs_per_outer
from jaxdecouple.asynchronous.trace import Meter, Trace


class Iterations(NamedTuple):
    """The iterations of an outer one, for the compiled loop.

    Attributes:
      rows: the mini-batch I_t, ``[m, b]``.
      coordinates: those that are changed, k_t, ``[m, c]``.
      missing: which of the updates t - 1, t - 2, ..., t - Delta the thread has not seen: J(t), ``[m, Delta]``.
    """

    rows: np.ndarray
    coordinates: np.ndarray
    missing: np.ndarray


def shared_asysvrg(
    problem: Problem,
    *,
    step_size: float,
    batch_size: int = 10,
    coordinates: int = 1,
    missing: np.ndarray | None = None,
    **options: Unpack[Options],
) -> Result:
    """Shared-AsySVRG, Algorithm 1.

        w_hat = w_t - sum_{j in J(t)} (w_{j+1} - w_j)                                                    (eq. 2.6)
        v     = (1/|I|) sum_{i in I} (grad f_i(w_hat) - grad f_i(snapshot) + grad f(snapshot))           (eq. 2.5)
        (w_{t+1})_k = (w_t)_k - eta (v)_k        for the coordinates k that were chosen                  (eq. 2.4)

    Args:
      problem: any.
      step_size: eta, constant.
      batch_size: |I_t|, chosen among all examples by every thread.
      coordinates: how many random coordinates an update changes; Algorithm 1 has one, section 2.5.1 a thousand.
      missing: the simulated engine's: which of the updates t - 1, t - 2, ... iteration t does not see, a boolean array
        ``[outer_steps * inner_steps, Delta]``, in place of ``delays``. With a number or an array as ``delays`` the last
        so
        many are missing; with `DrawnDelays` each of the last ``bound``, with probability 1/2.
      **options: as of `Options`; ``workers`` counts threads, processes in the engine "local", which keeps w in memory
        that
        they share; the engine "ray" has no shared memory.

    Raises:
      ValueError: settings that cannot be used.

    Warns:
      StepSizeWarning: ``step_size`` is beyond what theorem 2.3.1 allows.
    """
    if not 1 <= coordinates <= problem.d:
        raise ValueError(f"coordinates is {coordinates}, and w has {problem.d}; write a number from 1 to {problem.d}")
    if not (np.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size is {step_size}; write a positive number")
    algorithm = Svrg(batch_size)
    settings = Settings.of("shared_asysvrg", options).for_(problem, algorithm)
    if settings.engine == "ray":
        raise ValueError("shared_asysvrg needs shared memory, which Ray's actors do not have; write engine='local'")
    if settings.checkpoint or settings.resume:
        raise ValueError("shared_asysvrg has no server that could be lost; leave checkpoint and resume out")
    if missing is not None and (settings.engine != "simulated" or settings.delays is not None):
        raise ValueError("missing is given, with delays or another engine than 'simulated'; write one of them")
    _warn(problem, settings, step_size, batch_size, coordinates, missing)
    start = problem.initial() if settings.start is None else jnp.asarray(settings.start, problem.dtype)
    meter = Meter(problem, best_of(problem, settings.optimum), settings.on_record)
    per_outer = epochs_per_outer(problem, algorithm, settings)
    if settings.engine == "local":
        return sharing.run(problem, algorithm, settings, start, step_size, coordinates, meter, per_outer)
    return _simulate(problem, algorithm, settings, start, step_size, coordinates, missing, meter, per_outer)


def _warn(
    problem: Problem, settings: Settings, step: float, h: int, coordinates: int, missing: np.ndarray | None
) -> None:
    if problem.smoothness is None:
        return
    largest = float(np.max(problem.smoothness)) + problem.l2
    delay = settings.expected_delay if missing is None else missing.shape[1]
    share, m = problem.d / coordinates, settings.inner_steps
    bound = bounds.variance_reduced(largest=largest, h=h, delay=delay, inner_steps=m, coordinates=share)
    terms = f"L = {largest:.3g}, b = {h}, Delta = {delay}, m = {m}, d = {share:.3g} times the coordinates of an update"
    bounds.warn_beyond(step, bound, "theorem 2.3.1", terms)


def _simulate(
    problem: Problem,
    algorithm: Svrg,
    settings: Settings,
    w: jax.Array,
    step: float,
    coordinates: int,
    missing: np.ndarray | None,
    meter: Meter,
    per_outer: float,
) -> Result:
    plans, unseen = _plans(problem, algorithm, settings, missing)
    everything, seeds = np.arange(problem.n), [(settings.seed, k) for k in range(settings.workers)]
    rows = [draws(problem, everything, h=algorithm.h, sampling="uniform", seed=(*seed, 0)) for seed in seeds]
    chosen = [coordinate_draws(problem.d, coordinates, (*seed, 1)) for seed in seeds]
    meter.record(w, None)
    m, step = settings.inner_steps, jnp.asarray(step, problem.dtype)
    for outer, (of_outer, of_missing) in enumerate(zip(plans, unseen, strict=True), 1):
        iterations = Iterations(
            np.stack([next(rows[k]).rows for k in of_outer.worker]),
            np.stack([next(chosen[k]) for k in of_outer.worker]),
            of_missing,
        )
        w = _outer_iteration(algorithm, problem, w, step, iterations)
        progress = {"outer": outer, "messages": outer * m, "epochs": outer * per_outer, "seconds": of_outer.end}
        meter.record(w, None, delays=of_missing.sum(axis=1), **progress)
    return Result(w, None, Trace(meter.records), float(step))


@functools.partial(jax.jit, static_argnums=0)
def _outer_iteration(
    algorithm: Svrg, problem: Problem, w: jax.Array, step: jax.Array, iterations: Iterations
) -> jax.Array:
    view = View(w, step, w, problem.gradient(w))
    window, count = iterations.missing.shape[1], iterations.coordinates.shape[1]

    def iterate(carry: tuple[jax.Array, ...], now: Iterations) -> tuple[tuple[jax.Array, ...], None]:
        w, places, changes = carry  # and the last updates, youngest first, ``[Delta, c]`` each
        unseen = jnp.where(now.missing[:, None], changes, 0)
        seen = w.at[places].add(-unseen)
        v = algorithm.message(problem, view._replace(w=seen), None, now).v
        change = -step * v[now.coordinates]
        places = jnp.concatenate([now.coordinates[None], places])[:window]
        changes = jnp.concatenate([change[None], changes])[:window]
        return (w.at[now.coordinates].add(change), places, changes), None

    nothing = jnp.zeros((window, count), iterations.coordinates.dtype), jnp.zeros((window, count), w.dtype)
    return jax.lax.scan(iterate, (w, *nothing), iterations)[0][0]


def _plans(
    problem: Problem, algorithm: Svrg, settings: Settings, missing: np.ndarray | None
) -> tuple[list[Plan], list[Any]]:
    """Plans of all outer iterations, and what is missing in each, ``[m, Delta]``."""
    counts: dict[str, int] = {name: getattr(settings, name) for name in ("workers", "outer_steps", "inner_steps")}
    outer, m = settings.outer_steps, settings.inner_steps
    if missing is not None:
        missing = np.asarray(missing, bool)
        if missing.ndim != 2 or len(missing) != outer * m:
            raise ValueError(f"missing has shape {missing.shape}; write [{outer * m}, Delta], a row for each iteration")
        return plan.given(0, **counts), list(_existing(missing.reshape(outer, m, -1)))
    if isinstance(settings.delays, DrawnDelays):
        rng = np.random.default_rng(settings.delays.seed)
        return plan.given(0, **counts), list(_existing(rng.random((outer, m, settings.delays.bound)) < 0.5))
    if settings.delays is not None:
        plans = plan.given(settings.delays, **counts)
    else:
        parts = tuple(len(part) for part in np.array_split(np.arange(problem.n), settings.workers))
        work = plan.Work(algorithm.h * algorithm.gradients_per_example, parts)
        plans = plan.asynchronous(settings.clock, settings.stragglers, work, **counts)
    largest = max(int(of_outer.delay.max()) for of_outer in plans)
    return plans, [np.arange(largest) < of_outer.delay[:, None] for of_outer in plans]


def _existing(missing: np.ndarray) -> np.ndarray:
    """Without updates from before the outer iteration, which began with a barrier."""
    _, m, window = missing.shape
    return missing & (np.arange(window) < np.arange(m)[:, None])
