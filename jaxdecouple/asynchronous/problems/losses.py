"""A loss is a function phi(z; y) of the prediction ``z = x . w`` and the label, as linear problems are made of.

Each comes with what the dual methods need: its derivative, its convex conjugate, and the maximiser of SDCA's
subproblem (thesis, eq. 3.4), written for a quadratic term of weight ``q``:

    increase(z, alpha, y, q) = argmax_c  -phi*(-(alpha + c)) - z c - q c^2 / 2

Here ``q = |x|^2 / (lambda n)``, times sigma' in CoCoA+, is how much a change of alpha_i changes its own prediction.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np


class Loss:
    """What every loss has; all functions work element by element."""

    name: ClassVar[str]

    @property
    def smoothness(self) -> Any:
        """The Lipschitz constant of the derivative."""
        raise NotImplementedError

    def check_labels(self, y: np.ndarray) -> None:
        """Refuses labels that the loss has no meaning for.

        Raises:
          ValueError: there are such.
        """
        found = np.unique(y)
        if not np.isin(found, (-1, 1)).all():
            shown = ", ".join(f"{value:g}" for value in found[:4]) + (", ..." if len(found) > 4 else "")
            remedy = "2 * y - 1" if np.isin(found, (0, 1)).all() else "numpy.where(y == ..., 1, -1)"
            raise ValueError(f"the labels are {shown}, and {self.name} needs -1 and 1; write y = {remedy}")

    def value(self, z: jax.Array, y: jax.Array) -> jax.Array:
        """``phi(z; y)``."""
        raise NotImplementedError

    def derivative(self, z: jax.Array, y: jax.Array) -> jax.Array:
        """``phi'(z; y)``."""
        raise NotImplementedError

    def conjugate(self, alpha: jax.Array, y: jax.Array) -> jax.Array:
        """``phi*(-alpha)``."""
        raise NotImplementedError

    def feasible(self, alpha: jax.Array, y: jax.Array) -> jax.Array:
        """The nearest dual variables for which the conjugate is finite."""
        return alpha

    def increase(self, z: jax.Array, alpha: jax.Array, y: jax.Array, q: jax.Array) -> jax.Array:
        """SDCA's step; see the head of this file."""
        raise NotImplementedError

    def of(self, example: Any) -> Loss:
        """The loss of one example of those that this is of."""
        return self

    def ascend(self, z: jax.Array, alpha: jax.Array, y: jax.Array, gram: jax.Array) -> jax.Array:
        """SDCA's steps for one example after another: each sees by how much those before it have moved its prediction.

        Args:
          z: predictions before the first step, ``[h]``.
          alpha: dual variables before it, ``[h]``.
          y: labels, ``[h]``.
          gram: by how much a step of 1 for one example moves another's prediction, ``[h, h]``.
        """

        def step(z: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
            change = self.of(i).increase(z[i], alpha[i], y[i], gram[i, i])
            return z + change * gram[i], change

        return jax.lax.scan(step, z, jnp.arange(len(z)))[1]


@dataclasses.dataclass(frozen=True)
class Weighted(Loss):
    """``s phi(z; y)``: a loss each of whose examples has a weight.

    Attributes:
      loss: phi.
      weights: s, above 0, of the examples that the arguments of a function are of.
    """

    loss: Loss
    weights: Any

    @property
    def smoothness(self) -> Any:
        return self.weights * self.loss.smoothness

    def of(self, example: Any) -> Loss:
        return Weighted(self.loss, self.weights[example])

    def ascend(self, z: jax.Array, alpha: jax.Array, y: jax.Array, gram: jax.Array) -> jax.Array:
        if isinstance(self.loss, Squared):
            return self.loss.ascend(z, alpha, y, gram, self.weights)
        return super().ascend(z, alpha, y, gram)

    def value(self, z: jax.Array, y: jax.Array) -> jax.Array:
        return self.weights * self.loss.value(z, y)

    def derivative(self, z: jax.Array, y: jax.Array) -> jax.Array:
        return self.weights * self.loss.derivative(z, y)

    def conjugate(self, alpha: jax.Array, y: jax.Array) -> jax.Array:
        return self.weights * self.loss.conjugate(alpha / self.weights, y)

    def feasible(self, alpha: jax.Array, y: jax.Array) -> jax.Array:
        return self.weights * self.loss.feasible(alpha / self.weights, y)

    def increase(self, z: jax.Array, alpha: jax.Array, y: jax.Array, q: jax.Array) -> jax.Array:
        return self.weights * self.loss.increase(z, alpha / self.weights, y, q * self.weights)


@dataclasses.dataclass(frozen=True)
class Squared(Loss):
    """``scale * (z - y)^2``: ridge regression with scale 1 (section 3.1), the quadratic loss of eq. 3.38 with 1/2."""

    scale: float = 1.0

    @property
    def smoothness(self) -> float:
        return 2 * self.scale

    def check_labels(self, y: np.ndarray) -> None:
        """Any finite number is a label."""

    def value(self, z: jax.Array, y: jax.Array) -> jax.Array:
        return self.scale * (z - y) ** 2

    def derivative(self, z: jax.Array, y: jax.Array) -> jax.Array:
        return 2 * self.scale * (z - y)

    def conjugate(self, alpha: jax.Array, y: jax.Array) -> jax.Array:
        return alpha**2 / (4 * self.scale) - alpha * y

    def increase(self, z: jax.Array, alpha: jax.Array, y: jax.Array, q: jax.Array) -> jax.Array:
        return (y - z - alpha / (2 * self.scale)) / (1 / (2 * self.scale) + q)

    def ascend(self, z: jax.Array, alpha: jax.Array, y: jax.Array, gram: jax.Array, weights: Any = 1.0) -> jax.Array:
        """As a triangular system of equations, for each step depends on those before it linearly."""
        inverse = 1 / (2 * self.scale * weights)
        lower = jnp.tril(gram) + inverse * jnp.eye(len(z), dtype=gram.dtype)
        return jax.scipy.linalg.solve_triangular(lower, y - z - inverse * alpha, lower=True)


@dataclasses.dataclass(frozen=True)
class Logistic(Loss):
    """``log(1 + exp(-y z))``, with labels -1 and 1."""

    name = "logistic"

    @property
    def smoothness(self) -> float:
        return 0.25

    def value(self, z: jax.Array, y: jax.Array) -> jax.Array:
        return jax.nn.softplus(-y * z)

    def derivative(self, z: jax.Array, y: jax.Array) -> jax.Array:
        return -y * jax.nn.sigmoid(-y * z)

    def conjugate(self, alpha: jax.Array, y: jax.Array) -> jax.Array:
        """``phi*(-alpha)``: ``b log b + (1 - b) log(1 - b)`` with ``b = alpha y``; infinite outside of [0, 1]."""
        b = alpha * y
        inside = jax.scipy.special.xlogy(b, b) + jax.scipy.special.xlog1py(1 - b, -b)
        return jnp.where((b < 0) | (b > 1), jnp.inf, inside)

    def feasible(self, alpha: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.clip(alpha * y, 0, 1) * y

    def increase(self, z: jax.Array, alpha: jax.Array, y: jax.Array, q: jax.Array) -> jax.Array:
        """SDCA's step; its maximum is where ``s + q sigmoid(s) = q b - y z`` for the logit s of ``(alpha + c) y``.

        Left of 0 the left side is convex and increasing, so Newton's method from any point between the root and 0 goes
        straight to the root, for q from 0 to any size. Where the root is right of 0, that of ``-s`` is sought. The
        first point is at most about 1 from the root: as sigmoid(s) >= exp(s) / 2, the root is at most ``a - W(e^t)``,
        with ``a`` the right side, ``t = a + log(q / 2)``, and Lambert's W, which is at least ``t - log t`` for t >= 1
        and ``x / (1 + x)`` for any x.
        """
        b, half = alpha * y, q / 2
        a = q * b - y * z
        flipped = a > half
        a = jnp.where(flipped, q - a, a)
        log_half = jnp.log(jnp.maximum(half, jnp.finfo(a.dtype).tiny))
        t = a + log_half
        above = jnp.maximum(t, 1)
        s = jnp.minimum(0, jnp.where(t > 1, jnp.log(above) - log_half, a - jax.nn.sigmoid(jnp.minimum(t, 1))))
        for _ in range(6):
            p = jax.nn.sigmoid(s)
            s = s - (s + q * p - a) / (1 + q * p * (1 - p))
        return (jax.nn.sigmoid(jnp.where(flipped, -s, s)) - b) * y


@dataclasses.dataclass(frozen=True)
class SmoothedHinge(Loss):
    """The hinge loss with its corner rounded over ``gamma`` (Shalev-Shwartz and Zhang 2013), labels -1 and 1.

    With ``a = y z``: 0 from a = 1 on, ``1 - a - gamma / 2`` up to ``1 - gamma``, ``(1 - a)^2 / (2 gamma)`` between.
    """

    gamma: float = 1.0
    name = "smoothed_hinge"

    def __post_init__(self) -> None:
        if not 0 < self.gamma < np.inf:
            raise ValueError(f"gamma is {self.gamma}; write a positive number, since the hinge itself is not smooth")

    @property
    def smoothness(self) -> float:
        return 1 / self.gamma

    def value(self, z: jax.Array, y: jax.Array) -> jax.Array:
        short = jnp.maximum(1 - y * z, 0)
        return jnp.where(short < self.gamma, short**2 / (2 * self.gamma), short - self.gamma / 2)

    def derivative(self, z: jax.Array, y: jax.Array) -> jax.Array:
        return -y * jnp.clip((1 - y * z) / self.gamma, 0, 1)

    def conjugate(self, alpha: jax.Array, y: jax.Array) -> jax.Array:
        """``phi*(-alpha)``: ``gamma b^2 / 2 - b`` with ``b = alpha y``; infinite outside of [0, 1]."""
        b = alpha * y
        return jnp.where((b < 0) | (b > 1), jnp.inf, self.gamma * b**2 / 2 - b)

    def feasible(self, alpha: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.clip(alpha * y, 0, 1) * y

    def increase(self, z: jax.Array, alpha: jax.Array, y: jax.Array, q: jax.Array) -> jax.Array:
        b = alpha * y
        return (jnp.clip(b + (1 - y * z - self.gamma * b) / (q + self.gamma), 0, 1) - b) * y
