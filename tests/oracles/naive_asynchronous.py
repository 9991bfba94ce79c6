"""An oracle: the methods of the thesis's chapters 2 and 3 as naive float64 NumPy loops, written from its listings.

Given are the messages that the server takes, as (worker, delay), and the examples that each was computed from. A method
gives its state after each message. The dual-free ones keep a whole vector alpha_i of each example.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Messages = Sequence[tuple[int, int]]  # (worker, delay) of the messages of one outer iteration
Plan = Sequence[Messages]
Drawn = Sequence[Iterator[Any]]  # of each worker, the examples of one message after another


class State(NamedTuple):
    """What there is after a message: w, and of dual methods alpha, ``[n, d]`` or ``[n]``."""

    w: Array
    alpha: Array | None = None


@dataclass(frozen=True)
class Problem:
    """Eq. 3.1: ``gradient(w, i)`` is that of phi_i; ``smoothness[i]`` its Lipschitz constant."""

    n: int
    d: int
    l2: float
    gradient: Callable[[Array, int], Array]
    smoothness: Array | None = None

    def part_gradient(self, w: Array, i: int) -> Array:
        """Of f_i = phi_i + (l2/2) |w|^2, so that eq. 2.1 is eq. 3.1."""
        return self.gradient(w, i) + self.l2 * w


@dataclass(frozen=True)
class Linear(Problem):
    """phi_i(w) = loss(x_i . w; y_i), by the derivative of the loss."""

    x: Array = None
    y: Array = None
    derivative: Callable[[float, float], float] = None


def linear(x: Array, y: Array, derivative: Callable[[float, float], float], constant: float, l2: float) -> Linear:
    """A problem of linear predictions; the loss's derivative has the Lipschitz constant ``constant``."""

    def gradient(w: Array, i: int) -> Array:
        return derivative(float(x[i] @ w), float(y[i])) * x[i]

    n, d = x.shape
    norms = np.array([x[i] @ x[i] for i in range(n)])
    return Linear(n, d, l2, gradient, constant * norms, x, y, derivative)


def squared(z: float, y: float) -> float:
    """The derivative of (y - z)^2, section 3.1."""
    return 2 * (z - y)


def halved(z: float, y: float) -> float:
    """The derivative of (z - y)^2 / 2, eq. 3.38."""
    return z - y


def logistic(z: float, y: float) -> float:
    """The derivative of log(1 + exp(-y z))."""
    return -y / (1 + math.exp(y * z))


def hinge(gamma: float) -> Callable[[float, float], float]:
    """The derivative of the hinge loss whose corner is a parabola between 1 - gamma and 1."""

    def derivative(z: float, y: float) -> float:
        if y * z >= 1:
            return 0.0
        return -y if y * z <= 1 - gamma else -y * (1 - y * z) / gamma

    return derivative


def pca(x: Array, mu: float, b: Array, l2: float) -> Problem:
    """Eq. 3.40."""
    n, d = x.shape
    hessians = [(mu - l2) * np.eye(d) - np.outer(x[i], x[i]) for i in range(n)]
    smoothness = np.array([np.abs(np.linalg.eigvalsh(hessian)).max() for hessian in hessians])
    return Problem(n, d, l2, lambda w, i: hessians[i] @ w - b, smoothness)


def network(x: Array, y: Array, hidden: int, classes: int, l2: float) -> Problem:
    """A layer of ReLUs and softmax loss; w holds the biases, then the weights, of one layer after the other."""
    n, features = x.shape
    sizes = np.cumsum([hidden, features * hidden, classes, hidden * classes])

    def gradient(w: Array, i: int) -> Array:
        c1, a1, c2, a2 = np.split(w, sizes[:-1])
        a1, a2 = a1.reshape(features, hidden), a2.reshape(hidden, classes)
        before = x[i] @ a1 + c1
        after = np.where(before > 0, before, 0)
        logits = after @ a2 + c2
        of_logits = np.exp(logits - logits.max())
        of_logits /= of_logits.sum()
        of_logits[y[i]] -= 1
        of_before = np.where(before > 0, a2 @ of_logits, 0)
        return np.concatenate(
            [of_before, np.outer(x[i], of_before).ravel(), of_logits, np.outer(after, of_logits).ravel()]
        )

    return Problem(n, int(sizes[-1]), l2, gradient)


