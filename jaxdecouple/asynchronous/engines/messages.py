"""What the processes of a run tell one another, and the errors that end a run whose processes ended."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from jaxdecouple.asynchronous.engines.clock import Stragglers

ONE_CORE = {"JAX_PLATFORMS": "cpu", "NPROC": "1"}  # environment of a process that computes with one core
RESTARTS = 20  # of one worker, after which a run is given up


class ServerLost(RuntimeError):
    """The server of a run ended before its time; the message says how to go on."""


class WorkersLost(RuntimeError):
    """A worker of a run cannot be kept alive; the message says why."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What the server is to do; everything but the data, which the workers have.

    Attributes:
      in_rounds: whether every worker sends one message, computed with the same w.
      needs_mean: whether there is a full gradient at the start of every outer iteration.
      n: examples of the problem.
      l2: lambda.
      workers: K.
      inner_steps: T.
      epochs: of an outer iteration.
      steps: the factor of v in each outer iteration, S of them, unless it is safeguarded.
      safeguarded: whether to wait after each outer iteration for how to `Go` on.
      checkpoint: a file that is written at the end of every outer iteration, or None.
    """

    in_rounds: bool
    needs_mean: bool
    n: int
    l2: float
    workers: int
    inner_steps: int
    epochs: float
    steps: tuple[float, ...]
    safeguarded: bool = False
    checkpoint: str | None = None

    def server_lost(self, end: str, last: int | None) -> ServerLost:
        """The error of a server that ended as ``end`` says; ``last`` is the last outer iteration known to be done."""
        done = "before the first outer iteration was done" if last is None else f"after outer iteration {last}"
        if not self.checkpoint:
            remedy = "nothing was saved; write checkpoint=PATH to have something to go on from"
        elif last is None:
            remedy = f"if {self.checkpoint} is there, resume={self.checkpoint!r} goes on from it"
        else:
            remedy = f"write resume={self.checkpoint!r} to go on from there"
        return ServerLost(f"the server ended {done} ({end}); {remedy}")


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker is given once.

    Attributes:
      part: the `Problem` of its examples, with arrays of NumPy, so that any process can read them.
      algorithm: the `Algorithm`.
      worker: k.
      seed: of the run.
      stragglers: whether it is sometimes late.
    """

    part: Any
    algorithm: Any
    worker: int
    seed: int
    stragglers: Stragglers


@dataclasses.dataclass(frozen=True)
class Go:
    """To the server: how to go on, after an outer iteration was judged.

    Attributes:
      step: the factor of v in the next one.
      back: whether w and alpha are to be those from before the last one.
    """

    step: float
    back: bool = False


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
      outer: the number of the outer iteration.
      w: at that version.
      step: eta.
      taken: whether the worker's last message was taken, so that its dual vectors change.
      snapshot: with the first of an outer iteration, w at its start; SVRG alone.
      mean: likewise the full gradient there.
    """

    version: int
    outer: int
    w: np.ndarray
    step: float
    taken: bool
    snapshot: np.ndarray | None = None
    mean: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """From a worker: the sum of its examples' gradients, ``[d]``, and how many seconds it took."""

    gradient: np.ndarray
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Sent:
    """From a worker: a message, as `Message` has it, the version that it was computed with, and how many seconds."""

    v: np.ndarray
    rows: np.ndarray | None
    change: np.ndarray | None
    version: int
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Lost:
    """In place of an answer: whoever was asked is gone, and what was asked will not come."""


@dataclasses.dataclass(frozen=True)
class Joined:
    """In place of an answer: somebody is there and ready, for the first time or in place of one that was lost."""


class Crew(Protocol):
    """The workers, as the server sees them."""

    def send(self, worker: int, request: Start | Full | Compute) -> None:
        """Asks something of a worker; does not wait. If the worker is gone, nothing happens."""

    def receive(self) -> tuple[int, Sent | Part | Lost | Joined]:
        """Waits for whoever has something to say."""
        ...
