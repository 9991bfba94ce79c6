"""Shared-AsySVRG on processes of this machine that share one vector in memory, and change it without a lock.

Reads and writes race, as Algorithm 1 means them to: a process may read w while others change it, and of two changes of
one coordinate at the same moment one may be lost. Each process counts its own iterations, where nobody else writes.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.algorithms.algorithm import Svrg, View
from jaxdecouple.asynchronous.algorithms.sampling import coordinate_draws, draws, rows_of
from jaxdecouple.asynchronous.engines.clock import Stragglers
from jaxdecouple.asynchronous.engines.options import Settings
from jaxdecouple.asynchronous.engines.run import RESTARTS, WorkersLost
from jaxdecouple.asynchronous.problems.problem import Problem
from jaxdecouple.asynchronous.result import Result
from jaxdecouple.asynchronous.trace import Meter, Trace


@dataclasses.dataclass(frozen=True)
class SharedTask:
    """What a process is given once.

    Attributes:
      problem: the whole problem, with arrays of NumPy.
      algorithm: what is computed.
      worker: k.
      workers: K.
      path: the file in memory that holds w.
      coordinates: how many an update changes.
      step: eta.
      seed: of the run.
      stragglers: whether it is sometimes late.
    """

    problem: Problem
    algorithm: Svrg
    worker: int
    workers: int
    path: str
    coordinates: int
    step: float
    seed: int
    stragglers: Stragglers


@dataclasses.dataclass(frozen=True)
class Iterate:
    """To a process: iterations are wanted, until all processes together have done ``target``."""

    snapshot: np.ndarray
    mean: np.ndarray
    target: int


@dataclasses.dataclass(frozen=True)
class Part:
    """To a process: its part of the full gradient at ``w`` is wanted."""

    w: np.ndarray


class Memory:
    """What the processes share: w, ``[d]``, and how many iterations each has done, ``[K]``."""

    def __init__(self, path: str, d: int, workers: int, dtype: Any, *, create: bool = False):
        mode = "w+" if create else "r+"
        self.w = np.memmap(path, dtype, mode, shape=d)
        self.counts = np.memmap(path + ".counts", np.int64, mode, shape=workers)


def run(
    problem: Problem,
    algorithm: Svrg,
    settings: Settings,
    start: jax.Array,
    step: float,
    coordinates: int,
    meter: Meter,
    per_outer: float,
) -> Result:
    """Shared-AsySVRG on ``settings.workers`` processes; measured when they are done, as of `running.run`.

    Raises:
      ValueError: the problem cannot be sent to other processes.
      WorkersLost: a process could not be kept alive.
    """
    with tempfile.TemporaryDirectory(prefix="jaxdecouple-", dir=_fastest()) as directory:
        path = os.path.join(directory, "w")
        memory = Memory(path, problem.d, settings.workers, problem.dtype, create=True)
        memory.w[:] = np.asarray(start)
        arrays = jax.tree.map(np.asarray, problem)
        common = {"algorithm": algorithm, "workers": settings.workers, "path": path, "coordinates": coordinates}
        common |= {"step": float(step), "seed": settings.seed, "stragglers": settings.stragglers}
        tasks = [SharedTask(problem=arrays, worker=k, **common) for k in range(settings.workers)]
        states = list(_outer_iterations(tasks, memory, settings))
    states.insert(0, (np.asarray(start), 0.0, np.zeros(0, int), 0))
    for outer, (w, seconds, delays, _) in enumerate(states):
        progress = {"outer": outer, "messages": outer * settings.inner_steps, "epochs": outer * per_outer}
        meter.record(w, None, seconds=seconds, delays=delays, **progress)
    w, *_, lost = states[-1]
    return Result(jnp.asarray(w), None, Trace(meter.records), float(step), lost)


def _fastest() -> str | None:
    """A directory in memory, if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Processes:
    """The processes of a run; one that ends is replaced, and asked what the lost one was asked."""

    def __init__(self, tasks: list[SharedTask]):
        self._tasks = tasks
        self._children: dict[int, Any] = {}
        self.lost = 0

    def __enter__(self) -> Processes:
        for task in self._tasks:
            self._start(task)
        self._collect(None)
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.stop()

    def _start(self, task: SharedTask) -> None:
        from jaxdecouple.asynchronous.engines.local import Child, core_of

        self._children[task.worker] = Child("sharer", task, core=core_of(task.worker))

    def _answer(self, worker: int) -> Any:
        answer = self._children[worker].pipe.recv()
        if isinstance(answer, str) and answer != "ready":
            raise WorkersLost(f"worker {worker} cannot do its work:\n{answer}")
        return answer

    def ask(self, request: Iterate | Part) -> list[np.ndarray]:
        """The answers of all."""
        for child in self._children.values():
            child.pipe.send(request)
        return self._collect(request)

    def _collect(self, request: Iterate | Part | None) -> list[Any]:
        """One answer of each to ``request``, or without one that it is ready; who is lost is replaced."""
        answers: dict[int, Any] = {}
        while len(answers) < len(self._tasks):
            missing = [worker for worker in self._children if worker not in answers]
            ready = wait([self._children[worker].pipe for worker in missing])
            for worker in missing:
                if self._children[worker].pipe not in ready:
                    continue
                try:
                    answer = self._answer(worker)
                except (EOFError, ConnectionError):
                    self._replace(worker, request)
                    continue
                if request is None or not isinstance(answer, str):
                    answers[worker] = answer
        return [answers[worker] for worker in range(len(self._tasks))]

    def _replace(self, worker: int, request: Iterate | Part | None) -> None:
        self.lost += 1
        if self.lost > RESTARTS:
            raise WorkersLost(f"processes ended {self.lost} times, the last time that of worker {worker}")
        self._children[worker].stop()
        self._start(self._tasks[worker])
        if request is not None:
            self._children[worker].pipe.send(request)


