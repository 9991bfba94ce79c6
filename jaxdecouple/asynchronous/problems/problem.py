"""A problem is a finite sum with l2 regularisation, as a pytree of data and pure functions of it (thesis, eq. 3.1).

    P(w) = (1/n) sum_i phi_i(w) + (l2/2) |w|^2                      w a vector [d], l2 the thesis's lambda

The dual-free methods keep a vector alpha_i for each example, with ``w = (1/(l2 n)) sum_i alpha_i``. Where the gradient
of phi_i is a number times x_i, so is alpha_i, and that number is all that is stored (section 3.2.2): `Linear` has a
dual state of shape ``[n]``, `General` one of shape ``[n, d]``.

A worker has a `part` of a problem: some of its examples, but n, and therefore the step sizes, of the whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.problems.losses import Loss, Weighted
from jaxdecouple.asynchronous.problems.rows import Array, Dense, Sparse, largest_eigenvalue

PyTree = Any
STATIC = {"static": True}  # of a field that is no data: another value compiles anew


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What every problem has.

    Attributes:
      l2: lambda, the weight of the regularisation.
      n: examples of the whole problem, of which this may be a part.
    """

    l2: float
    n: int = dataclasses.field(metadata=STATIC)

    @property
    def num_rows(self) -> int:
        """Examples that are here."""
        raise NotImplementedError

    @property
    def d(self) -> int:
        """Length of w."""
        raise NotImplementedError

    @property
    def dtype(self) -> Any:
        """Of w and alpha."""
        raise NotImplementedError

    def objective(self, w: jax.Array) -> jax.Array:
        """``P(w)``, for a problem that is whole."""
        return self.loss_sum(w) / self.n + self.l2 / 2 * w @ w

    def gradient(self, w: jax.Array) -> jax.Array:
        """The gradient of ``P``, ``[d]``, for a problem that is whole."""
        return self.gradient_sum(w) / self.n + self.l2 * w

    def initial(self) -> jax.Array:
        """Where methods without a dual state begin: zeros, or a network's initial parameters."""
        return jnp.zeros(self.d, self.dtype)

    def dual_gap(self, w: jax.Array, alpha: jax.Array) -> jax.Array | None:
        """``P(w) - D(alpha)`` (eq. 3.2), or None where the phi_i have no conjugates."""
        return None

    def optimum(self) -> tuple[jax.Array, jax.Array] | None:
        """The minimiser and the minimum, for problems that are systems of linear equations; None for others."""
        return None

    @property
    def is_convex(self) -> bool:
        """Whether ``P`` is known to be convex, whatever its parts are."""
        return False

    @property
    def smoothness(self) -> jax.Array | None:
        """Lipschitz constants of the gradients of the phi_i, ``[num_rows]``, or None where no bound is known."""
        return None

    @property
    def curvature(self) -> float | None:
        """A Lipschitz constant of the gradient of (1/n) sum phi_i, or None where no bound is known."""
        return None

    # What a worker computes with; ``rows`` are numbers of examples that are here.

    def loss_sum(self, w: jax.Array) -> jax.Array:
        """The sum of the phi_i(w) of the examples that are here."""
        raise NotImplementedError

    def gradient_sum(self, w: jax.Array) -> jax.Array:
        """The sum of their gradients, ``[d]``: what Algorithm 3 calls the worker's full gradient."""
        raise NotImplementedError

    def mean_gradient(self, w: jax.Array, rows: Array) -> jax.Array:
        """The mean over ``rows`` of the gradients of phi_i + (l2/2)|w|^2, the f_i of eq. 2.1, ``[d]``."""
        raise NotImplementedError

    def residue(self, w: jax.Array, alpha: jax.Array, rows: Array) -> jax.Array:
        """kappa of eq. 3.6, the gradient of phi_i plus alpha_i, for ``rows`` and their alpha; stored like alpha."""
        raise NotImplementedError

    def combine(self, rows: Array, kappa: jax.Array) -> jax.Array:
        """The sum over ``rows`` of residues or dual vectors that are stored like alpha, ``[d]``."""
        raise NotImplementedError

    def residue_norms(self, kappa: jax.Array) -> jax.Array:
        """``|kappa_i|`` of all the examples that are here, ``[num_rows]``."""
        raise NotImplementedError

    def initial_dual(self) -> jax.Array:
        """alpha with ``w(alpha) = 0``: ``[num_rows]`` or ``[num_rows, d]``."""
        raise NotImplementedError

    def feasible(self, alpha: jax.Array) -> jax.Array:
        """The nearest alpha for which the dual objective is finite, for a run to start from."""
        return alpha

    def dual_sum(self, alpha: jax.Array) -> jax.Array:
        """The sum of the alpha_i of the examples that are here, ``[d]``."""
        raise NotImplementedError

    def primal(self, alpha: jax.Array) -> jax.Array:
        """``w(alpha) = (1/(l2 n)) sum_i alpha_i`` (eq. 3.3), ``[d]``, for a problem that is whole."""
        return self.dual_sum(alpha) / (self.l2 * self.n)

    def part(self, rows: np.ndarray) -> Problem:
        """The problem of a worker that has these examples alone."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfRows(Problem):
    """A problem of the rows of a matrix.

    Attributes:
      rows: the x_i, ``[num_rows, d]``, dense or sparse.
    """

    rows: Dense | Sparse

    @property
    def num_rows(self) -> int:
        return self.rows.shape[0]

    @property
    def d(self) -> int:
        return self.rows.shape[1]

    @property
    def dtype(self) -> Any:
        return self.rows.dtype

    @property
    def is_convex(self) -> bool:
        return True


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(OfRows):
    """``phi_i(w) = loss(x_i . w; y_i)``.

    Attributes:
      y: labels, ``[num_rows]``.
      loss: phi.
      weights: of the examples, with mean 1, ``[num_rows]``, or None: phi_i is ``weights_i`` times the loss.
    """

    y: jax.Array
    loss: Loss = dataclasses.field(metadata=STATIC)
    weights: jax.Array | None = None

    def loss_of(self, rows: Any = slice(None)) -> Loss:
        """The loss of these examples, with their weights."""
        return self.loss if self.weights is None else Weighted(self.loss, self.weights[rows])

    @property
    def smoothness(self) -> jax.Array:
        """The loss's constant times ``|x_i|^2``, ``[num_rows]``."""
        return self.loss_of().smoothness * self.rows.all_squared_norms()

    @property
    def curvature(self) -> float:
        return float(jnp.max(self.loss_of().smoothness) * largest_eigenvalue(self.rows))

    def loss_sum(self, w: jax.Array) -> jax.Array:
        return jnp.sum(self.loss_of().value(self.rows.dot_all(w), self.y))

    def gradient_sum(self, w: jax.Array) -> jax.Array:
        return self.rows.combine_all(self.loss_of().derivative(self.rows.dot_all(w), self.y))

    def mean_gradient(self, w: jax.Array, rows: Array) -> jax.Array:
        derivative = self.loss_of(rows).derivative(self.rows.dot(rows, w), self.y[rows])
        return self.rows.combine(rows, derivative / len(rows)) + self.l2 * w

    def residue(self, w: jax.Array, alpha: jax.Array, rows: Array) -> jax.Array:
        """A number for each example, ``[h]``; kappa_i is this times x_i."""
        return self.loss_of(rows).derivative(self.rows.dot(rows, w), self.y[rows]) + alpha

    def combine(self, rows: Array, kappa: jax.Array) -> jax.Array:
        return self.rows.combine(rows, kappa)

    def residue_norms(self, kappa: jax.Array) -> jax.Array:
        return jnp.abs(kappa) * jnp.sqrt(self.rows.all_squared_norms())

    def initial_dual(self) -> jax.Array:
        # An example of zeros changes no w, whatever its alpha_i; its best one is known, and found by no sampling.
        empty = self.rows.all_squared_norms() == 0
        return jnp.where(empty, -self.loss_of().derivative(jnp.zeros_like(self.y), self.y), 0)

    def feasible(self, alpha: jax.Array) -> jax.Array:
        return self.loss_of().feasible(alpha, self.y)

    def dual_sum(self, alpha: jax.Array) -> jax.Array:
        return self.rows.combine_all(alpha)

    def dual_gap(self, w: jax.Array, alpha: jax.Array) -> jax.Array:
        of_alpha = self.primal(alpha)
        dual = -jnp.sum(self.loss_of().conjugate(alpha, self.y)) / self.n - self.l2 / 2 * of_alpha @ of_alpha
        return self.objective(w) - dual

    def part(self, rows: np.ndarray) -> Linear:
        weights = None if self.weights is None else self.weights[rows]
        return dataclasses.replace(self, rows=self.rows.take(rows), y=self.y[rows], weights=weights)


