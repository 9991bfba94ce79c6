"""Shared-AsySVRG, Algorithm 1: threads that change a few random coordinates of one shared vector, without a lock.

What a thread reads is no version of w: of the last updates it may see some and not others (eq. 2.6).
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator
from typing import NamedTuple, Unpack, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxdecouple.asynchronous.algorithms import step_sizes
from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm, Svrg, View
from jaxdecouple.asynchronous.algorithms.sampling import Draw, How, stacked
from jaxdecouple.asynchronous.algorithms.step_sizes import Steps
from jaxdecouple.asynchronous.engines import clock, sharing
from jaxdecouple.asynchronous.engines.clock import DrawnDelays, Plan
from jaxdecouple.asynchronous.engines.messages import Go
from jaxdecouple.asynchronous.engines.options import Options, Settings, check_coordinates
from jaxdecouple.asynchronous.engines.run import Run, on_host, start_of
from jaxdecouple.asynchronous.outer import Outer
from jaxdecouple.asynchronous.problems.problem import Problem
from jaxdecouple.asynchronous.result import Result
from jaxdecouple.asynchronous.trace import ONE_THREAD


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
    batch_size: int | None = None,
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
      batch_size: |I_t|, chosen among all examples by every thread; 10, or n if that is less.
      coordinates: how many random coordinates an update changes; Algorithm 1 has one, section 2.5.1 a thousand.
      missing: the simulated engine's: which of the updates t - 1, t - 2, ... iteration t does not see, a boolean array
        ``[outer_steps * inner_steps, Delta]``, in place of ``delays``. With a number or an array as ``delays`` the last
        so many are missing; with `DrawnDelays` each of the last ``bound``, with probability 1/2.
      **options: see `Options`; ``workers`` counts threads, processes in the engine "local", which keeps w in memory
        that they share; the engine "ray" has no shared memory.

    Raises:
      ValueError: settings that cannot be used.

    Warns:
      StepSizeWarning: ``step_size`` is beyond what theorem 2.3.1 allows.
    """
    check_coordinates(problem, coordinates)
    step_sizes.check_positive("step_size", step_size)
    settings = Settings.of("shared_asysvrg", options, problem)
    algorithm = Svrg(settings.per_message(problem, batch_size, 10, "batch_size"))
    settings = settings.for_(problem, algorithm)
    if settings.engine == "ray":
        raise ValueError("shared_asysvrg needs shared memory, which Ray's actors do not have; write engine='local'")
    if missing is not None and (settings.engine != "simulated" or settings.delays is not None):
        raise ValueError("missing is given, with delays or another engine than 'simulated'; write one of them")
    _warn(problem, settings, step_size, algorithm.h, coordinates, missing)
    run = Run(problem, algorithm, settings, Steps(step_size), f"shared, {coordinates} coordinates")
    at = run.resumed(Outer(start_of(problem, settings)))
    if settings.engine == "local":
        own = {"workers": settings.workers, "seed": settings.seed, "stragglers": settings.stragglers}
        task = sharing.SharedTask(part=on_host(problem), algorithm=algorithm, coordinates=coordinates, **own)
        outers = sharing.run(task, at, settings.inner_steps, run.epochs)
    else:
        outers = _simulate(run, at, coordinates, missing)
    return run.measured(at, outers)


def _warn(
    problem: Problem, settings: Settings, step: float, h: int, coordinates: int, missing: np.ndarray | None
) -> None:
    if problem.smoothness is None or isinstance(problem.l2, Tracer):
        return
    largest = float(np.max(problem.smoothness)) + problem.l2
    delay = settings.expected_delay if missing is None else missing.shape[1]
    share, m = problem.d / coordinates, settings.inner_steps
    bound = step_sizes.variance_reduced(largest=largest, h=h, delay=delay, inner_steps=m, coordinates=share)
    terms = f"L = {largest:.3g}, b = {h}, Delta = {delay}, m = {m}, d = {share:.3g} times the coordinates of an update"
    step_sizes.warn_beyond(step, bound, "theorem 2.3.1", bound, terms)


