"""An algorithm is a pair of pure functions: how a worker computes a message, and what the server does with it.

Both stand for one line of the thesis's listings each. Everything else, who computes when and with which w, is the
engine's business and the same for all of them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax

from jaxdecouple.asynchronous.algorithms.sampling import Chances, Draw, Sampling, choose
from jaxdecouple.asynchronous.problems.problem import Problem


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
    rows: jax.Array | None = None
    change: jax.Array | None = None


class Server(NamedTuple):
    """What the server has: w, and of dual methods a copy of all dual vectors, so that no worker's loss loses them.

    Attributes:
      w: ``[d]``.
      alpha: as of `Problem`, or None.
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
        alpha = alpha.at[message.rows].add(message.change)
    return Server(server.w - step * message.v, alpha)


@dataclasses.dataclass(frozen=True)
class Sgd(Algorithm):
    """Stochastic gradient descent, asynchronous where there are several workers (AsySGD).

    v = (1/|I|) sum_{i in I} grad f_i(w_{t - tau})                          f_i = phi_i + (l2/2) |w|^2
    """

    name = "sgd"

    def message(self, problem: Problem, view: View, alpha: None, draw: Draw) -> Message:
        """As of `Algorithm`."""
        return Message(problem.mean_gradient(view.w, draw.rows))


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
        """As of `Algorithm`."""
        here = problem.mean_gradient(view.w, draw.rows)
        return Message(here - problem.mean_gradient(view.snapshot, draw.rows) + view.mean)


@dataclasses.dataclass(frozen=True)
class SvrgInRounds(Svrg):
    """Distributed SVRG, synchronous: in each round w moves by the mean of one message of every worker."""

    name = "distributed_svrg"
    in_rounds = True

    def shrunk(self, step: float, workers: int) -> float:
        """As of `Algorithm`: the messages of a round are taken one by one, each for its share of the mean."""
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
        """As of `Algorithm`."""
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

    A worker goes through its h examples one by one, and sees its own changes ``sigma`` times as large as they are,
    since
    K - 1 others change w meanwhile (sigma' = K is safe when changes are added, gamma = 1). For each of them

        alpha_i = alpha_i + c        c = argmax -phi*(-(alpha_i + c)) - z c - sigma |x_i|^2 c^2 / (2 l2 n)    (eq. 3.4)
        w       = w + c x_i / (l2 n)                                                                     (Algorithm 4)

    Attributes:
      sigma: sigma', K.
    """

    sigma: float = 1.0

    name = "cocoa_plus"
    has_dual = True
    in_rounds = True

    def message(self, problem: Problem, view: View, alpha: jax.Array, draw: Draw) -> Message:
        """As of `Algorithm`; ``v`` is what w loses, so that the step size is 1."""
        scale = 1 / (problem.l2 * problem.n)
        quadratic = self.sigma * scale * problem.rows.squared_norms(draw.rows)

        def ascend(w: jax.Array, example: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            row, alpha_i, label, q = example
            z = problem.rows.dot(row[None], w)[0]
            change = problem.loss.increase(z, alpha_i, label, q)
            return w + self.sigma * scale * problem.rows.combine(row[None], change[None]), change

        examples = draw.rows, alpha[draw.rows], problem.y[draw.rows], quadratic
        _, change = jax.lax.scan(ascend, view.w, examples)
        return Message(-scale * problem.rows.combine(draw.rows, change), draw.rows, change)
