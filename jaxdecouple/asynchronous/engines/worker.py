"""A worker: it has a part of the problem, and answers the server's requests one after another."""

from __future__ import annotations

import functools
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm, Message, View
from jaxdecouple.asynchronous.algorithms.sampling import draws
from jaxdecouple.asynchronous.engines.messages import Compute, Full, Part, Sent, Start, Task
from jaxdecouple.asynchronous.problems.problem import Problem


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _message(
    algorithm: Algorithm,
    part: Problem,
    alpha: jax.Array | None,
    last: Message | None,
    taken: float,
    view: View,
    draw: Any,
) -> tuple[Message, jax.Array | None]:
    """A message, and the dual vectors that it was computed with: with those of the last one, if it was taken."""
    if alpha is not None and last is not None:
        assert last.change is not None  # of a method with a dual
        alpha = alpha.at[last.rows].add(taken * last.change)
    return algorithm.message(part, view, alpha, draw), alpha


@jax.jit
def _gradient_sum(part: Problem, w: jax.Array) -> jax.Array:
    return part.gradient_sum(w)


class Worker:
    """Answers requests, and keeps its dual vectors, which change when the server says that its message was taken."""

    def __init__(self, task: Task):
        """Compiles everything, so that the first request takes no longer than others."""
        self._task = task
        self._part: Problem = jax.tree.map(jnp.asarray, task.part)
        self._attempt, self._outer = 0, -1
        w = np.zeros(self._part.d, self._part.dtype)
        self._snapshot = self._mean = jnp.asarray(w) if task.algorithm.needs_mean else None
        self._last = None
        self._alpha = self._part.initial_dual() if task.algorithm.has_dual else None
        for _ in range(2 if task.algorithm.has_dual else 1):  # without a last message, and with one
            self._compute(Compute(0, 0, w, 1.0, taken=False))
        if task.algorithm.needs_mean:
            _gradient_sum(self._part, w).block_until_ready()

    def answer(self, request: Start | Full | Compute) -> Sent | Part | None:
        """Does what is asked; None where no answer is expected."""
        if isinstance(request, Start):
            self._attempt, self._outer, self._last = request.attempt, -1, None
            self._alpha = None if request.alpha is None else jnp.array(request.alpha)
            return None
        if isinstance(request, Compute) and request.outer != self._outer:
            self._begin(request.outer)
        begun, slowdown = time.perf_counter(), next(self._late)
        if isinstance(request, Full):
            gradient = np.asarray(_gradient_sum(self._part, request.w))
            content = Part(gradient, seconds := time.perf_counter() - begun)
        else:
            v, rows, change = jax.tree.map(np.asarray, tuple(self._compute(request)))
            content = Sent(v, rows, change, request.version, seconds := time.perf_counter() - begun)
        if slowdown:
            time.sleep(slowdown * seconds)
        return content

    def _begin(self, outer: int) -> None:
        """Begins to draw for an outer iteration; who comes in place of a lost worker draws others than that."""
        task, part, self._outer = self._task, self._part, outer
        seed = (task.seed, task.worker, outer, self._attempt)
        self._draws = draws(part, np.arange(part.num_rows), task.algorithm.how, seed)
        self._late = task.stragglers.draw(task.worker, outer)

    def _compute(self, request: Compute) -> Message:
        if request.outer != self._outer:
            self._begin(request.outer)
        if request.snapshot is not None:
            self._snapshot, self._mean = jnp.array(request.snapshot), jnp.array(request.mean)
        # A compiled function takes NumPy's arrays as JAX's.
        w, step = cast(Any, request.w), cast(Any, np.asarray(request.step, self._part.dtype))
        view = View(w, step, self._snapshot, self._mean)
        rest = self._last, float(request.taken), view, next(self._draws)
        message, self._alpha = _message(self._task.algorithm, self._part, self._alpha, *rest)
        self._last = message if self._task.algorithm.has_dual else None
        return jax.block_until_ready(message)
