"""Step sizes: rules that say eta of one outer iteration after another, and what the thesis's theorems allow."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
import warnings
from typing import Any, ClassVar

import numpy as np

from jaxdecouple.asynchronous.problems.problem import Problem


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


_PACKAGE = str(pathlib.Path(__file__).parents[1])
# So that a warning names the line that called the solver.
CALLER: Any = {"skip_file_prefixes": (_PACKAGE,)} if sys.version_info >= (3, 12) else {"stacklevel": 4}


class StepSizeWarning(UserWarning):
    """A step size is beyond what a theorem allows, which is not yet too large."""


def dual_free_convex(*, largest: float, l2: float, n: int, h: int, delay: int) -> float:
    """Eq. 3.18: ``1 / (4 H L tau^2 + l2 n + 2 L)``, for convex phi_i with constant L."""
    return 1 / (4 * h * largest * delay**2 + l2 * n + 2 * largest)


def dual_free_nonconvex(*, largest: float, l2: float, n: int, h: int, delay: int) -> float:
    """Eq. 3.30, for phi_i that need not be convex, where their sum is."""
    stale = 2 * h * largest * delay**2
    return l2**2 / (stale * l2**2 + 4 * stale * (largest + l2) ** 2 + 4 * l2 * largest**2 + n * l2**3)


def variance_reduced(*, largest: float, h: int, delay: int, inner_steps: int, coordinates: float = 1.0) -> float:
    """The largest eta that theorems 2.3.1 and 2.4.1 allow, for the best of many beta.

    For all t it must hold that Gamma_t > 0, and, as the proofs assume at eqs. 2.20 and 2.41, c_{t+1} <= beta / 2.

    Args:
      largest: L.
      h: b, the size of a mini-batch.
      delay: Delta.
      inner_steps: m.
      coordinates: d of theorem 2.3.1, by the number of coordinates that an update changes; 1 for theorem 2.4.1.
    """

    def holds(eta: float) -> bool:
        room = coordinates - 2 * (largest * delay * eta) ** 2
        return room > 0 and any(_holds(eta, beta, room) for beta in largest * np.logspace(-4, 4, 33))

    def _holds(eta: float, beta: float, room: float) -> bool:
        stale = largest**2 * delay**2 * eta**3 / (2 * coordinates) + eta**2 * largest / 2
        noise = 4 * largest**2 / (room * h)
        growth = 1 + eta * beta / coordinates + noise * eta**2
        # c_t = c_{t+1} growth + noise stale with c_m = 0 is largest at t = 0, where both conditions hold c_1.
        steps = inner_steps - 1
        log_growth = steps * math.log(growth)
        c = noise * stale * (math.expm1(log_growth) / (growth - 1)) if log_growth < 700 else math.inf
        return c <= beta / 2 and eta / (2 * coordinates) > 4 / room * (stale + c * eta**2)

    low, high = 0.0, 1 / largest
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def dual_free_default(problem: Problem, *, h: int, workers: int) -> float:
    """A step size that works: ``1 / (l2 n + 2 L + K h L_f)``.

    L_f is the constant of f, and L the largest of phi_i. Each of the h examples of a message, and of the K - 1
    messages that may be under way, was computed with a w that the others have moved meanwhile. What matters is how
    they move it together: that is L_f, not L.

    Raises:
      ValueError: no such constants are known for the problem.
    """
    if problem.smoothness is None:
        raise ValueError("no Lipschitz constant is known for this problem; write step_size=..., or give its bounds")
    largest, curvature = float(np.max(problem.smoothness)), problem.curvature
    assert curvature is not None  # known wherever the smoothness is
    return 1 / (problem.l2 * problem.n + 2 * largest + workers * h * curvature)


def check_positive(name: str, value: Any) -> None:
    """Refuses what is no number above 0.

    Raises:
      ValueError: it is none.
    """
    if not (isinstance(value, int | float | np.number) and np.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; write a positive number")


def warn_beyond(step_size: float, usual: float, source: str, bound: float, terms: str) -> None:
    """Warns of a step size beyond a theorem's bound, which it names, and beyond what solvers take by themselves."""
    if step_size > usual * (1 + 1e-9):
        warnings.warn(
            f"step_size is {step_size:.3g}, beyond {source}, {bound:.3g} ({terms}): convergence is not guaranteed, "
            "though it is often seen",
            StepSizeWarning,
            **CALLER,
        )