def _simulate(run: Run, at: Outer, coordinates: int, missing: np.ndarray | None) -> Generator[Outer, Go, None]:
    problem, algorithm, settings = run.problem, run.algorithm, run.settings
    plans, everything, go = _plans(problem, algorithm, settings, at, missing), np.arange(problem.n), (yield at)
    for plan, unseen in plans:
        rows, chosen = (np.zeros((len(plan.worker), size), np.int32) for size in (algorithm.h, coordinates))
        for k, count in enumerate(np.bincount(plan.worker)):
            if count:
                how, where = How(algorithm.h, coordinates=coordinates), plan.worker == k
                drawn = stacked(problem, everything, int(count), how, (settings.seed, k, at.outer, 0))
                assert isinstance(drawn, Draw)  # nothing adaptive
                rows[where], chosen[where] = drawn.rows, drawn.coordinates
        iterations = Iterations(rows, chosen, unseen)
        w = _outer_iteration(algorithm, problem, at.w, jnp.asarray(go.step, problem.dtype), iterations)
        there = {"seconds": plan.end, "delays": unseen.sum(axis=1), "free": plan.free}
        at = at.after(len(plan.worker), run.epochs, w=w, **there)
        go = yield at


@functools.partial(jax.jit, static_argnums=0, compiler_options=ONE_THREAD)
def _outer_iteration(
    algorithm: Svrg, problem: Problem, w: jax.Array, step: jax.Array, iterations: Iterations
) -> jax.Array:
    view = View(w, step, w, problem.gradient(w))
    window, count = iterations.missing.shape[1], iterations.coordinates.shape[1]

    def iterate(carry: tuple[jax.Array, ...], now: Iterations) -> tuple[tuple[jax.Array, ...], None]:
        w, places, changes = carry  # and the last updates, youngest first, ``[Delta, c]`` each
        unseen = jnp.where(now.missing[:, None], changes, 0)
        seen = w.at[places].add(-unseen)
        draw = cast(Draw, now)  # of which SVRG reads the rows alone
        v = algorithm.message(problem, view._replace(w=seen), None, draw).v
        change = -step * v[now.coordinates]
        places = jnp.concatenate([now.coordinates[None], places])[:window]
        changes = jnp.concatenate([change[None], changes])[:window]
        return (w.at[now.coordinates].add(change), places, changes), None

    nothing = jnp.zeros((window, count), iterations.coordinates.dtype), jnp.zeros((window, count), w.dtype)
    return jax.lax.scan(iterate, (w, *nothing), iterations)[0][0]


def _plans(
    problem: Problem, algorithm: Algorithm, settings: Settings, at: Outer, missing: np.ndarray | None
) -> Iterator[tuple[Plan, np.ndarray]]:
    """The plans after ``at``, and what is missing in each, ``[m, Delta]``.

    Updates from before the outer iteration are never missing, for it began with a barrier.
    """
    counts, outer, m = settings.counts, settings.outer_steps, settings.inner_steps
    if missing is not None:
        missing = np.asarray(missing, bool)
        if missing.ndim != 2 or len(missing) != outer * m:
            raise ValueError(f"missing has shape {missing.shape}; write [{outer * m}, Delta], a row for each iteration")
        unseen = iter(missing.reshape(outer, m, -1)[at.outer :])
    elif isinstance(settings.delays, DrawnDelays):
        bound, seed = settings.delays.bound, settings.delays.seed
        unseen = (np.random.default_rng((seed, s)).random((m, bound)) < 0.5 for s in range(at.outer, outer))
    else:
        if settings.delays is not None:
            plans, most = clock.given(settings.delays, **counts, first=at.outer), settings.expected_delay
        else:
            parts = tuple(len(part) for part in np.array_split(np.arange(problem.n), settings.workers))
            work = clock.Work(algorithm.h * algorithm.gradients_per_example, parts)
            since = clock.Since(at.outer, at.seconds, at.free)
            plans = clock.asynchronous(settings.clock, settings.stragglers, work, **counts, since=since)
            most = 0
        return ((plan, _last(plan.delay, most)) for plan in plans)
    existing = np.arange(m)[:, None]
    pairs = zip(clock.given(0, **counts, first=at.outer), unseen, strict=True)
    return ((plan, of_plan & (np.arange(of_plan.shape[1]) < existing)) for plan, of_plan in pairs)


def _last(delay: np.ndarray, most: int) -> np.ndarray:
    """The last so many updates are missing; as wide as the longest delay, or the power of 2 above it."""
    width = most or 1 << int(delay.max()).bit_length()
    return np.arange(width) < delay[:, None]
