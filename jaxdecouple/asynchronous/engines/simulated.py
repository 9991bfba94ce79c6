"""The simulated engine: the messages of a plan, one after another, in one compiled loop for each outer iteration."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm, Server, View, update
from jaxdecouple.asynchronous.algorithms.sampling import rows_of, stacked
from jaxdecouple.asynchronous.engines import clock
from jaxdecouple.asynchronous.engines.messages import Go
from jaxdecouple.asynchronous.engines.options import Settings
from jaxdecouple.asynchronous.outer import Outer
from jaxdecouple.asynchronous.problems.problem import Problem
from jaxdecouple.asynchronous.trace import ONE_THREAD


def run(
    problem: Problem, algorithm: Algorithm, settings: Settings, at: Outer, epochs: float, safeguarded: bool
) -> Generator[Outer, Go, None]:
    """The outer iterations of a run, as they are asked for.

    Args:
      problem: the whole problem.
      algorithm: what is computed.
      settings: of the run.
      at: the start; its arrays are not given up.
      epochs: of an outer iteration.
      safeguarded: whether w and alpha may be asked back.
    """
    workers = settings.workers
    mine = [rows_of(k, workers, problem.n) for k in range(workers)]
    plans, num_slots = _plans(algorithm, settings, at, [len(rows) for rows in mine])
    server: Any = jax.tree.map(jnp.copy, Server(at.w, at.alpha))
    go = yield at
    for plan in plans:
        before = jax.tree.map(jnp.copy, server) if safeguarded else None
        read, write, _ = clock.slots(plan)
        drawn = _drawn(problem, algorithm, settings, mine, plan, at.outer)
        w = jnp.copy(server.w)  # w itself is given up
        mean = _mean_gradient(problem, w) if algorithm.needs_mean else None
        later = cast(Any, None)  # each message has a w of its own
        view = View(later, jnp.asarray(go.step, w.dtype), w if algorithm.needs_mean else None, mean)
        server = _outer_iteration(algorithm, num_slots, problem, server, view, read, write, drawn)
        there = {"w": jnp.copy(server.w), "alpha": None if server.alpha is None else jnp.copy(server.alpha)}
        at = at.after(len(plan.worker), epochs, seconds=plan.end, delays=plan.delay, free=plan.free, **there)
        go = yield at
        if go.back:
            server = before


def _plans(algorithm: Algorithm, settings: Settings, at: Outer, sizes: list[int]) -> tuple[Iterator[clock.Plan], int]:
    """The plans after ``at``, for workers with so many examples, and how many versions of w are kept at most."""
    if settings.delays is not None:
        if algorithm.in_rounds:
            raise ValueError(f"delays are given, and {algorithm.name} is synchronous; leave them out")
        return clock.given(settings.delays, **settings.counts, first=at.outer), settings.expected_delay + 1
    work = clock.Work(algorithm.h * algorithm.gradients_per_example, tuple(sizes) if algorithm.needs_mean else ())
    since = clock.Since(at.outer, at.seconds, at.free)
    make = clock.synchronous if algorithm.in_rounds else clock.asynchronous
    most = 1 if settings.workers == 1 else 2 if algorithm.in_rounds else settings.workers + 1
    return make(settings.clock, settings.stragglers, work, **settings.counts, since=since), most


def _drawn(
    problem: Problem, algorithm: Algorithm, settings: Settings, mine: list[np.ndarray], plan: clock.Plan, outer: int
) -> Any:
    """The examples of the messages of an outer iteration, a row for each message."""
    parts, order = [], np.argsort(plan.worker, kind="stable")
    for k, count in enumerate(np.bincount(plan.worker, minlength=len(mine))):
        if count:
            seed = (settings.seed, k, outer, 0)
            parts.append(stacked(problem, mine[k], int(count), algorithm.how, seed))
    place = np.argsort(order)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[place], *parts)


@functools.partial(jax.jit, compiler_options=ONE_THREAD)
def _mean_gradient(problem: Problem, w: jax.Array) -> jax.Array:
    return problem.gradient(w)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3, compiler_options=ONE_THREAD)
def _outer_iteration(
    algorithm: Algorithm,
    num_slots: int,
    problem: Problem,
    server: Server,
    view: View,
    read: jax.Array,
    write: jax.Array,
    draws: Any,
) -> Server:
    """Takes the messages of an outer iteration; versions of w that are still to be read are in ``num_slots`` slots."""

    def take(carry: tuple[Server, jax.Array], of_message: tuple[Any, ...]) -> tuple[tuple[Server, jax.Array], None]:
        server, kept = carry
        read, write, draw = of_message
        message = algorithm.message(problem, view._replace(w=kept[read]), server.alpha, draw)
        server = update(server, message, view.step)
        return (server, kept.at[write].set(server.w)), None

    kept = jnp.broadcast_to(server.w, (num_slots, *server.w.shape))
    return jax.lax.scan(take, (server, kept), (read, write, draws))[0][0]
