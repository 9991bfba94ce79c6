"""The step of a principal component analysis, eq. 3.40: a convex sum whose parts may not be convex."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxdecouple.asynchronous.problems.problem import VectorDual


class Components(VectorDual):
    """``phi_i(w) = (shift |w|^2 - (x_i . w)^2) / 2 - b . w``; alpha is ``[num_rows, d]``.

    Attributes:
      x: examples, ``[num_rows, d]``.
      b: ``[d]``.
      shift: mu - l2.
    """

    x: jax.Array
    b: jax.Array
    shift: float = struct.field(pytree_node=False)

    @property
    def num_rows(self) -> int:
        """Examples that are here."""
        return self.x.shape[0]

    @property
    def d(self) -> int:
        """Length of w."""
        return self.x.shape[1]

    @property
    def dtype(self) -> Any:
        """Of w and alpha."""
        return self.x.dtype

    @property
    def smoothness(self) -> jax.Array:
        """As of `Problem`: the Hessian of phi_i has the eigenvalues ``shift`` and ``shift - |x_i|^2``."""
        return jnp.maximum(abs(self.shift), jnp.abs(self.shift - jnp.sum(self.x**2, axis=1)))

    @property
    def curvature(self) -> float:
        """As of `Problem`, where the problem is convex."""
        return self.shift

    def loss_sum(self, w: jax.Array) -> jax.Array:
        """As of `Problem`."""
        squares = jnp.sum((self.x @ w) ** 2)
        return self.num_rows * (self.shift / 2 * w @ w - self.b @ w) - squares / 2

    def gradient_sum(self, w: jax.Array) -> jax.Array:
        """As of `Problem`."""
        return self.num_rows * (self.shift * w - self.b) - (self.x @ w) @ self.x

    def mean_gradient(self, w: jax.Array, rows: jax.Array) -> jax.Array:
        """As of `Problem`."""
        x = self.x[rows]
        return (self.shift + self.l2) * w - self.b - (x @ w) @ x / len(rows)

    def residue(self, w: jax.Array, alpha: jax.Array, rows: jax.Array) -> jax.Array:
        """As of `Problem`, ``[h, d]``."""
        x = self.x[rows]
        return self.shift * w - self.b - (x @ w)[:, None] * x + alpha

    @property
    def convex_parts(self) -> bool:
        """Whether every phi_i is convex."""
        return bool(jnp.max(jnp.sum(self.x**2, axis=1)) <= self.shift)

    def optimum(self) -> tuple[jax.Array, jax.Array]:
        """As of `Problem`: the w with ``(mu I - C) w = b``."""
        x, b = np.asarray(self.x, np.float64), np.asarray(self.b, np.float64)
        w = np.linalg.solve((self.shift + self.l2) * np.eye(self.d) - x.T @ x / self.n, b)
        return jnp.asarray(w, self.dtype), jnp.asarray(-b @ w / 2, self.dtype)

    def part(self, rows: np.ndarray) -> Components:
        """As of `Problem`."""
        return self.replace(x=self.x[rows])
