"""A rule for step sizes says eta of one outer iteration after another."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np


@dataclasses.dataclass
class Steps:
    """Section 2.5.1's polynomial rate, ``eta_s = first / (1 + s)^decay``, or a constant.

    Attributes:
      first: eta of the first outer iteration.
      decay: beta.
    """

    first: float
    decay: float = 0.0

    safeguarded: ClassVar[bool] = False

    def of(self, outer: int) -> float:
        """eta after so many outer iterations."""
        return self.first / (1 + outer) ** self.decay

    def keeps(self, before: float, after: float) -> bool:
        """Whether w is to be kept where what is to be small was ``before`` and is ``after``; learns from it."""
        return True

    @property
    def state(self) -> np.ndarray:
        """What a checkpoint must hold to go on."""
        return np.zeros(0)

    @state.setter
    def state(self, saved: np.ndarray) -> None:
        pass


@dataclasses.dataclass
class Safeguarded(Steps):
    """Step sizes that begin with one that theory suggests, and grow while they do well.

    Where the run gets worse with a larger one, w and alpha are taken back, and eta is smaller. With the first one or
    less it may get worse for a while, as stochastic methods do; but where it is worse than at its beginning, eta falls
    below the first.

    Attributes:
      largest: that eta may be.
      rounding: by what share of itself a number may rise and count as level.
      growth: by what eta grows after the next success; smaller after each failure.
    """

    largest: float = float("inf")
    rounding: float = 1e-12
    growth: float = 2.0

    safeguarded = True

    def __post_init__(self) -> None:
        self.first = min(self.first, self.largest)
        self._eta, self._beginning = self.first, float("nan")

    def of(self, outer: int) -> float:
        return self._eta

    def keeps(self, before: float, after: float) -> bool:
        if self._beginning != self._beginning:
            self._beginning = before
        if after <= before + self.rounding * abs(before):
            self._eta = min(self._eta * self.growth, self.largest)
            return True
        if self._eta <= self.first:
            if after <= self._beginning:
                return True
            self._eta /= 4
            return False
        self._eta = max(self.first, self._eta / (2 * self.growth))
        self.growth = max(1.1, self.growth**0.5)
        return False

    @property
    def state(self) -> np.ndarray:
        return np.array([self._eta, self.growth, self._beginning])

    @state.setter
    def state(self, saved: np.ndarray) -> None:
        self._eta, self.growth, self._beginning = map(float, saved)