def _outer_iterations(
    tasks: list[SharedTask], memory: Memory, settings: Settings
) -> Iterator[tuple[np.ndarray, float, np.ndarray, int]]:
    """After each: w, seconds so far, delays of its iterations, processes lost so far."""
    problem, seconds = tasks[0].problem, 0.0
    with Processes(tasks) as processes:
        for _ in range(settings.outer_steps):
            begun = time.perf_counter()
            snapshot = np.array(memory.w)
            mean = sum(processes.ask(Part(snapshot))) / problem.n + problem.l2 * snapshot
            target = int(memory.counts.sum()) + settings.inner_steps
            delays = np.concatenate(processes.ask(Iterate(snapshot, mean, target)))
            seconds += time.perf_counter() - begun
            yield np.array(memory.w), seconds, delays, processes.lost


def take_part(pipe: Connection) -> None:
    """What a process does: reads its task, and answers requests until nobody is there to make any."""
    task: SharedTask = pipe.recv()
    problem = jax.tree.map(jnp.asarray, task.problem)
    memory = Memory(task.path, problem.d, task.workers, problem.dtype)
    part = problem.part(rows_of(task.worker, task.workers, problem.n))
    gradient_sum = jax.jit(lambda part, w: part.gradient_sum(w))
    message = jax.jit(task.algorithm.message)
    sharer = _Sharer(task, problem, memory, message)
    sharer.direction(View(np.array(memory.w), None, np.array(memory.w), np.array(memory.w)))  # compiles it
    jax.block_until_ready(gradient_sum(part, np.array(memory.w)))
    pipe.send("ready")
    while True:
        request = pipe.recv()
        if isinstance(request, Part):
            pipe.send(np.asarray(gradient_sum(part, request.w)))
        else:
            pipe.send(sharer.iterate(request))


class _Sharer:
    """Iterates on the shared vector."""

    def __init__(self, task: SharedTask, problem: Problem, memory: Memory, message: Any):
        self._task, self._problem, self._memory, self._message = task, problem, memory, message
        seed, everything = (task.seed, task.worker), np.arange(problem.n)
        self._draws = draws(problem, everything, h=task.algorithm.h, sampling="uniform", seed=(*seed, 0))
        self._coordinates = coordinate_draws(problem.d, task.coordinates, (*seed, 1))
        self._late = task.stragglers.draw(task.worker)

    def direction(self, view: View) -> np.ndarray:
        """v of eq. 2.5."""
        return np.asarray(self._message(self._problem, view, None, next(self._draws)).v)

    def iterate(self, request: Iterate) -> np.ndarray:
        """Iterations of Algorithm 1 until there are enough; how many of others fell into each."""
        memory, mine, delays = self._memory, self._task.worker, []
        view = View(None, None, request.snapshot, request.mean)
        while (seen := int(memory.counts.sum())) < request.target:
            begun, slowdown = time.perf_counter(), next(self._late)
            v = self.direction(view._replace(w=np.array(memory.w)))
            time.sleep(slowdown * (time.perf_counter() - begun))
            chosen = next(self._coordinates)
            delays.append(int(memory.counts.sum()) - seen)
            memory.w[chosen] -= self._task.step * v[chosen]
            memory.counts[mine] += 1
        return np.array(delays, int)
