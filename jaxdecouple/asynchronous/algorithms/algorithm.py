"""An algorithm is a pair of pure functions: how a worker computes a message, and what the server does with it.

Both stand for one line of the thesis's listings each. Everything else, who computes when and with which w, is the
engine's business and the same for all of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxdecouple.asynchronous.algorithms.sampling import Chances, Draw, How, Sampling, choose
from jaxdecouple.asynchronous.problems.problem import Linear, Problem
from jaxdecouple.asynchronous.problems.rows import Array

_BLOCK = 64  # examples whose predictions are kept up to date by their Gram matrix


class View(NamedTuple):
    """What a worker computes a message with, as the server sent it.

    Attributes:
      w: at the time, ``[d]``.
      step: eta in this outer iteration.
      snapshot: w at the start of the outer iteration, ``[d]``; SVRG alone, else None.
      mean: the gradient of P there, ``[d]``; SVRG alone.
    """

    w: jax.Array
    step: jax.Array
    snapshot: jax.Array | None = None
    mean: jax.Array | None = None


class Message(NamedTuple):
    """What a worker sends.

    Attributes:
      v: by which the server moves w, times the step size, ``[d]``.
      rows: the examples whose dual vectors change, ``[h]``, or None where there are none.
      change: by how much, ``[h]`` or ``[h, d]``.
    """

    v: jax.Array
    rows: Array | None = None
    change: jax.Array | None = None


class Server(NamedTuple):
    """What the server has: w, and of dual methods a copy of all dual vectors, so that no worker's loss loses them.

    Attributes:
      w: ``[d]``.
      alpha: ``[n]`` or ``[n, d]``, see `Problem.initial_dual`; None without a dual.
    """

    w: jax.Array
    alpha: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """What all algorithms have.

    Attributes:
      h: examples of a message: H, or the size of a mini-batch.
      sampling: how they are chosen.
    """

    h: int
    sampling: Sampling = "uniform"

    name: ClassVar[str]
    gradients_per_example: ClassVar[int] = 1  # that a message takes
    has_dual: ClassVar[bool] = False
    needs_mean: ClassVar[bool] = False  # a full gradient at the start of every outer iteration
    in_rounds: ClassVar[bool] = False  # every worker sends one message, computed with the same w
    can_diverge: ClassVar[bool] = True  # with a step size that is too large

    @property
    def how(self) -> How:
        """How the examples of a message are drawn."""
        return How(self.h, self.sampling)

    def message(self, problem: Problem, view: View, alpha: jax.Array | None, draw: Draw | Chances) -> Message:
        """A worker's message from the examples of ``draw``."""
        raise NotImplementedError

    def shrunk(self, step: float, workers: int) -> float:
        """The factor of v, from the step size."""
        return step


def update(server: Server, message: Message, step: jax.Array) -> Server:
    """The server's part in every algorithm: ``w <- w - eta v`` (eqs. 2.32, 3.5), and the changes of dual vectors."""
    alpha = server.alpha
    if message.change is not None:
        assert alpha is not None  # of a method with a dual
        alpha = alpha.at[message.rows].add(message.change)
    return Server(server.w - step * message.v, alpha)


@dataclasses.dataclass(frozen=True)
class Sgd(Algorithm):
    """Stochastic gradient descent, asynchronous where there are several workers (AsySGD).

    v = (1/|I|) sum_{i in I} grad f_i(w_{t - tau})                          f_i = phi_i + (l2/2) |w|^2

    Attributes:
      coordinates: how many random ones of v are sent; 0: all.
    """

    coordinates: int = 0

    name = "sgd"

    @property
    def how(self) -> How:
        return How(self.h, self.sampling, self.coordinates)

    def message(self, problem: Problem, view: View, alpha: None, draw: Draw) -> Message:
        v = problem.mean_gradient(view.w, draw.rows)
        if draw.coordinates is not None:
            v = jnp.zeros_like(v).at[draw.coordinates].set(v[draw.coordinates])
        return Message(v)


@dataclasses.dataclass(frozen=True)
class Svrg(Algorithm):
    """Distributed-AsySVRG, Algorithms 2 and 3; SVRG with one worker.

        v = (1/|I|) sum_{i in I} (grad f_i(w_{t - tau}) - grad f_i(snapshot) + grad f(snapshot))        (eq. 2.33)

    Algorithm 3 has each worker send the plain sum of its n_k gradients of f_i, and Algorithm 2 divides by n.
    """

    name = "distributed_asysvrg"
    gradients_per_example = 2
    needs_mean = True

    def message(self, problem: Problem, view: View, alpha: None, draw: Draw) -> Message:
        assert view.snapshot is not None and view.mean is not None  # as SVRG needs
        here = problem.mean_gradient(view.w, draw.rows)
        return Message(here - problem.mean_gradient(view.snapshot, draw.rows) + view.mean)


@dataclasses.dataclass(frozen=True)
class SvrgInRounds(Svrg):
    """Distributed SVRG, synchronous: in each round w moves by the mean of one message of every worker."""

    name = "distributed_svrg"
    in_rounds = True

    def shrunk(self, step: float, workers: int) -> float:
        """The messages of a round are taken one by one, each for its share of the mean."""
        return step / workers


