"""What a solver returns."""

from __future__ import annotations

import dataclasses

import jax

from jaxdecouple.asynchronous.trace import Trace


@dataclasses.dataclass(frozen=True)
class Result:
    """The end of a run.

    Attributes:
      w: the solution, ``[d]``.
      alpha: the dual state, as of `jaxdecouple.asynchronous.problems.problem.Problem`; None of primal methods.
      trace: what was measured on the way.
      step_size: eta in the first outer iteration.
      lost: workers that were lost and replaced on the way.
    """

    w: jax.Array
    alpha: jax.Array | None
    trace: Trace
    step_size: float
    lost: int = 0