def sgd(
    problem: Problem, w: Array, plan: Plan, drawn: Drawn, alpha: float, beta: float, chosen: Drawn | None = None
) -> list[State]:
    """SGD with section 2.5.1's rate alpha / (1 + s)^beta; a worker's gradient is of the w that it has.

    With ``chosen`` an update changes these coordinates of w alone.
    """
    states = []
    for s, messages in enumerate(plan):
        eta, versions = alpha / (1 + s) ** beta, [w]
        for t, (k, delay) in enumerate(messages):
            rows = next(drawn[k])
            v = sum(problem.part_gradient(versions[t - delay], i) for i in rows) / len(rows)
            w = w.copy()
            for coordinate in range(problem.d) if chosen is None else next(chosen[k]):
                w[coordinate] -= eta * v[coordinate]
            versions.append(w)
            states.append(State(w))
    return states


def full_gradient(problem: Problem, w: Array, workers: int) -> Array:
    """Algorithms 2 and 3: every worker sends the sum of its gradients, the server divides by n."""
    sums = [sum(problem.part_gradient(w, i) for i in range(k, problem.n, workers)) for k in range(workers)]
    return sum(sums) / problem.n


def reduced(problem: Problem, w: Array, snapshot: Array, mean: Array, rows: Sequence[int]) -> Array:
    """The variance reduced gradient, eq. 2.5 and 2.33."""
    v = np.zeros(problem.d)
    for i in rows:
        v += problem.part_gradient(w, i) - problem.part_gradient(snapshot, i) + mean
    return v / len(rows)


def distributed_asysvrg(problem: Problem, w: Array, plan: Plan, drawn: Drawn, eta: float) -> list[State]:
    """Algorithms 2 and 3; SVRG with one worker."""
    states = []
    for messages in plan:
        snapshot, versions = w, [w]
        mean = full_gradient(problem, snapshot, len(drawn))
        for t, (k, delay) in enumerate(messages):
            w = w - eta * reduced(problem, versions[t - delay], snapshot, mean, next(drawn[k]))
            versions.append(w)
            states.append(State(w))
    return states


def svrg(problem: Problem, w: Array, outer_steps: int, m: int, rows: Iterator[Any], eta: float) -> list[State]:
    """Serial SVRG: each step with the w of the step before."""
    states = []
    for _ in range(outer_steps):
        snapshot = w
        mean = sum(problem.part_gradient(snapshot, i) for i in range(problem.n)) / problem.n
        for _ in range(m):
            w = w - eta * reduced(problem, w, snapshot, mean, next(rows))
            states.append(State(w))
    return states


def distributed_svrg(
    problem: Problem, w: Array, outer_steps: int, rounds: int, drawn: Drawn, eta: float
) -> list[State]:
    """Synchronous SVRG: in each round the mean of one message of every worker; the state after each round."""
    states = []
    for _ in range(outer_steps):
        snapshot = w
        mean = full_gradient(problem, snapshot, len(drawn))
        for _ in range(rounds):
            sent = [reduced(problem, w, snapshot, mean, next(of_worker)) for of_worker in drawn]
            w = w - eta * sum(sent) / len(sent)
            states.append(State(w))
    return states


def shared_asysvrg(
    problem: Problem, w: Array, plan: Sequence[Sequence[tuple[int, set[int]]]], drawn: Drawn, chosen: Drawn, eta: float
) -> list[State]:
    """Algorithm 1. For each iteration the thread and J(t), the numbers of the iterations that it has not seen."""
    states = []
    for iterations in plan:
        snapshot, versions = w, [w]
        mean = sum(problem.part_gradient(snapshot, i) for i in range(problem.n)) / problem.n
        for t, (k, unseen) in enumerate(iterations):
            seen = versions[t] - sum(versions[j + 1] - versions[j] for j in unseen)  # eq. 2.6
            v = reduced(problem, seen, snapshot, mean, next(drawn[k]))
            w = versions[t].copy()
            for coordinate in next(chosen[k]):
                w[coordinate] -= eta * v[coordinate]  # eq. 2.4
            versions.append(w)
            states.append(State(w))
    return states


def maximiser(problem: Linear, i: int, w: Array, alpha: float, sigma: float) -> float:
    """c of eq. 3.4 for example i, its quadratic term sigma times as heavy, by bisection.

    Where it is largest, alpha_i + c = -loss'(z + q c) with z = x_i . w and q = sigma |x_i|^2 / (l2 n).
    """
    z, q = float(problem.x[i] @ w), sigma * float(problem.x[i] @ problem.x[i]) / (problem.l2 * problem.n)

    def slope(c: float) -> float:
        return alpha + c + problem.derivative(z + q * c, float(problem.y[i]))

    reach = 1 + abs(slope(0.0))  # the slope grows by at least as much as c
    low, high = -reach, reach
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2


def start(problem: Linear) -> Array:
    """alpha = 0, but for examples of zeros, which change no w: theirs is best at once."""
    empty = [not problem.x[i].any() for i in range(problem.n)]
    return np.array(
        [-problem.derivative(0.0, float(y)) if none else 0.0 for none, y in zip(empty, problem.y, strict=True)]
    )


