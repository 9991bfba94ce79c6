"""The step of a principal component analysis, eq. 3.40: a convex sum whose parts may not be convex."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.problems.problem import OfRows, VectorDual
from jaxdecouple.asynchronous.problems.rows import Array, Dense


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Components(OfRows, VectorDual):
    """``phi_i(w) = (shift |w|^2 - (x_i . w)^2) / 2 - b . w``; alpha is ``[num_rows, d]``.

    Attributes:
      rows: the x_i, dense.
      b: ``[d]``.
      shift: mu - l2.
    """

    rows: Dense
    b: jax.Array
    shift: float

    @property
    def x(self) -> jax.Array:
        """The examples, ``[num_rows, d]``."""
        return self.rows.matrix

    @property
    def smoothness(self) -> jax.Array:
        """The Hessian of phi_i has the eigenvalues ``shift`` and ``shift - |x_i|^2``."""
        return jnp.maximum(abs(self.shift), jnp.abs(self.shift - jnp.sum(self.x**2, axis=1)))

    @property
    def curvature(self) -> float:
        """Where the problem is convex."""
        return self.shift

    def loss_sum(self, w: jax.Array) -> jax.Array:
        squares = jnp.sum((self.x @ w) ** 2)
        return self.num_rows * (self.shift / 2 * w @ w - self.b @ w) - squares / 2

    def gradient_sum(self, w: jax.Array) -> jax.Array:
        return self.num_rows * (self.shift * w - self.b) - (self.x @ w) @ self.x

    def mean_gradient(self, w: jax.Array, rows: Array) -> jax.Array:
        x = self.x[rows]
        return (self.shift + self.l2) * w - self.b - (x @ w) @ x / len(rows)

    def residue(self, w: jax.Array, alpha: jax.Array, rows: Array) -> jax.Array:
        x = self.x[rows]
        return self.shift * w - self.b - (x @ w)[:, None] * x + alpha

    @property
    def convex_parts(self) -> bool:
        """Whether every phi_i is convex."""
        return bool(jnp.max(jnp.sum(self.x**2, axis=1)) <= self.shift)

    def optimum(self) -> tuple[jax.Array, jax.Array]:
        """The w with ``(mu I - C) w = b``, and P there."""
        x, b = np.asarray(self.x, np.float64), np.asarray(self.b, np.float64)
        w = np.linalg.solve((self.shift + self.l2) * np.eye(self.d) - x.T @ x / self.n, b)
        return jnp.asarray(w, self.dtype), jnp.asarray(-b @ w / 2, self.dtype)

    def part(self, rows: np.ndarray) -> Components:
        return dataclasses.replace(self, rows=self.rows.take(rows))
