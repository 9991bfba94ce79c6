"""A worker: it has a part of the problem, and answers the server's requests one after another."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm, Message, View
from jaxdecouple.asynchronous.algorithms.sampling import draws
from jaxdecouple.asynchronous.engines.clock import Stragglers
from jaxdecouple.asynchronous.engines.serving import Compute, Full, Sent, Start
from jaxdecouple.asynchronous.problems.problem import Problem


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker is given once.

    Attributes:
      part: its examples, with arrays of NumPy, so that any process can read them.
      algorithm: what is computed.
      worker: k.
      seed: of the run.
      stragglers: whether it is sometimes late.
    """

    part: Problem
    algorithm: Algorithm
    worker: int
    seed: int
    stragglers: Stragglers


@functools.partial(jax.jit, static_argnums=0)
def _message(algorithm: Algorithm, part: Problem, view: View, alpha: jax.Array | None, draw: Any) -> Message:
    return algorithm.message(part, view, alpha, draw)


@functools.partial(jax.jit, donate_argnums=0)
def _changed(alpha: jax.Array, message: Message) -> jax.Array:
    return alpha.at[message.rows].add(message.change)


@jax.jit
def _gradient_sum(part: Problem, w: jax.Array) -> jax.Array:
    return part.gradient_sum(w)


class Worker:
    """Answers requests, and keeps its dual vectors, which change when the server says that its message was taken."""

    def __init__(self, task: Task):
        """Compiles everything, so that the first request takes no longer than others."""
        self._task = task
        self._part = jax.tree.map(jnp.asarray, task.part)
        self._alpha = self._part.initial_dual() if task.algorithm.has_dual else None
        self._late = task.stragglers.draw(task.worker)
        self._begin(0)
        w = np.zeros(self._part.d, self._part.dtype)
        self._snapshot = self._mean = w if task.algorithm.needs_mean else None
        self._pending = self._compute(Compute(0, w, 1.0, taken=False))
        if task.algorithm.has_dual:
            self._alpha = _changed(self._alpha, self._pending) * 0
        if task.algorithm.needs_mean:
            _gradient_sum(self._part, w).block_until_ready()

    def answer(self, request: Start | Full | Compute) -> Sent | None:
        """Does what is asked; None where no answer is expected."""
        if isinstance(request, Start):
            self._begin(request.attempt)
            self._alpha = None if request.alpha is None else jnp.array(request.alpha)
            return None
        begun, slowdown = time.perf_counter(), next(self._late)
        if isinstance(request, Full):
            content = np.asarray(_gradient_sum(self._part, request.w))
        else:
            if request.taken and self._alpha is not None:
                self._alpha = _changed(self._alpha, self._pending)
            if request.snapshot is not None:
                self._snapshot, self._mean = request.snapshot, request.mean
            self._pending = self._compute(request)
            content = jax.tree.map(np.asarray, self._pending)
        time.sleep(slowdown * (time.perf_counter() - begun))
        return Sent(content, getattr(request, "version", -1))

    def _begin(self, attempt: int) -> None:
        """Begins to draw examples; who comes in place of a lost worker draws others than that."""
        task, part = self._task, self._part
        self._draws = draws(
            part,
            np.arange(part.num_rows),
            h=task.algorithm.h,
            sampling=task.algorithm.sampling,
            seed=(task.seed, task.worker, attempt),
        )

    def _compute(self, request: Compute) -> Message:
        step = np.asarray(request.step, self._part.dtype)
        view = View(request.w, step, self._snapshot, self._mean)
        message = _message(self._task.algorithm, self._part, view, self._alpha, next(self._draws))
        return jax.block_until_ready(message)
