"""A plan says, for each message that the server takes, whose it is, how old the w it was computed with, and when it
came.

It is what the simulated engine runs: with delays that are given or drawn, or with those that follow from a virtual
clock, on which workers compute side by side, some of them late. Pure NumPy.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """The messages of one outer iteration, in the order in which the server takes them.

    Attributes:
      worker: who sent it, ``[T]``.
      delay: server updates since the w that it was computed with, ``[T]``; at most t, since every outer iteration
        begins
        with a broadcast.
      seconds: when the server had taken it, since the start of the run, ``[T]``; NaN without a clock.
      end: when the outer iteration was over, in seconds.
    """

    worker: np.ndarray
    delay: np.ndarray
    seconds: np.ndarray
    end: float


@dataclasses.dataclass(frozen=True)
class DrawnDelays:
    """Delays drawn uniformly from 0 to ``bound``, Delta of assumption 2.2.4, tau of assumption 3.4.2.

    Attributes:
      bound: the longest delay, in server updates.
      seed: of the draws.
    """

    bound: int
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Stragglers:
    """A worker that is sometimes late, as in section 3.5: with a probability it waits m times its computing time more.

    Attributes:
      probability: p, for each message.
      slowdown: m is drawn uniformly between these two.
      workers: which ones; the thesis has one.
      seed: of the draws.
    """

    probability: float = 0.2
    slowdown: tuple[float, float] = (0.0, 10.0)
    workers: tuple[int, ...] = (0,)
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.slowdown
        if not 0 <= self.probability <= 1 or not 0 <= low <= high:
            raise ValueError(
                f"stragglers with probability {self.probability} and slowdown {self.slowdown}; write a probability "
                "from 0 "
                "to 1, and two numbers of at least 0, the smaller first"
            )

    def draw(self, worker: int) -> Iterator[float]:
        """m for one message of ``worker`` after another: 0 where it is not late."""
        rng = np.random.default_rng((self.seed, worker))
        while True:
            late, slowdown = rng.random(), rng.uniform(*self.slowdown)
            yield slowdown if worker in self.workers and late < self.probability else 0.0


NO_STRAGGLERS = Stragglers(probability=0.0)


@dataclasses.dataclass(frozen=True)
class Clock:
    """What things cost on the virtual clock, in seconds.

    Attributes:
      example: the gradient of one example, by a worker.
      message: the way between worker and server, there and back.
      update: taking a message, by the server, which takes one at a time.
    """

    example: float = 1e-6
    message: float = 1e-4
    update: float = 1e-5


def given(delays: int | np.ndarray | DrawnDelays, *, workers: int, outer_steps: int, inner_steps: int) -> list[Plan]:
    """Plans with known delays, in which workers take turns; no message is older than the outer iteration it is in.

    Args:
      delays: one for all messages, one for each (``[outer_steps * inner_steps]``), or how to draw them.
      workers: K.
      outer_steps: S.
      inner_steps: T, messages in an outer iteration.

    Raises:
      ValueError: there are more or fewer delays than messages, or negative ones.
    """
    shape = (outer_steps, inner_steps)
    if isinstance(delays, DrawnDelays):
        _check_bound(delays.bound)
        wanted = np.random.default_rng(delays.seed).integers(0, delays.bound, shape, endpoint=True)
    else:
        wanted = np.asarray(delays)
        if wanted.ndim and wanted.size != outer_steps * inner_steps:
            raise ValueError(
                f"delays has {wanted.size} numbers, and there are {outer_steps} x {inner_steps} messages; write one "
                "for "
                "each, or a single number"
            )
        if not np.issubdtype(wanted.dtype, np.integer):
            raise ValueError(f"delays are {wanted.dtype}; write whole numbers, in server updates")
        _check_bound(int(wanted.min()))
        wanted = wanted.reshape(shape) if wanted.ndim else np.full(shape, wanted)
    turn = np.arange(inner_steps)
    nowhere = np.full(inner_steps, np.nan)
    return [Plan(turn % workers, np.minimum(of_step, turn), nowhere, float("nan")) for of_step in wanted]


def _check_bound(delay: int) -> None:
    if delay < 0:
        raise ValueError(f"a delay is {delay}; write numbers of at least 0, in server updates")


@dataclasses.dataclass(frozen=True)
class Work:
    """What a worker does, in gradients of single examples.

    Attributes:
      message: for a message.
      outer: at the start of an outer iteration, by each worker, while the server waits: its part of a full gradient.
    """

    message: int
    outer: tuple[int, ...]


def asynchronous(
    clock: Clock, stragglers: Stragglers, work: Work, *, workers: int, outer_steps: int, inner_steps: int
) -> list[Plan]:
    """Plans of workers that go on as soon as they have an answer, on a virtual clock.

    At the end of an outer iteration the server broadcasts w. Who is in the middle of a message finishes it in vain, and
    begins anew with that w: so a message never is older than its outer iteration (w^{s, d(t)} of Algorithm 7).
    """
    late = [stragglers.draw(worker) for worker in range(workers)]
    free = np.zeros(workers)  # when each worker can begin something else
    plans, now = [], 0.0
    for _ in range(outer_steps):
        now = _full_gradient(clock, work, late, free, now)
        ready: list[tuple[float, int, int]] = []  # when a message arrives, whose, and which w it has read
        for worker in range(workers):
            _begin(ready, clock, work, late, worker, max(free[worker], now), 0)
        sent, delays, times = [], [], []
        for t in range(inner_steps):
            arrival, worker, version = heapq.heappop(ready)
            now = max(now, arrival) + clock.update
            sent.append(worker), delays.append(t - version), times.append(now)
            if t + 1 < inner_steps:
                _begin(ready, clock, work, late, worker, now, t + 1)
        free[:] = now
        for arrival, worker, _ in ready:
            free[worker] = max(arrival, now)
        plans.append(Plan(np.array(sent), np.array(delays), np.array(times), float(now)))
    return plans


def _begin(
    ready: list[tuple[float, int, int]],
    clock: Clock,
    work: Work,
    late: list[Iterator[float]],
    worker: int,
    at: float,
    version: int,
) -> None:
    computing = work.message * clock.example * (1 + next(late[worker]))
    heapq.heappush(ready, (at + clock.message + computing, worker, version))


def _full_gradient(clock: Clock, work: Work, late: list[Iterator[float]], free: np.ndarray, now: float) -> float:
    """When the server has all parts of a full gradient, if it needs one."""
    if not any(work.outer):
        return now
    computing = [count * clock.example * (1 + next(slow)) for count, slow in zip(work.outer, late, strict=True)]
    return float((np.maximum(free, now) + computing).max()) + clock.message


def synchronous(
    clock: Clock, stragglers: Stragglers, work: Work, *, workers: int, outer_steps: int, inner_steps: int
) -> list[Plan]:
    """Plans of rounds in which every worker sends one message, computed with the same w; the slowest ends the round."""
    late = [stragglers.draw(worker) for worker in range(workers)]
    plans, now = [], 0.0
    turn = np.arange(inner_steps)
    for _ in range(outer_steps):
        now = _full_gradient(clock, work, late, np.zeros(workers), now)
        times = []
        for _ in range(inner_steps // workers):
            slowest = max(next(slow) for slow in late)
            now += clock.message + work.message * clock.example * (1 + slowest) + workers * clock.update
            times += [now] * workers
        plans.append(Plan(turn % workers, turn % workers, np.array(times), float(now)))
    return plans


def slots(plan: Plan) -> tuple[np.ndarray, np.ndarray, int]:
    """Where to keep the versions of w that are still to be read, so that as few as possible are kept.

    Returns:
      For each message the slot of the w that it is computed with, and the slot for the w after it, and how many slots
      there are. The w at the start is in slot 0.
    """
    total = len(plan.delay)
    version = np.arange(total) - plan.delay
    last = np.full(total + 1, -1)
    np.maximum.at(last, version, np.arange(total))
    place, free, count = np.zeros(total + 1, int), [], 1
    if last[0] < 0:
        free.append(0)
    for t in range(total):
        if last[version[t]] == t:
            heapq.heappush(free, place[version[t]])
        if not free:
            heapq.heappush(free, count)
            count += 1
        place[t + 1] = heapq.heappop(free)
        if last[t + 1] < 0:
            heapq.heappush(free, place[t + 1])
    return place[version], place[1:], count
