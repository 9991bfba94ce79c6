"""Which examples a message is computed from, and how much each of them counts (thesis, section 3.3.2).

Draws are made on the host, from a seed and the worker's number alone, so that every engine computes the same messages.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.problems.problem import Problem
from jaxdecouple.asynchronous.problems.rows import Array

Sampling = Literal["uniform", "shuffled", "importance", "adaptive"]
SAMPLINGS = ("uniform", "shuffled", "importance", "adaptive")
_BLOCK = 64  # messages that are drawn at once


class Draw(NamedTuple):
    """The examples of a message.

    Attributes:
      rows: their numbers, ``[h]``.
      weights: ``1 / (n_k p_i)``, by which an example that is chosen rarely counts more, ``[h]``; 1 if uniform.
      repeats: how often each was chosen before in this message, ``[h]``; 0 if uniform, which chooses without
        repetition, as section 3.4.1 assumes.
      coordinates: the coordinates of w that the message may change, ``[c]``; None: all of them.
    """

    rows: Array
    weights: Array
    repeats: Array
    coordinates: Array | None = None


class Chances(NamedTuple):
    """What an adaptive message is drawn from, by `choose`, when the dual residues are known.

    Attributes:
      uniforms: numbers between 0 and 1, ``[h]``.
      first: the number of the worker's first example.
      every: how far apart its examples are: all of them are ``first``, ``first + every``, and so on.
    """

    uniforms: Array
    first: Array
    every: Array


def rows_of(worker: int, workers: int, n: int) -> np.ndarray:
    """The examples of a worker: every K-th one, so that sorted examples are spread evenly."""
    return np.arange(worker, n, workers)


def importance(problem: Problem, rows: np.ndarray) -> np.ndarray:
    """Probabilities of ``rows`` in proportion to ``L_i + l2 n`` (Csiba and Richtarik 2015).

    L_i is the constant of phi_i. With them the step size may be ``1 / (mean L_i + l2 n)``, where uniform sampling has
    the largest L_i.
    """
    weights = np.asarray(problem.smoothness, np.float64)[rows] + problem.l2 * problem.n
    return weights / weights.sum()


class How(NamedTuple):
    """How examples are drawn.

    Attributes:
      h: how many for a message, H of Algorithm 7 or the size of a mini-batch.
      sampling: ``uniform``, different ones in a message; ``shuffled``, all in a random order before any comes again;
        ``importance`` and ``adaptive``, see `importance` and `choose`.
      coordinates: of w that a message may change; 0: all.
    """

    h: int
    sampling: Sampling = "uniform"
    coordinates: int = 0


def draws(problem: Problem, mine: np.ndarray, how: How, seed: tuple[int, ...]) -> Iterator[Draw | Chances]:
    """The draws of a worker for one message after another.

    Args:
      problem: of which ``mine`` are rows.
      mine: the worker's examples, ``[n_k]``, as far apart as those of `rows_of`.
      how: they are drawn.
      seed: of the draws; different for every worker and outer iteration.
    """
    chosen = coordinate_draws(problem.d, how.coordinates, (*seed, 1)) if how.coordinates else None
    for block in _blocks(problem, mine, how, np.random.default_rng(seed)):
        for at in range(len(block[0])):
            of_message = jax.tree.map(lambda leaf, at=at: leaf[at], block)
            yield of_message if chosen is None else of_message._replace(coordinates=next(chosen))


def stacked(problem: Problem, mine: np.ndarray, count: int, how: How, seed: tuple[int, ...]) -> Draw | Chances:
    """The first ``count`` of `draws`, as arrays with a row for each message."""
    blocks, there = [], 0
    for block in _blocks(problem, mine, how, np.random.default_rng(seed)):
        blocks.append(block)
        there += len(block[0])
        if there >= count:
            break
    all_of_them = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *blocks)
    if not how.coordinates:
        return all_of_them
    chosen = itertools.islice(coordinate_draws(problem.d, how.coordinates, (*seed, 1)), count)
    return all_of_them._replace(coordinates=np.stack(list(chosen)))


def _blocks(problem: Problem, mine: np.ndarray, how: How, rng: np.random.Generator) -> Iterator[Any]:
    """The draws of some messages at once, again and again."""
    n_k, h, sampling = len(mine), how.h, how.sampling
    if sampling == "adaptive":
        first, every = mine[0], mine[1] - mine[0] if n_k > 1 else problem.num_rows
        ends = [np.full(_BLOCK, number, np.int32) for number in (first, every)]
        while True:
            yield Chances(rng.random((_BLOCK, h)).astype(problem.dtype), *ends)
    if sampling == "importance":
        cumulated = np.cumsum(importance(problem, mine))
        weights = (1 / (n_k * np.diff(cumulated, prepend=0))).astype(problem.dtype)
        while True:
            chosen = np.minimum(np.searchsorted(cumulated, rng.random((_BLOCK, h)), side="right"), n_k - 1)
            repeated = np.stack([repeats(of_message) for of_message in chosen])
            yield Draw(mine[chosen].astype(np.int32), weights[chosen], repeated)
    ones, zeros = np.ones((_BLOCK, h), problem.dtype), np.zeros((_BLOCK, h), np.int32)
    while sampling == "shuffled":
        order = rng.permutation(mine)[: n_k // h * h].reshape(-1, h).astype(np.int32)
        for at in range(0, len(order), _BLOCK):
            of_block = order[at : at + _BLOCK]
            yield Draw(of_block, ones[: len(of_block)], zeros[: len(of_block)])
    while True:
        yield Draw(mine[_different(rng, n_k, h)].astype(np.int32), ones, zeros)


def _different(rng: np.random.Generator, n: int, h: int) -> np.ndarray:
    """Numbers below n, all different within a message, ``[_BLOCK, h]``."""
    if h * h > n:
        return np.stack([rng.choice(n, h, replace=False) for _ in range(_BLOCK)])
    chosen = rng.integers(n, size=(_BLOCK, h))
    while True:  # a message with two that are equal is drawn anew, as often as it takes
        ordered = np.sort(chosen, axis=1)
        again = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
        if not len(again):
            return chosen
        chosen[again] = rng.integers(n, size=(len(again), h))


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

    No example counts so much that its alpha_i would go beyond ``-grad phi_i``, ``1 / (step l2 n)`` times at most: so
    alpha_i stays where the conjugate of phi_i is finite.
    """
    residues = problem.residue(w, alpha, jnp.arange(problem.num_rows))
    mine = (jnp.arange(problem.num_rows) - chances.first) % chances.every == 0
    norms = jnp.where(mine, problem.residue_norms(residues), 0)
    smoothness = problem.smoothness
    assert smoothness is not None  # or the solver would have refused to sample so
    wanted = norms * jnp.sqrt(smoothness + problem.l2 * problem.n)
    total, count = jnp.sum(wanted), jnp.sum(mine)
    p = jnp.where(total > 0, wanted / jnp.where(total > 0, total, 1), mine / count)
    cumulated = jnp.cumsum(p)
    rows = jnp.searchsorted(cumulated, chances.uniforms * cumulated[-1], side="right")
    rows = jnp.minimum(rows, problem.num_rows - 1)
    # With these p the sum below theta is the square of the total.
    theta = problem.l2 * count * jnp.sum(norms**2) / jnp.where(total > 0, total, 1) ** 2
    weights = jnp.minimum(1, theta / (step * problem.l2)) / (count * jnp.where(p[rows] > 0, p[rows], 1))
    weights = jnp.minimum(weights, 1 / (step * problem.l2 * problem.n))
    earlier = jnp.sum(jnp.tril(rows[:, None] == rows[None, :], -1), axis=1)
    return Draw(rows, weights.astype(problem.dtype), earlier)
