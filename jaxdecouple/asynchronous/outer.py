"""What is there after an outer iteration: the state of a run, which engines hand on. Without JAX."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Outer:
    """What is there after an outer iteration, of any engine.

    Attributes:
      w: ``[d]``.
      alpha: the dual state, `Problem.initial_dual` at the start; None without a dual.
      outer: outer iterations so far.
      messages: that the server has taken so far.
      epochs: gradients of single examples computed for them, and for full gradients, by n.
      seconds: spent on them, on the virtual clock or the wall, without what saving took.
      lost: workers lost so far.
      delays: of the messages of this outer iteration.
      free: on the virtual clock, when each worker can begin something else, ``[K]``; else None.
      computing: seconds that processes took to compute what the server has taken, one after another; 0 where none do.
    """

    w: Any
    alpha: Any = None
    outer: int = 0
    messages: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    lost: int = 0
    delays: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    free: np.ndarray | None = None
    computing: float = 0.0

    def after(self, messages: int, epochs: float, **others: Any) -> Outer:
        """What is there an outer iteration of so many messages later."""
        counts = {"outer": self.outer + 1, "messages": self.messages + messages, "epochs": self.epochs + epochs}
        return dataclasses.replace(self, **counts, **others)
