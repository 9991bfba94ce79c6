"""Which examples a message is computed from, and how much each of them counts (thesis, section 3.3.2).

Draws are made on the host, from a seed and the worker's number alone, so that every engine computes the same messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.problems.problem import Problem

Sampling = Literal["uniform", "importance", "adaptive"]
SAMPLINGS = ("uniform", "importance", "adaptive")


class Draw(NamedTuple):
    """The examples of a message.

    Attributes:
      rows: their numbers, ``[h]``.
      weights: ``1 / (n_k p_i)``, by which an example that is chosen rarely counts more, ``[h]``; 1 if uniform.
      repeats: how often each was chosen before in this message, ``[h]``; 0 if uniform, which chooses without
        repetition,
        as section 3.4.1 assumes.
    """

    rows: np.ndarray | jax.Array
    weights: np.ndarray | jax.Array
    repeats: np.ndarray | jax.Array


class Chances(NamedTuple):
    """What an adaptive message is drawn from, by `choose`, when the dual residues are known.

    Attributes:
      uniforms: numbers between 0 and 1, ``[h]``.
      mine: which examples are the worker's, ``[num_rows]``.
    """

    uniforms: np.ndarray | jax.Array
    mine: np.ndarray | jax.Array


def rows_of(worker: int, workers: int, n: int) -> np.ndarray:
    """The examples of a worker: every K-th one, so that sorted examples are spread evenly."""
    return np.arange(worker, n, workers)


def importance(problem: Problem, rows: np.ndarray) -> np.ndarray:
    """Probabilities of ``rows`` in proportion to ``L_i + l2 n`` (Csiba and Richtarik 2015), where L_i is phi_i's
    constant.

    With them the step size may be ``1 / (mean L_i + l2 n)``, where uniform sampling has the largest L_i.
    """
    weights = np.asarray(problem.smoothness, np.float64)[rows] + problem.l2 * problem.n
    return weights / weights.sum()


def draws(
    problem: Problem, mine: np.ndarray, *, h: int, sampling: Sampling, seed: tuple[int, ...]
) -> Iterator[Draw | Chances]:
    """The draws of a worker, message after message.

    Args:
      problem: of which ``mine`` are rows.
      mine: the worker's examples, ``[n_k]``.
      h: how many to draw, H of Algorithm 7 or the size of a mini-batch.
      sampling: how.
      seed: of the draws; different for every worker.
    """
    rng = np.random.default_rng(seed)
    ones, zeros = np.ones(h, problem.dtype), np.zeros(h, np.int32)
    if sampling == "adaptive":
        where = np.zeros(problem.num_rows, bool)
        where[mine] = True
        while True:
            yield Chances(rng.random(h).astype(problem.dtype), where)
    cumulated = np.cumsum(importance(problem, mine)) if sampling == "importance" else None
    while cumulated is None:
        yield Draw(mine[rng.choice(len(mine), h, replace=False)].astype(np.int32), ones, zeros)
    weights = 1 / (len(mine) * np.diff(cumulated, prepend=0))
    while True:
        chosen = np.minimum(np.searchsorted(cumulated, rng.random(h), side="right"), len(mine) - 1)
        yield Draw(mine[chosen].astype(np.int32), weights[chosen].astype(problem.dtype), repeats(chosen))


def repeats(chosen: np.ndarray) -> np.ndarray:
    """How often each entry has occurred before itself."""
    order = np.argsort(chosen, kind="stable")
    ranked = chosen[order]
    first = np.searchsorted(ranked, ranked)
    counts = np.empty(len(chosen), np.int32)
    counts[order] = np.arange(len(chosen)) - first
    return counts


def coordinate_draws(d: int, count: int, seed: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The coordinates that a thread's updates change, one update after another, ``[count]`` of ``d``."""
    rng = np.random.default_rng(seed)
    while True:
        yield rng.choice(d, count, replace=False).astype(np.int32)


def choose(problem: Problem, w: jax.Array, alpha: jax.Array, chances: Chances, step: jax.Array) -> Draw:
    """Examples drawn with probabilities that follow the dual residues kappa_i at ``w``, all of which are computed.

    The probabilities are proportional to ``|kappa_i| sqrt(L_i + l2 n)`` (AdaSDCA, Csiba, Qu and Richtarik 2015). An
    example with a small residue is drawn rarely and would count for very much; so the message is scaled down where
    ``step`` is more than the step size that guarantees progress for these probabilities (He and Takac 2015),

        theta / l2    with    theta = l2 n_k sum kappa_i^2 / sum (L_i + l2 n) kappa_i^2 / p_i      over the worker's n_k
    """
    residues = problem.residue(w, alpha, jnp.arange(problem.num_rows))
    norms = jnp.where(chances.mine, problem.residue_norms(residues), 0)
    wanted = norms * jnp.sqrt(problem.smoothness + problem.l2 * problem.n)
    total, count = jnp.sum(wanted), jnp.sum(chances.mine)
    p = jnp.where(total > 0, wanted / jnp.where(total > 0, total, 1), chances.mine / count)
    cumulated = jnp.cumsum(p)
    rows = jnp.searchsorted(cumulated, chances.uniforms * cumulated[-1], side="right")
    rows = jnp.minimum(rows, problem.num_rows - 1)
    # With these p the sum below theta is the square of the total.
    theta = problem.l2 * count * jnp.sum(norms**2) / jnp.where(total > 0, total, 1) ** 2
    weights = jnp.minimum(1, theta / (step * problem.l2)) / (count * jnp.where(p[rows] > 0, p[rows], 1))
    earlier = jnp.sum(jnp.tril(rows[:, None] == rows[None, :], -1), axis=1)
    return Draw(rows, weights.astype(problem.dtype), earlier)
