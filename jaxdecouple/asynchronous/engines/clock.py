"""The virtual clock makes plans: for each message whose it is, how old its w, and when the server takes it.

A plan is what the simulated engine runs: with delays that are given or drawn, or with those that follow from a virtual
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
        begins with a broadcast.
      seconds: when the server had taken it, since the start of the run, ``[T]``; NaN without a clock.
      end: when the outer iteration was over, in seconds.
      free: when each worker can begin something else, ``[K]``.
    """

    worker: np.ndarray
    delay: np.ndarray
    seconds: np.ndarray
    end: float
    free: np.ndarray


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
                "from 0 to 1, and two numbers of at least 0, the smaller first"
            )

    def draw(self, worker: int, outer: int = 0) -> Iterator[float]:
        """m for one message of ``worker`` in an outer iteration after another: 0 where it is not late."""
        rng = np.random.default_rng((self.seed, worker, outer))
        while worker in self.workers and self.probability:
            late, slowdown = rng.random(), rng.uniform(*self.slowdown)
            yield slowdown if late < self.probability else 0.0
        while True:
            yield 0.0


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


def given(
    delays: int | np.ndarray | DrawnDelays, *, workers: int, outer_steps: int, inner_steps: int, first: int = 0
) -> Iterator[Plan]:
    """Plans with known delays, in which workers take turns; no message is older than the outer iteration it is in.

    Args:
      delays: one for all messages, one for each (``[outer_steps * inner_steps]``), or how to draw them.
      workers: K.
      outer_steps: S.
      inner_steps: T, messages in an outer iteration.
      first: the outer iteration to begin with.

    Raises:
      ValueError: there are more or fewer delays than messages, or negative ones.
    """
    if isinstance(delays, DrawnDelays):
        _check_bound(delays.bound)
        seeds = ((delays.seed, outer) for outer in range(first, outer_steps))
        rngs = map(np.random.default_rng, seeds)
        wanted = (rng.integers(0, delays.bound, inner_steps, endpoint=True) for rng in rngs)
    else:
        array = np.asarray(delays)
        if array.ndim and array.size != outer_steps * inner_steps:
            raise ValueError(
                f"delays has {array.size} numbers, and there are {outer_steps} x {inner_steps} messages; write one "
                "for each, or a single number"
            )
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"delays are {array.dtype}; write whole numbers, in server updates")
        _check_bound(int(array.min()))
        rows = array.reshape(-1, inner_steps) if array.ndim else array
        wanted = np.broadcast_to(rows, (outer_steps, inner_steps))[first:]
    turn = np.arange(inner_steps)
    never = np.full(inner_steps, np.nan), float("nan"), np.zeros(workers)
    return (Plan(turn % workers, np.minimum(of_step, turn), *never) for of_step in wanted)


def _check_bound(delay: int) -> None:
    if delay < 0:
        raise ValueError(f"a delay is {delay}; write numbers of at least 0, in server updates")


@dataclasses.dataclass(frozen=True)
class Since:
    """Where plans go on.

    Attributes:
      outer: outer iterations that are done.
      seconds: when they were.
      free: when each worker can begin something else, ``[K]``; None: at once.
    """

    outer: int = 0
    seconds: float = 0.0
    free: np.ndarray | None = None


BEGINNING = Since()


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
    clock: Clock,
    stragglers: Stragglers,
    work: Work,
    *,
    workers: int,
    outer_steps: int,
    inner_steps: int,
    since: Since = BEGINNING,
) -> Iterator[Plan]:
    """Plans of workers that go on as soon as they have an answer, on a virtual clock; each made when it is asked for.

    At the end of an outer iteration the server broadcasts w. Who is in the middle of a message finishes it in vain, and
    begins anew with that w: so a message never is older than its outer iteration (w^{s, d(t)} of Algorithm 7).
    """
    now = since.seconds
    free = np.zeros(workers) if since.free is None else np.array(since.free)
    for outer in range(since.outer, outer_steps):
        late = [stragglers.draw(worker, outer) for worker in range(workers)]
        now = _full_gradient(clock, work, late, free, now)
        # When a message arrives, whose, and which w it has read.
        ready = [(_arrival(clock, work, late[k], max(free[k], now)), k, 0) for k in range(workers)]
        heapq.heapify(ready)
        sent, delays, times = [], [], []
        for t in range(inner_steps):
            arrival, worker, version = heapq.heappop(ready)
            now = max(now, arrival) + clock.update
            sent.append(worker)
            delays.append(t - version)
            times.append(now)
            if t + 1 < inner_steps:
                heapq.heappush(ready, (_arrival(clock, work, late[worker], now), worker, t + 1))
        free[:] = now
        for arrival, worker, _ in ready:
            free[worker] = max(arrival, now)
        yield Plan(np.array(sent), np.array(delays), np.array(times), float(now), free.copy())


def _arrival(clock: Clock, work: Work, late: Iterator[float], at: float) -> float:
    """When a message arrives that a worker begins at ``at``."""
    return float(at + clock.message + work.message * clock.example * (1 + next(late)))


def _full_gradient(clock: Clock, work: Work, late: list[Iterator[float]], free: np.ndarray, now: float) -> float:
    """When the server has all parts of a full gradient, if it needs one."""
    if not any(work.outer):
        return now
    computing = [count * clock.example * (1 + next(slow)) for count, slow in zip(work.outer, late, strict=True)]
    return float((np.maximum(free, now) + computing).max()) + clock.message


def synchronous(
    clock: Clock,
    stragglers: Stragglers,
    work: Work,
    *,
    workers: int,
    outer_steps: int,
    inner_steps: int,
    since: Since = BEGINNING,
) -> Iterator[Plan]:
    """Plans of rounds in which every worker sends one message, computed with the same w; the slowest ends the round."""
    now = since.seconds
    turn = np.arange(inner_steps)
    for outer in range(since.outer, outer_steps):
        late = [stragglers.draw(worker, outer) for worker in range(workers)]
        now = _full_gradient(clock, work, late, np.zeros(workers), now)
        times = []
        for _ in range(inner_steps // workers):
            slowest = max(next(slow) for slow in late)
            now += clock.message + work.message * clock.example * (1 + slowest) + workers * clock.update
            times += [now] * workers
        yield Plan(turn % workers, turn % workers, np.array(times), float(now), np.full(workers, now))


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