@dataclasses.dataclass(frozen=True)
class DualFree(Algorithm):
    """Dis-dfSDCA, Algorithms 6 and 7; dual-free SDCA (Algorithm 5) with one worker and h = 1.

        kappa   = grad phi_i(w_{d(t)}) + alpha_i                                                          (eq. 3.6)
        alpha_i = alpha_i - eta l2 n kappa                                                                (eq. 3.7)
        v       = v + kappa                                              for each of the h examples       (eq. 3.8)

    n is that of the whole problem, as in eq. 3.7. Algorithm 7 prints n_k, the worker's, with which
    ``w = (1/(l2 n)) sum alpha_i`` would not hold. With other than uniform sampling, kappa counts ``1 / (n_k p_i)``
    times.
    """

    name = "dis_dfsdca"
    has_dual = True

    def message(self, problem: Problem, view: View, alpha: jax.Array, draw: Draw | Chances) -> Message:
        if isinstance(draw, Chances):
            draw = choose(problem, view.w, alpha, draw, view.step)
        rate = view.step * problem.l2 * problem.n
        # All examples see the same w, so one that was chosen m times before has had (1 - rate * weight)^m of its kappa
        # left.
        counts = draw.weights * (1 - rate * draw.weights) ** draw.repeats
        kappa = problem.residue(view.w, alpha[draw.rows], draw.rows)
        kappa = kappa * counts.reshape(-1, *[1] * (kappa.ndim - 1))
        return Message(problem.combine(draw.rows, kappa), draw.rows, -rate * kappa)


@dataclasses.dataclass(frozen=True)
class DualAscent(Algorithm):
    """CoCoA+ with SDCA as local solver (Ma et al. 2015), adding up what the workers send; SDCA with one worker.

    A worker goes through its h examples one by one. It sees its own changes ``sigma`` times as large as they are, since
    K - 1 others change w meanwhile (sigma' = K is safe when changes are added, gamma = 1). For each of them

        alpha_i = alpha_i + c        c = argmax -phi*(-(alpha_i + c)) - z c - sigma |x_i|^2 c^2 / (2 l2 n)    (eq. 3.4)
        w       = w + c x_i / (l2 n)                                                                     (Algorithm 4)

    Some examples at a time are gone through by their Gram matrix, which says how each changes the predictions of the
    others: the same numbers by matrix products (communication-avoiding coordinate descent, Devarakonda et al. 2019).

    Attributes:
      sigma: sigma', K.
    """

    sigma: float = 1.0

    name = "cocoa_plus"
    has_dual = True
    in_rounds = True
    can_diverge = False  # the dual objective never falls, but the primal one may rise far above its start

    def message(self, problem: Linear, view: View, alpha: jax.Array, draw: Draw) -> Message:
        """``v`` is what w loses, so that the step size is 1."""
        scale = 1 / (problem.l2 * problem.n)
        ascend = self._by_blocks if problem.rows.is_narrow else self._one_by_one
        moved, change = ascend(problem, view.w, alpha[draw.rows], draw.rows, scale)
        return Message(-moved, draw.rows, change)

    def _by_blocks(
        self, problem: Linear, w: jax.Array, alpha: jax.Array, rows: Array, scale: Any
    ) -> tuple[jax.Array, jax.Array]:
        """By how much w and alpha change."""
        count = -(-self.h // _BLOCK)
        size = -(-self.h // count)
        real = jnp.arange(count * size) < self.h
        at = jnp.minimum(jnp.arange(count * size), self.h - 1)

        def ascend(moved: jax.Array, some: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            at, real = some
            # What fills up the last block are zeros, which move nothing.
            block = jnp.where(real[:, None], problem.rows.block(rows[at]), 0)
            z = block @ (w + self.sigma * moved)
            gram = self.sigma * scale * block @ block.T
            change = problem.loss_of(rows[at]).ascend(z, alpha[at], problem.y[rows[at]], gram)
            return moved + scale * change @ block, change

        blocks = at.reshape(count, size), real.reshape(count, size)
        moved, change = jax.lax.scan(ascend, jnp.zeros_like(w), blocks)
        return moved, change.reshape(-1)[: self.h]

    def _one_by_one(
        self, problem: Linear, w: jax.Array, alpha: jax.Array, rows: Array, scale: Any
    ) -> tuple[jax.Array, jax.Array]:
        """The same, for rows that are too wide and empty to be made dense."""
        loss, quadratic = problem.loss_of(rows), self.sigma * scale * problem.rows.squared_norms(rows)

        def ascend(w: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
            z = problem.rows.dot(rows[i][None], w)[0]
            change = loss.of(i).increase(z, alpha[i], problem.y[rows[i]], quadratic[i])
            return problem.rows.added(w, rows[i], self.sigma * scale * change), change

        _, change = jax.lax.scan(ascend, w, jnp.arange(self.h))
        return scale * problem.rows.combine(rows, change), change
