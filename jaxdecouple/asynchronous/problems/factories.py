"""The problems of the thesis's chapters 2 and 3, made from a user's arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.problems.components import Components
from jaxdecouple.asynchronous.problems.losses import Logistic, Loss, SmoothedHinge, Squared
from jaxdecouple.asynchronous.problems.problem import General, Linear
from jaxdecouple.asynchronous.problems.rows import Dense, Sparse, as_rows, check_real, inexact


def ridge(x: Any, y: Any, *, l2: float) -> Linear:
    """Ridge regression: phi_i(w) = (y_i - x_i . w)^2, as section 3.1 has it.

    Args:
      x: examples, ``[n, d]``: an array or a SciPy sparse matrix, which stays sparse unless it is small and rather full.
      y: labels, ``[n]``.
      l2: lambda of eq. 3.1.

    Raises:
      ValueError: the arrays do not fit, hold what is not finite or float64 under 32-bit JAX, or ``l2`` is negative.
    """
    return linear(x, y, Squared(1.0), l2=l2)


def quadratic(x: Any, y: Any, *, l2: float) -> Linear:
    """The quadratic loss of eq. 3.38, phi_i(w) = (x_i . w - y_i)^2 / 2; arguments: see `ridge`."""
    return linear(x, y, Squared(0.5), l2=l2)


def logistic(x: Any, y: Any, *, l2: float) -> Linear:
    """Logistic regression: phi_i(w) = log(1 + exp(-y_i x_i . w)), labels -1 and 1; arguments: see `ridge`."""
    return linear(x, y, Logistic(), l2=l2)


def smoothed_hinge(x: Any, y: Any, *, l2: float, gamma: float = 1.0) -> Linear:
    """A support vector machine with a hinge rounded over ``gamma``, labels -1 and 1; the rest: see `ridge`."""
    return linear(x, y, SmoothedHinge(gamma), l2=l2)


def linear(x: Any, y: Any, loss: Loss, *, l2: float, weights: Any = None) -> Linear:
    """A problem of linear predictions with any of the losses.

    Args:
      x: examples, see `ridge`; or the ``rows`` of another problem.
      y: labels, ``[n]``.
      loss: phi.
      l2: lambda of eq. 3.1.
      weights: of the examples, above 0, ``[n]``: phi_i is so many times the loss. None: 1.

    Raises:
      ValueError: see `ridge`; or a weight is not above 0.
    """
    _check_l2(l2)
    rows, y = x if isinstance(x, Dense | Sparse) else as_rows(x), np.asarray(y)
    if y.shape != (rows.shape[0],):
        raise ValueError(f"X has {rows.shape[0]} rows and y has shape {y.shape}; write one label for each row")
    check_real(y.dtype, "y", "numbers, of classes -1 and 1: numpy.where(y == ..., 1, -1)")
    if not np.isfinite(y).all():
        raise ValueError("y holds numbers that are not finite; leave such rows out")
    loss.check_labels(y)
    if weights is not None:
        weights = jnp.asarray(weights, rows.dtype)
        if weights.shape != y.shape or not (np.isfinite(weights) & (np.asarray(weights) > 0)).all():
            raise ValueError(f"weights has shape {weights.shape}; write a number above 0 for each of {len(y)} rows")
    y = jnp.asarray(y, rows.dtype)
    return Linear(l2=float(l2), n=rows.shape[0], rows=rows, y=y, loss=loss, weights=weights)


def pca(x: Any, *, mu: float, l2: float, b: Any = None) -> Components:
    """A step towards the first principal component, eq. 3.40, whose parts need not be convex though their sum is.

        phi_i(w) = w^T ((mu - l2) I - x_i x_i^T) w / 2 - b . w

    phi_i is convex where ``|x_i|^2 <= mu - l2``: with the thesis's unit vectors and mu = 100 all of them are.

    Args:
      x: examples, ``[n, d]``, dense. The dual state takes as much memory.
      mu: above the largest eigenvalue of C = X^T X / n plus ``l2``, for f to be convex. The thesis's section 3.1 has
        l2 / 2 in place of eq. 3.40's l2; with that the regularised sum is not the problem it is meant to be.
      l2: lambda of eq. 3.1.
      b: ``[d]``; None: from a standard normal distribution, seed 0.

    Raises:
      ValueError: the arrays cannot be used, see `ridge`; or ``mu`` is too small.
    """
    _check_l2(l2)
    if hasattr(x, "tocsr"):
        raise ValueError("X is sparse, and the dual state of pca is dense; write X.toarray(), if it fits")
    rows = as_rows(x)
    assert isinstance(rows, Dense)  # X is not sparse
    n, d = rows.shape
    b = np.random.default_rng(0).standard_normal(d) if b is None else np.asarray(b)
    if b.shape == (d,) and not np.isfinite(b).all():
        raise ValueError("b holds numbers that are not finite")
    if b.shape != (d,):
        raise ValueError(f"b has shape {b.shape} and X has {d} columns; write one number for each column")
    host = np.asarray(rows.matrix, np.float64)
    largest = float(np.linalg.eigvalsh(host.T @ host / n)[-1])
    if not largest + l2 <= mu < math.inf:
        raise ValueError(
            f"mu is {mu}, but the sum is convex only from {largest + l2:.6g} on, the largest eigenvalue of "
            "X^T X / n plus l2; write a larger mu"
        )
    return Components(l2=float(l2), n=n, rows=rows, shift=float(mu - l2), b=jnp.asarray(b, rows.dtype))


def network(x: Any, y: Any, *, hidden: int, l2: float, num_classes: int | None = None, seed: int = 0) -> General:
    """The networks of section 2.5: one hidden layer of ReLUs, softmax loss; l2 regularisation of all parameters.

    The thesis has 784-100-10 with l2 = 1e-3 on MNIST, 384-50-10 with 1e-4 on features of CIFAR-10.

    Args:
      x: examples, ``[n, d]``.
      y: classes, integers from 0, ``[n]``.
      hidden: units of the hidden layer.
      l2: C of section 2.5, as lambda of eq. 3.1.
      num_classes: the number of classes; None: as many as ``y`` has.
      seed: of the initial parameters.

    Raises:
      ValueError: the arrays cannot be used, see `ridge`; or the labels are no classes.
    """
    _check_l2(l2)
    x, y = as_rows(x), np.asarray(y)
    if y.shape != (x.shape[0],) or not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise ValueError(
            f"y has shape {y.shape} and dtype {y.dtype}, and X {x.shape[0]} rows; write one class for each row, an "
            "integer from 0"
        )
    num_classes = int(y.max()) + 1 if num_classes is None else num_classes
    if y.max() >= num_classes:
        raise ValueError(f"y holds class {y.max()}, and num_classes is {num_classes}; write {y.max() + 1} or more")
    phi = SoftmaxLoss(x.shape[1], hidden, num_classes, np.dtype(x.dtype))
    examples = {"x": x.matrix, "y": jnp.asarray(y)}
    return General(l2=float(l2), n=x.shape[0], examples=examples, start=phi.start(seed), phi=phi)


@dataclasses.dataclass(frozen=True)
class SoftmaxLoss:
    """phi of a `network` problem; equal for the same sizes, so that such problems share what is compiled.

    Attributes:
      features: length of an example.
      hidden: units of the hidden layer.
      num_classes: units of the output.
      dtype: of the parameters.
    """

    features: int
    hidden: int
    num_classes: int
    dtype: np.dtype

    def __call__(self, w: jax.Array, example: dict[str, jax.Array]) -> jax.Array:
        """Cross-entropy of one example."""
        logits = self.logits(w, example["x"])
        return jax.nn.logsumexp(logits) - logits[example["y"]]

    def logits(self, w: jax.Array, x: jax.Array) -> jax.Array:
        """What the network with parameters ``w``, ``[d]``, says of one example or many, ``[..., num_classes]``."""
        return self._module.apply(self._unravel(w), x)

    def start(self, seed: int) -> jax.Array:
        """Initial parameters, ``[d]``."""
        params = self._module.init(jax.random.key(seed), jnp.zeros(self.features, self.dtype))
        return jax.flatten_util.ravel_pytree(params)[0].astype(self.dtype)

    @property
    def _module(self) -> Any:
        from flax import linen as nn  # a worker of a linear problem starts sooner without it

        return nn.Sequential([nn.Dense(self.hidden), nn.relu, nn.Dense(self.num_classes)])

    @property
    def _unravel(self) -> Callable[[jax.Array], Any]:
        shapes = jax.eval_shape(lambda: self._module.init(jax.random.key(0), jnp.zeros(self.features, self.dtype)))
        return jax.flatten_util.ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, self.dtype), shapes))[1]


def general(phi: Any, examples: Any, start: Any, *, l2: float, bounds: tuple[float, float] | None = None) -> General:
    """A problem of any differentiable ``phi(w, example)``.

    Args:
      phi: a pure function of w, ``[d]``, and one example of ``examples``.
      examples: a pytree of arrays whose first axis counts the examples.
      start: where methods without a dual state begin, ``[d]``.
      l2: lambda of eq. 3.1.
      bounds: Lipschitz constants of the gradients of the phi_i, and of their mean, if known.

    Raises:
      ValueError: the arrays disagree on the number of examples, or phi gives no scalar.
    """
    _check_l2(l2)
    counts = {len(leaf) for leaf in jax.tree.leaves(examples)}
    if len(counts) != 1:
        raise ValueError(
            f"the arrays of examples have {sorted(counts)} rows; write arrays with one row for each example"
        )
    start = np.asarray(start)
    problem = General(
        l2=float(l2),
        n=counts.pop(),
        examples=jax.tree.map(jnp.asarray, examples),
        start=jnp.asarray(start, inexact(start.dtype, "start")),
        phi=phi,
        bounds=bounds,
    )
    shape = jax.eval_shape(phi, problem.start, jax.tree.map(lambda leaf: leaf[0], problem.examples))
    if getattr(shape, "shape", None) != ():
        raise ValueError(f"phi gives {shape} for one example; write a function to a number")
    return problem


def _check_l2(l2: float) -> None:
    if not (np.isfinite(l2) and l2 >= 0):
        raise ValueError(f"l2 is {l2}; write a number of at least 0, and above 0 for dual methods")
