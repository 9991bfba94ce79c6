"""What a solver returns."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxdecouple.asynchronous.trace import Trace


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Result:
    """The end of a run.

    Attributes:
      w: the solution, ``[d]``.
      alpha: the dual state, ``[n]``, or ``[n, d]`` where the phi_i have no scalar one; None of primal methods.
      trace: what was measured on the way.
      step_size: eta in the first outer iteration.
      lost: workers that were lost and replaced on the way.
      converged: whether the run came as near to a minimum as its ``tol`` says; without one, as 0.01 says.
    """

    w: jax.Array
    alpha: jax.Array | None
    trace: Trace
    step_size: float
    lost: int = 0
    converged: Any = False