class VectorDual(Problem):
    """A problem that keeps a whole vector alpha_i for each example."""

    def combine(self, rows: Array, kappa: jax.Array) -> jax.Array:
        return jnp.sum(kappa, axis=0)

    def residue_norms(self, kappa: jax.Array) -> jax.Array:
        return jnp.linalg.norm(kappa, axis=1)

    def initial_dual(self) -> jax.Array:
        return jnp.zeros((self.num_rows, self.d), self.dtype)

    def dual_sum(self, alpha: jax.Array) -> jax.Array:
        return jnp.sum(alpha, axis=0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class General(VectorDual):
    """``phi_i(w) = phi(w, example_i)``, for any differentiable phi; alpha is ``[num_rows, d]``.

    Attributes:
      examples: a pytree of arrays whose first axis counts the examples.
      phi: a pure function of w, ``[d]``, and one example, to a number. Two problems share what is compiled if they
        share it.
      start: where methods without a dual state begin, ``[d]``.
      bounds: Lipschitz constants, as `Problem.smoothness` and `Problem.curvature` have them, or None.
    """

    examples: PyTree
    start: jax.Array
    phi: Callable[[jax.Array, PyTree], jax.Array] = dataclasses.field(metadata=STATIC)
    bounds: tuple[float, float] | None = dataclasses.field(metadata=STATIC, default=None)

    @property
    def num_rows(self) -> int:
        return len(jax.tree.leaves(self.examples)[0])

    @property
    def d(self) -> int:
        return len(self.start)

    @property
    def dtype(self) -> Any:
        return self.start.dtype

    @property
    def smoothness(self) -> jax.Array | None:
        return None if self.bounds is None else jnp.full(self.num_rows, self.bounds[0], self.dtype)

    @property
    def curvature(self) -> float | None:
        return None if self.bounds is None else self.bounds[1]

    def initial(self) -> jax.Array:
        return self.start

    def loss_sum(self, w: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(self.phi, (None, 0))(w, self.examples))

    def gradient_sum(self, w: jax.Array) -> jax.Array:
        return jax.grad(self.loss_sum)(w)

    def mean_gradient(self, w: jax.Array, rows: Array) -> jax.Array:
        examples = self._of(rows)
        mean = jax.grad(lambda w: jnp.mean(jax.vmap(self.phi, (None, 0))(w, examples)))
        return mean(w) + self.l2 * w

    def residue(self, w: jax.Array, alpha: jax.Array, rows: Array) -> jax.Array:
        return jax.vmap(jax.grad(self.phi), (None, 0))(w, self._of(rows)) + alpha

    def part(self, rows: np.ndarray) -> General:
        return dataclasses.replace(self, examples=self._of(np.asarray(rows)))

    def _of(self, rows: Any) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[rows], self.examples)
