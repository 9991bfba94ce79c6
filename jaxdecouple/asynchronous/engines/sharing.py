"""Shared-AsySVRG on processes of this machine that share one vector in memory, and change it without a lock.

Reads and writes race, as Algorithm 1 means them to: a process may read w while others change it, and of two changes of
one coordinate at the same moment one may be lost. Each process counts its own iterations, where nobody else writes.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.algorithms.algorithm import Svrg, View
from jaxdecouple.asynchronous.algorithms.sampling import Draw, How, draws, rows_of
from jaxdecouple.asynchronous.engines.clock import Stragglers
from jaxdecouple.asynchronous.engines.links import in_memory
from jaxdecouple.asynchronous.engines.local import Children
from jaxdecouple.asynchronous.engines.messages import Full, Go, Joined, Lost
from jaxdecouple.asynchronous.outer import Outer
from jaxdecouple.asynchronous.problems.problem import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedTask:
    """What a process is given once.

    Attributes:
      part: the whole problem, with arrays of NumPy.
      algorithm: what is computed.
      coordinates: how many an update changes.
      workers: K.
      seed: of the run.
      stragglers: who is sometimes late.
      worker: k.
      attempt: how often it was replaced.
    """

    part: Problem
    algorithm: Svrg
    coordinates: int
    workers: int
    seed: int
    stragglers: Stragglers
    worker: int = 0
    attempt: int = 0


@dataclasses.dataclass(frozen=True)
class Iterate:
    """To a process: iterations of an outer one are wanted, until all processes together have done ``target``."""

    outer: int
    step: float
    snapshot: np.ndarray
    mean: np.ndarray
    target: int


class Memory:
    """What the processes share, in a file: w, ``[d]``, and how many iterations each has done, ``[K]``."""

    def __init__(self, descriptor: int, d: int, workers: int, dtype: Any):
        places = -(-d * np.dtype(dtype).itemsize // 8) * 8
        if os.fstat(descriptor).st_size < places + 8 * workers:
            os.truncate(descriptor, places + 8 * workers)
        shared = mmap.mmap(descriptor, 0)
        self.w = np.frombuffer(shared, dtype, d)
        self.counts = np.frombuffer(shared, np.int64, workers, places)


def run(task: SharedTask, at: Outer, inner_steps: int, epochs: float) -> Generator[Outer, Go, None]:
    """The outer iterations of Shared-AsySVRG on as many processes as workers, as they are done; first the start.

    Args:
      task: what every process is given, but who it is.
      at: the start.
      inner_steps: m, of all processes together.
      epochs: of an outer iteration.

    Raises:
      ValueError: the problem cannot be sent to other processes.
      WorkersLost: a process could not be kept alive.
    """
    problem, workers, lost, target = task.part, task.workers, at.lost, 0
    go = yield at
    with Children() as children, tempfile.TemporaryFile(dir=in_memory()) as file:
        memory = Memory(file.fileno(), problem.d, workers, problem.dtype)
        memory.w[:] = np.asarray(at.w)

        def begin(k: int) -> None:
            own = dataclasses.replace(task, worker=k, attempt=children.lost)
            children.start(k, "sharer", own, (os.dup(file.fileno()),))

        for k in range(workers):
            begin(k)
        _answers(children, workers, None, begin)
        while True:
            begun, snapshot = time.perf_counter(), np.array(memory.w)
            mean = sum(_answers(children, workers, Full(snapshot), begin)) / problem.n + problem.l2 * snapshot
            target += inner_steps
            request = Iterate(at.outer, go.step, snapshot, mean, target)
            delays = np.concatenate(_answers(children, workers, request, begin))
            seconds = at.seconds + time.perf_counter() - begun
            there = {"w": np.array(memory.w), "seconds": seconds, "lost": lost + children.lost, "delays": delays}
            at = at.after(inner_steps, epochs, **there)
            go = yield at


def _answers(
    children: Children, workers: int, request: Iterate | Full | None, begin: Callable[[int], None]
) -> list[Any]:
    """The answers of all to ``request``, or without one that they are ready; who comes for a lost one is asked anew."""
    answers: dict[Any, Any] = {}
    for k in range(workers):
        if request is not None:
            children.send(k, request)
    while len(answers) < workers:
        worker, answer = children.receive()
        if isinstance(answer, Lost):
            begin(int(worker))
            if request is not None and worker not in answers:
                children.send(worker, request)
        elif request is None or isinstance(answer, np.ndarray):
            answers[worker] = answer
    return [answers[worker] for worker in range(workers)]


def take_part(pipe: Connection, descriptor: int) -> None:
    """What a process does: reads its task, and answers requests until nobody is there to make any."""
    task: SharedTask = pipe.recv()
    problem: Any = jax.tree.map(jnp.asarray, task.part)
    memory = Memory(descriptor, problem.d, task.workers, problem.dtype)
    part = problem.part(rows_of(task.worker, task.workers, problem.n))
    gradient_sum = jax.jit(lambda part, w: part.gradient_sum(w))
    sharer = _Sharer(task, problem, memory)
    w = np.array(memory.w)
    sharer.begin(0)
    sharer.direction(_view(w, w, w))  # compiles it
    jax.block_until_ready(gradient_sum(part, w))
    pipe.send(Joined())
    while True:
        request = pipe.recv()
        if isinstance(request, Full):
            pipe.send(np.asarray(gradient_sum(part, request.w)))
        else:
            pipe.send(sharer.iterate(request))


def _view(w: Any, snapshot: Any, mean: Any) -> View:
    """For a compiled function, which takes NumPy's arrays as JAX's; SVRG reads no step, and w may be put in later."""
    return View(w, cast(Any, None), snapshot, mean)


class _Sharer:
    """Iterates on the shared vector."""

    def __init__(self, task: SharedTask, problem: Problem, memory: Memory):
        self._task, self._problem, self._memory = task, problem, memory
        self._message = jax.jit(task.algorithm.message)

    def begin(self, outer: int) -> None:
        """Draws for an outer iteration."""
        task, everything = self._task, np.arange(self._problem.n)
        seed = (task.seed, task.worker, outer, task.attempt)
        self._draws = draws(self._problem, everything, How(task.algorithm.h, coordinates=task.coordinates), seed)
        self._late = task.stragglers.draw(task.worker, outer)

    def direction(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """v of eq. 2.5, and the coordinates of it that are to be taken."""
        draw = next(self._draws)
        assert isinstance(draw, Draw)  # nothing adaptive
        message = self._message(self._problem, view, None, draw._replace(coordinates=None))
        return np.asarray(message.v), np.asarray(draw.coordinates)

    def iterate(self, request: Iterate) -> np.ndarray:
        """Iterations of Algorithm 1 until there are enough; how many of others fell into each."""
        self.begin(request.outer)
        memory, mine, delays = self._memory, self._task.worker, []
        view = _view(None, request.snapshot, request.mean)
        while (seen := int(memory.counts.sum())) < request.target:
            begun, slowdown = time.perf_counter(), next(self._late)
            v, chosen = self.direction(view._replace(w=np.array(memory.w)))
            if slowdown:
                time.sleep(slowdown * (time.perf_counter() - begun))
            delays.append(int(memory.counts.sum()) - seen)
            memory.w[chosen] -= np.asarray(request.step, v.dtype) * v[chosen]
            memory.counts[mine] += 1
        return np.array(delays, int)
