"""Marks say when the operations of some ticks of a training run really started and ended, on devices that run on.

Before and after an operation its device is given a number to copy, of what the operation takes and of what it gives. A
device works in order. So the copies are there when the operation starts and when it has ended, and threads note when
that is. The operations are those of the run, and give the same numbers.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, get_args

import jax

import jaxdecouple as jd
from jaxdecouple.engine.state import Metrics, State
from jaxdecouple.engine.workspace import Operation

_FROM_ABOVE = ("backward", "backward_forward", "teach", "input_gradient")  # they take a gradient of the stage above


class Mark(NamedTuple):
    """One operation: seconds from the start of the first, and the tick that dispatched it."""

    operation: str
    stage: int
    tick: int
    start: float
    end: float


class Marks:
    """Takes the pipeline's place in a training loop, and marks the operations of some ticks.

    Attributes:
      first, stop: the ticks that are marked; until ``stop`` the run is a little slower, and there it waits once.
    """

    def __init__(self, pipeline: jd.Pipeline, ticks: int, epoch: int, on_end: Callable[[list[Mark]], Any]):
        """Will mark some ticks, once the pipeline has filled and compiled.

        Args:
          pipeline: that trains.
          ticks: how many.
          epoch: ticks of an epoch; where they fit into one, they are not interrupted by its end.
          on_end: gets the marks, in order of dispatch.
        """
        self._plain, self._on_end = pipeline, on_end
        self.first = 2 * pipeline.schedule.drain + 8
        warm = pipeline.schedule.drain + 2  # ticks in which copies are compiled, and a smaller last batch is still met
        if self.first % epoch + warm + ticks >= epoch:
            self.first = -(-self.first // epoch) * epoch
        self._kept_from = self.first + warm
        self.stop = self._kept_from + ticks
        self._tick = 0
        self._found: list[tuple[str, int, int, Future[float], Future[float]]] = []
        marked = copy.copy(pipeline)
        marked.programs = tuple(self._watched(program, k) for k, program in enumerate(pipeline.programs))
        self._marked = marked.with_schedule(pipeline.schedule, weights=pipeline.weights, run_ahead=pipeline.run_ahead)
        self._threads: list[ThreadPoolExecutor] = []

    def step(self, state: State, batch: tuple[Any, Any]) -> tuple[State, Metrics]:
        """As of `Pipeline`."""
        tick = self._tick = int(state.tick)
        if not self.first <= tick < self.stop:
            return self._plain.step(state, batch)
        if not self._threads:  # two for each stage, so that no mark waits for another
            self._threads = [ThreadPoolExecutor(1) for _ in range(2 * len(state.stages))]
        state, metrics = self._marked.step(state, batch)
        if tick == self.stop - 1:
            self._end()
        return state, metrics

    def flush(self, state: State) -> State:
        """As of `Pipeline`."""
        return self._plain.flush(state)

    def _watched(self, program: Any, stage: int) -> Any:
        watched = copy.copy(program)
        for operation in get_args(Operation):
            if (method := getattr(program, operation, None)) is not None:
                setattr(watched, operation, functools.partial(self._call, method, operation, stage))
        return watched

    def _call(self, method: Callable[..., Any], operation: str, stage: int, state: Any, *given: Any) -> Any:
        start = self._note(given[0], 2 * stage)  # the inputs; for a backward, what its forward left
        if operation in _FROM_ABOVE:
            start = self._note(given[1], 2 * stage)  # and the gradient, which comes last
        passed = method(state, *given)
        if jax.tree.leaves(passed.outcome):  # the first stage has no gradient to send down
            end = self._note(passed.outcome, 2 * stage + 1)  # whatever it gives: all of it is there at once
            self._found.append((operation, stage, self._tick, start, end))
        return passed

    def _note(self, tree: Any, thread: int) -> Future[float]:
        """The time at which one number of ``tree`` has been copied by the device that it is on."""
        number = _one_number(next(leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)))
        return self._threads[thread].submit(_when, number)

    def _end(self) -> None:
        marks = [
            Mark(operation, stage, tick, start.result(), end.result())
            for operation, stage, tick, start, end in self._found
            if tick >= self._kept_from
        ]
        for thread in self._threads:
            thread.shutdown()
        self._found.clear()
        origin = min(min(mark.start, mark.end) for mark in marks)
        self._on_end([_from(origin, mark) for mark in marks])


def _from(origin: float, mark: Mark) -> Mark:
    """Where an operation is shorter than a thread takes to wake up, its start may be noticed after its end."""
    return mark._replace(start=min(mark.start, mark.end) - origin, end=mark.end - origin)


@jax.jit
def _one_number(array: jax.Array) -> jax.Array:
    return array.ravel()[:1] + 0


def _when(number: jax.Array) -> float:
    jax.block_until_ready(number)
    return time.perf_counter()