def sdca(problem: Linear, rows: Sequence[int]) -> list[State]:
    """Algorithm 4; the state after each example."""
    w, alpha = np.zeros(problem.d), start(problem)
    states = []
    for i in rows:
        change = maximiser(problem, i, w, alpha[i], 1.0)
        alpha[i] += change
        w = w + change * problem.x[i] / (problem.l2 * problem.n)
        states.append(State(w, alpha.copy()))
    return states


def cocoa_plus(problem: Linear, rounds: int, drawn: Drawn) -> list[State]:
    """CoCoA+, adding (gamma = 1) with sigma' = K: local SDCA on a w of its own; the state after each round."""
    workers, scale = len(drawn), 1 / (problem.l2 * problem.n)
    w, alpha = np.zeros(problem.d), start(problem)
    states = []
    for _ in range(rounds):
        total = np.zeros(problem.d)
        for of_worker in drawn:
            local = np.zeros(problem.d)
            for i in next(of_worker):
                change = maximiser(problem, i, w + workers * local, alpha[i], workers)
                alpha[i] += change
                local = local + scale * change * problem.x[i]
            total += local
        w = w + total
        states.append(State(w, alpha.copy()))
    return states


def dfsdca(problem: Problem, rows: Sequence[int], eta: float) -> list[State]:
    """Algorithm 5; the state after each example."""
    w, alpha = np.zeros(problem.d), np.zeros((problem.n, problem.d))
    states = []
    for i in rows:
        kappa = problem.gradient(w, i) + alpha[i]
        alpha[i] = alpha[i] - eta * problem.l2 * problem.n * kappa
        w = w - eta * kappa
        states.append(State(w, alpha.copy()))
    return states


def dis_dfsdca(
    problem: Problem, plan: Plan, drawn: Drawn, eta: float, *, sampling: str = "uniform", counts: Array | None = None
) -> list[State]:
    """Algorithms 6 and 7, the example i weighted by 1 / (n_k p_i) where sampling is not uniform.

    ``drawn`` are examples, or for adaptive sampling numbers between 0 and 1. ``counts[k]`` replaces eq. 3.7's n.
    """
    n, d, workers = problem.n, problem.d, len(drawn)
    counts = [n] * workers if counts is None else counts
    parts = [np.arange(k, n, workers) for k in range(workers)]
    w, alpha = np.zeros(d), np.zeros((n, d))
    states = []
    for messages in plan:
        versions = [w]
        for t, (k, delay) in enumerate(messages):
            stale, v = versions[t - delay], np.zeros(d)
            rows, weights = weighted(problem, parts[k], next(drawn[k]), sampling, (stale, alpha, eta))
            for i, weight in zip(rows, weights, strict=True):
                kappa = weight * (problem.gradient(stale, i) + alpha[i])
                alpha[i] = alpha[i] - eta * problem.l2 * counts[k] * kappa
                v += kappa
            w = w - eta * v
            versions.append(w)
            states.append(State(w, alpha.copy()))
    return states


def weighted(
    problem: Problem, part: Array, drawn: Array, sampling: str, now: tuple[Array, Array, float]
) -> tuple[Array, Array]:
    """The examples of a message and their weights; ``now`` is w, alpha and eta.

    Importance: p_i in proportion to L_i + l2 n. Adaptive: to |kappa_i| sqrt(L_i + l2 n); a number u stands for the
    first example up to which the probabilities sum up to more than u; and all count less if eta is beyond theta / l2,
    and none so much that eta l2 n times its weight is more than 1.
    """
    if sampling == "uniform":
        return drawn, np.ones(len(drawn))
    constants = problem.smoothness[part] + problem.l2 * problem.n
    if sampling == "importance":
        p = constants / constants.sum()
        at = [int(np.flatnonzero(part == i)[0]) for i in drawn]
        return drawn, np.array([1 / (len(part) * p[j]) for j in at])
    w, alpha, eta = now
    kappas = np.array([np.linalg.norm(problem.gradient(w, i) + alpha[i]) for i in part])
    p = kappas * np.sqrt(constants)
    p /= p.sum()
    alive = p > 0
    worst = sum(constants[alive] * kappas[alive] ** 2 / p[alive])
    theta = problem.l2 * len(part) * sum(kappas**2) / worst
    at = [int(np.flatnonzero(np.cumsum(p) > u)[0]) for u in drawn]
    scale, most = min(1.0, theta / (problem.l2 * eta)), 1 / (eta * problem.l2 * problem.n)
    return part[at], np.array([min(scale / (len(part) * p[j]), most) for j in at])
