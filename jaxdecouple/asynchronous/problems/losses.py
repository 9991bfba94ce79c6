"""A loss is a function phi(z; y) of the prediction ``z = x . w`` and the label, as linear problems are made of.

Each comes with what the dual methods need: its derivative, its convex conjugate, and the maximiser of SDCA's
subproblem (thesis, eq. 3.4), written for a quadratic term of weight ``q``:

    increase(z, alpha, y, q) = argmax_c  -phi*(-(alpha + c)) - z c - q c^2 / 2

Here ``q = |x|^2 / (lambda n)``, times sigma' in CoCoA+, is how much a change of alpha_i changes its own prediction.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Squared:
    """``scale * (z - y)^2``: ridge regression with scale 1 (section 3.1), the quadratic loss of eq. 3.38 with 1/2."""

    scale: float = 1.0

    @property
    def smoothness(self) -> float:
        """The Lipschitz constant of the derivative."""
        return 2 * self.scale

    def check_labels(self, y: np.ndarray) -> None:
        """Any finite number is a label."""

    def value(self, z: jax.Array, y: jax.Array) -> jax.Array:
        """``phi(z; y)``."""
        return self.scale * (z - y) ** 2

    def derivative(self, z: jax.Array, y: jax.Array) -> jax.Array:
        """``phi'(z; y)``."""
        return 2 * self.scale * (z - y)

    def conjugate(self, alpha: jax.Array, y: jax.Array) -> jax.Array:
        """``phi*(-alpha)``."""
        return alpha**2 / (4 * self.scale) - alpha * y

    def increase(self, z: jax.Array, alpha: jax.Array, y: jax.Array, q: jax.Array) -> jax.Array:
        """SDCA's step; see the head of this file."""
        return (y - z - alpha / (2 * self.scale)) / (1 / (2 * self.scale) + q)


@dataclasses.dataclass(frozen=True)
class Logistic:
    """``log(1 + exp(-y z))``, with labels -1 and 1."""

    @property
    def smoothness(self) -> float:
        """As of `Squared`."""
        return 0.25

    def check_labels(self, y: np.ndarray) -> None:
        """Raises ValueError: there are others than -1 and 1."""
        _check_signs("logistic", y)

    def value(self, z: jax.Array, y: jax.Array) -> jax.Array:
        """``phi(z; y)``."""
        return jax.nn.softplus(-y * z)

    def derivative(self, z: jax.Array, y: jax.Array) -> jax.Array:
        """``phi'(z; y)``."""
        return -y * jax.nn.sigmoid(-y * z)

    def conjugate(self, alpha: jax.Array, y: jax.Array) -> jax.Array:
        """``phi*(-alpha)``: ``b log b + (1 - b) log(1 - b)`` with ``b = alpha y``; infinite outside of [0, 1]."""
        b = alpha * y
        inside = jax.scipy.special.xlogy(b, b) + jax.scipy.special.xlog1py(1 - b, -b)
        return jnp.where((b < 0) | (b > 1), jnp.inf, inside)

    def increase(self, z: jax.Array, alpha: jax.Array, y: jax.Array, q: jax.Array) -> jax.Array:
        """SDCA's step, by bisection and Newton's method for the logit of ``(alpha + c) y``."""
        b, margin = alpha * y, y * z

        def excess(s: jax.Array) -> jax.Array:
            return s + margin + q * (jax.nn.sigmoid(s) - b)  # grows with s, by at least as much

        def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bracket
            middle = (low + high) / 2
            below = excess(middle) < 0
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        def newton(_: int, s: jax.Array) -> jax.Array:
            p = jax.nn.sigmoid(s)
            return s - excess(s) / (1 + q * p * (1 - p))

        # From far away Newton's method may go in circles; the bracket is q wide, and 2^-25 of it is near enough.
        low, high = jax.lax.fori_loop(0, 25, halve, (-margin - q * (1 - b), -margin + q * b))
        s = jax.lax.fori_loop(0, 4, newton, (low + high) / 2)
        return (jax.nn.sigmoid(s) - b) * y


@dataclasses.dataclass(frozen=True)
class SmoothedHinge:
    """The hinge loss with its corner rounded over ``gamma`` (Shalev-Shwartz and Zhang 2013), labels -1 and 1.

    With ``a = y z``: 0 from a = 1 on, ``1 - a - gamma / 2`` up to ``1 - gamma``, ``(1 - a)^2 / (2 gamma)`` between.
    """

    gamma: float = 1.0

    @property
    def smoothness(self) -> float:
        """As of `Squared`."""
        return 1 / self.gamma

    def check_labels(self, y: np.ndarray) -> None:
        """Raises ValueError: there are others than -1 and 1."""
        _check_signs("smoothed_hinge", y)

    def value(self, z: jax.Array, y: jax.Array) -> jax.Array:
        """``phi(z; y)``."""
        short = jnp.maximum(1 - y * z, 0)
        return jnp.where(short < self.gamma, short**2 / (2 * self.gamma), short - self.gamma / 2)

    def derivative(self, z: jax.Array, y: jax.Array) -> jax.Array:
        """``phi'(z; y)``."""
        return -y * jnp.clip((1 - y * z) / self.gamma, 0, 1)

    def conjugate(self, alpha: jax.Array, y: jax.Array) -> jax.Array:
        """``phi*(-alpha)``: ``gamma b^2 / 2 - b`` with ``b = alpha y``; infinite outside of [0, 1]."""
        b = alpha * y
        return jnp.where((b < 0) | (b > 1), jnp.inf, self.gamma * b**2 / 2 - b)

    def increase(self, z: jax.Array, alpha: jax.Array, y: jax.Array, q: jax.Array) -> jax.Array:
        """SDCA's step; see the head of this file."""
        b = alpha * y
        return (jnp.clip(b + (1 - y * z - self.gamma * b) / (q + self.gamma), 0, 1) - b) * y


Loss = Squared | Logistic | SmoothedHinge


def _check_signs(name: str, y: np.ndarray) -> None:
    found = np.unique(y)
    if not np.isin(found, (-1, 1)).all():
        shown = ", ".join(f"{value:g}" for value in found[:4]) + (", ..." if len(found) > 4 else "")
        remedy = "2 * y - 1" if np.isin(found, (0, 1)).all() else "numpy.where(y == ..., 1, -1)"
        raise ValueError(f"the labels are {shown}, and {name} needs -1 and 1; write y = {remedy}")
