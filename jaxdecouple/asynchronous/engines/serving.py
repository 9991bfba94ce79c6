"""The server of the engines that are really asynchronous: it takes messages as they come, from a crew of workers.

    for each outer iteration:   if needed: all workers their part of the full gradient      (Algorithm 2, lines 3 to 5)
                                w to every worker that waits                                (Algorithm 6, broadcast)
        until T messages:       the next message; w <- w - eta v; the new w to its worker

A message that was computed with a w of an earlier outer iteration is not taken, and its dual changes are not made. The
server holds a copy of all dual vectors, and a worker changes its own only when it learns that its message was taken: so
w and alpha always belong together, and a worker that is lost is replaced by one that is given its dual vectors.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm, Message, Server, update
from jaxdecouple.asynchronous.algorithms.sampling import rows_of
from jaxdecouple.asynchronous.engines import saving


@dataclasses.dataclass(frozen=True)
class Start:
    """To a new worker: the dual vectors of its examples (None without a dual), and how often it was replaced."""

    alpha: np.ndarray | None
    attempt: int


@dataclasses.dataclass(frozen=True)
class Full:
    """To a worker: its part of the full gradient at ``w`` is wanted."""

    w: np.ndarray


@dataclasses.dataclass(frozen=True)
class Compute:
    """To a worker: a message is wanted, computed with this.

    Attributes:
      version: server updates so far; comes back with the message.
      w: at that version.
      step: eta.
      taken: whether the worker's last message was taken, so that its dual vectors change.
      snapshot: with the first of an outer iteration, w at its start; SVRG alone.
      mean: likewise the full gradient there.
    """

    version: int
    w: np.ndarray
    step: float
    taken: bool
    snapshot: np.ndarray | None = None
    mean: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Sent:
    """From a worker: what it computed, a `Message` or a part of a full gradient, and for which version."""

    content: Any
    version: int = -1


@dataclasses.dataclass(frozen=True)
class Lost:
    """In place of an answer: the worker is gone, and what was asked of it will not come."""


@dataclasses.dataclass(frozen=True)
class Joined:
    """In place of an answer: a worker is there, for the first time or in place of one that was lost."""


class Crew(Protocol):
    """The workers, as the server sees them."""

    def send(self, worker: int, request: Start | Full | Compute) -> None:
        """Asks something of a worker; does not wait. If the worker is gone, nothing happens."""

    def receive(self) -> tuple[int, Sent | Lost | Joined]:
        """Waits for whoever has something to say."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What the server is to do; everything but the data, which the workers have.

    Attributes:
      algorithm: what is computed.
      n: examples of the problem.
      l2: lambda.
      workers: K.
      inner_steps: T.
      steps: the factor of v in each outer iteration, S of them.
      checkpoint: file that is written at the end of every outer iteration, or None.
      fingerprint: what makes the run the one it is; a checkpoint of another is refused.
    """

    algorithm: Algorithm
    n: int
    l2: float
    workers: int
    inner_steps: int
    steps: tuple[float, ...]
    checkpoint: str | None = None
    fingerprint: str = ""


@dataclasses.dataclass(frozen=True)
class Outer:
    """What is there after an outer iteration.

    Attributes:
      w: ``[d]``.
      alpha: as of `Problem`, or None without a dual.
      outer: outer iterations so far.
      seconds: spent on them, without what saving took.
      lost: workers lost so far.
      delays: of the messages of this outer iteration.
    """

    w: np.ndarray
    alpha: np.ndarray | None
    outer: int = 0
    seconds: float = 0.0
    lost: int = 0
    delays: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))


class Serving:
    """The server at work, from where ``at`` says; ``on_update`` sees every new state, for tests."""

    def __init__(self, crew: Crew, job: Job, at: Outer, on_update: Callable[[Server], None] | None = None):
        self._crew, self._job, self._at, self._on_update = crew, job, at, on_update
        self._server = Server(at.w, at.alpha)
        self._update = jax.jit(update, donate_argnums=0)
        self._rows = [rows_of(k, job.workers, job.n) for k in range(job.workers)]
        self._lost, self._attempts = at.lost, [0] * job.workers
        self._present: set[int] = set()
        self._waiting: set[int] = set()  # present, and nothing is asked of them
        self._taken: set[int] = set()  # whose last message was taken, which they have not been told yet
        self._informed: set[int] = set()  # who has this outer iteration's snapshot
        self._version, self._first = 0, 0  # server updates so far, and at the start of this outer iteration

    def run(self) -> Iterator[Outer]:
        """The outer iterations that are left, once all workers are there."""
        while len(self._present) < self._job.workers:
            self._next()
        seconds = self._at.seconds
        for outer in range(self._at.outer, len(self._job.steps)):
            begun = time.perf_counter()
            delays = self._outer_iteration(self._job.steps[outer])
            seconds += time.perf_counter() - begun
            w, alpha = (None if leaf is None else np.array(leaf) for leaf in self._server)
            done = Outer(w, alpha, outer + 1, seconds, self._lost, np.array(delays))
            if self._job.checkpoint:
                saving.save(self._job.checkpoint, done, self._job.fingerprint)
            yield done

    def _outer_iteration(self, step: float) -> list[int]:
        """Delays of the messages that were taken."""
        self._first, self._informed = self._version, set()
        snapshot = mean = None
        if self._job.algorithm.needs_mean:
            snapshot = np.array(self._server.w)
            mean = self._full_gradient(snapshot)
        delays: list[int] = []
        while len(delays) < self._job.inner_steps:
            if not self._job.algorithm.in_rounds or len(self._waiting) == self._job.workers:
                for worker in sorted(self._waiting):
                    self._ask(worker, step, snapshot, mean)
            worker, answer = self._next()
            # What was computed with a w of an earlier outer iteration is not taken.
            if answer is not None and isinstance(answer.content, Message) and answer.version >= self._first:
                delays.append(self._take(worker, answer, step))
        return delays

    def _take(self, worker: int, answer: Sent, step: float) -> int:
        """Updates w and alpha; the message's delay."""
        message = answer.content
        if message.rows is not None:  # which are numbers of the worker's examples
            message = message._replace(rows=self._rows[worker][message.rows])
        self._server = self._update(self._server, message, np.asarray(step, self._server.w.dtype))
        delay, self._version = self._version - answer.version, self._version + 1
        self._taken.add(worker)
        if self._on_update is not None:
            self._on_update(self._server)
        return delay

    def _ask(self, worker: int, step: float, snapshot: np.ndarray | None, mean: np.ndarray | None) -> None:
        news = {} if worker in self._informed else {"snapshot": snapshot, "mean": mean}
        w = np.array(self._server.w)  # a copy, since the server's own is given up
        self._crew.send(worker, Compute(self._version, w, step, worker in self._taken, **news))
        self._informed.add(worker)
        self._waiting.discard(worker)
        self._taken.discard(worker)

    def _full_gradient(self, w: np.ndarray) -> np.ndarray:
        """The gradient of P, from the sums that all workers send; who comes in place of a lost one is asked anew."""
        parts: dict[int, np.ndarray] = {}
        while len(parts) < self._job.workers:
            for worker in self._waiting - parts.keys():
                self._waiting.discard(worker)
                self._crew.send(worker, Full(w))
            worker, answer = self._next()
            if answer is not None and not isinstance(answer.content, Message):
                parts[worker] = answer.content
        return sum(parts[k] for k in range(self._job.workers)) / self._job.n + self._job.l2 * w

    def _next(self) -> tuple[int, Sent | None]:
        """The next answer; None where a worker went or came instead, which is dealt with here."""
        worker, answer = self._crew.receive()
        if isinstance(answer, Lost):
            self._lost += worker in self._present
            for group in (self._present, self._waiting, self._taken, self._informed):
                group.discard(worker)
            return worker, None
        if isinstance(answer, Joined):
            alpha = self._server.alpha
            mine = None if alpha is None else np.asarray(alpha)[self._rows[worker]]
            self._crew.send(worker, Start(mine, self._attempts[worker]))
            self._attempts[worker] += 1
            self._present.add(worker)
            self._waiting.add(worker)
            return worker, None
        self._waiting.add(worker)
        return worker, answer
