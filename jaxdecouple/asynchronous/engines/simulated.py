"""The simulated engine: the messages of a plan, one after another, in one compiled loop for each outer iteration."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm, Server, View, update
from jaxdecouple.asynchronous.engines.clock import Plan, slots
from jaxdecouple.asynchronous.problems.problem import Problem


def run(
    problem: Problem,
    algorithm: Algorithm,
    server: Server,
    plans: Sequence[Plan],
    draws: Sequence[Iterator[Any]],
    steps: Sequence[float],
) -> Iterator[Server]:
    """The server after each outer iteration.

    Args:
      problem: the whole problem.
      algorithm: what is computed.
      server: at the start; given up.
      plans: the messages of each outer iteration.
      draws: the examples of the messages of each worker.
      steps: the step size in each outer iteration.
    """
    places = [slots(plan) for plan in plans]
    num_slots = max(count for *_, count in places)
    for plan, (read, write, _), step in zip(plans, places, steps, strict=True):
        drawn = [next(draws[worker]) for worker in plan.worker]
        drawn = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
        w = server.w
        mean = _mean_gradient(problem, w) if algorithm.needs_mean else None
        snapshot = jnp.copy(w) if algorithm.needs_mean else None  # w itself is given up
        view = View(None, jnp.asarray(step, w.dtype), snapshot, mean)
        server = _outer_iteration(algorithm, num_slots, problem, server, view, read, write, drawn)
        yield server


@jax.jit
def _mean_gradient(problem: Problem, w: jax.Array) -> jax.Array:
    return problem.gradient(w)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
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
