"""The server of the engines that are really asynchronous: it takes messages as they come, from a crew of workers.

    for each outer iteration:   if needed: all workers their part of the full gradient      (Algorithm 2, lines 3 to 5)
                                w to every worker that waits                                (Algorithm 6, broadcast)
        until T messages:       the next message; w <- w - eta v; the new w to its worker   (eqs. 2.32, 3.5)

A message that was computed with a w of an earlier outer iteration is not taken, and its dual changes are not made. The
server holds a copy of all dual vectors, and a worker changes its own only when it learns that its message was taken: so
w and alpha always belong together, and a worker that is lost is replaced by one that is given its dual vectors.

Without JAX, so that a server starts at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

import numpy as np

from jaxdecouple.asynchronous.engines.messages import Compute, Crew, Full, Go, Job, Joined, Lost, Part, Sent, Start
from jaxdecouple.asynchronous.outer import Outer


class Serving:
    """The server at work, from where ``at`` says; ``on_update`` sees w and alpha after every message, for tests."""

    def __init__(
        self,
        crew: Crew,
        job: Job,
        at: Outer,
        on_update: Callable[[np.ndarray, np.ndarray | None], None] | None = None,
    ):
        self._crew, self._job, self._at, self._on_update = crew, job, at, on_update
        self._w, self._alpha = np.array(at.w), None if at.alpha is None else np.array(at.alpha)
        self._lost, self._attempts = at.lost, [-1] * job.workers
        self._computing = at.computing
        self._present: set[int] = set()
        self._waiting: set[int] = set()  # present, and nothing is asked of them
        self._taken: set[int] = set()  # whose last message was taken, which they have not been told yet
        self._informed: set[int] = set()  # who has this outer iteration's snapshot
        # What the workers sent in this round; taken in their order, so that sums round the same in every run.
        self._round: dict[int, Sent] = {}
        self._version, self._first = 0, 0  # server updates so far, and at the start of this outer iteration

    def run(self) -> Generator[Outer, Go | None, None]:
        """The outer iterations that are left, once all workers are there; each is answered how to go on, if asked."""
        while len(self._present) < self._job.workers:
            self._next()
        at, go = self._at, Go(self._job.steps[min(self._at.outer, len(self._job.steps) - 1)])
        while at.outer < len(self._job.steps):
            before = self._w.copy(), None if self._alpha is None else self._alpha.copy()
            begun = time.perf_counter()
            delays = self._outer_iteration(at.outer, go.step)
            seconds = at.seconds + time.perf_counter() - begun
            alpha = None if self._alpha is None else self._alpha.copy()
            there = {"w": self._w.copy(), "alpha": alpha, "seconds": seconds, "lost": self._lost}
            there["computing"] = self._computing
            at = at.after(len(delays), self._job.epochs, delays=np.array(delays), **there)
            go = (yield at) or Go(self._job.steps[min(at.outer, len(self._job.steps) - 1)])
            if go.back:
                self._w, self._alpha = before
                self._restart()

    def _restart(self) -> None:
        """Gives all workers the dual vectors that there are again."""
        self._taken.clear()
        if self._alpha is not None:
            for worker in self._present:
                self._start(worker)

    def _start(self, worker: int) -> None:
        mine = None if self._alpha is None else self._alpha[worker :: self._job.workers]
        self._crew.send(worker, Start(mine, self._attempts[worker]))

    def _outer_iteration(self, outer: int, step: float) -> list[int]:
        """Delays of the messages that were taken."""
        self._first, self._informed = self._version, set()
        mean = None
        snapshot = self._w.copy() if self._job.needs_mean else None
        if snapshot is not None:
            mean = self._full_gradient(snapshot)
        delays: list[int] = []
        self._round = {}
        while len(delays) < self._job.inner_steps:
            if not self._job.in_rounds or len(self._waiting) == self._job.workers:
                for worker in sorted(self._waiting):
                    self._ask(worker, outer, step, snapshot, mean)
            worker, answer = self._next()
            # What was computed with a w of an earlier outer iteration is not taken.
            if not isinstance(answer, Sent) or answer.version < self._first:
                continue
            if self._job.in_rounds:
                self._round[worker] = answer
                if len(self._round) == self._job.workers:
                    delays += [self._take(k, self._round.pop(k), step) for k in range(self._job.workers)]
            else:
                delays.append(self._take(worker, answer, step))
        return delays

    def _take(self, worker: int, message: Sent, step: float) -> int:
        """Updates w and alpha; the message's delay."""
        self._w -= np.asarray(step, self._w.dtype) * message.v
        if message.rows is not None:  # which are numbers of the worker's examples
            assert self._alpha is not None  # of a method with a dual
            np.add.at(self._alpha[worker :: self._job.workers], message.rows, message.change)
        self._computing += message.seconds
        delay, self._version = self._version - message.version, self._version + 1
        self._taken.add(worker)
        if self._on_update is not None:
            self._on_update(self._w, self._alpha)
        return delay

    def _ask(self, worker: int, outer: int, step: float, snapshot: np.ndarray | None, mean: np.ndarray | None) -> None:
        news = {} if worker in self._informed else {"snapshot": snapshot, "mean": mean}
        self._crew.send(worker, Compute(self._version, outer, self._w, step, worker in self._taken, **news))
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
            if isinstance(answer, Part):
                parts[worker] = np.array(answer.gradient)
                self._computing += answer.seconds
        return sum(parts[k] for k in range(self._job.workers)) / self._job.n + self._job.l2 * w

    def _next(self) -> tuple[int, Sent | Part | None]:
        """The next answer; None where a worker went or came instead, which is dealt with here."""
        worker, answer = self._crew.receive()
        if isinstance(answer, Lost):
            self._lost += worker in self._present
            for group in (self._present, self._waiting, self._taken, self._informed):
                group.discard(worker)
            self._round.clear()  # all are asked anew, when somebody has come for the lost one
            return worker, None
        if isinstance(answer, Joined):
            self._attempts[worker] += 1
            self._start(worker)
            self._present.add(worker)
            self._waiting.add(worker)
            return worker, None
        self._waiting.add(worker)
        return worker, answer
