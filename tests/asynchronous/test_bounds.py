"""Step sizes: what the thesis's theorems allow, by their formulas and recursions; and the warnings beyond."""

import re
import warnings
from typing import Any

import numpy as np
import pytest

from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import DrawnDelays, StepSizeWarning
from jaxdecouple.asynchronous.algorithms import step_sizes

X = np.random.default_rng(5).standard_normal((12, 4)).astype(np.float32)
Y = np.where(np.random.default_rng(6).random(12) < 0.5, -1, 1).astype(np.float32)
L2 = 0.2


def bound_of(problem: asynchronous.Problem, name: str = "dis_dfsdca", **options: Any) -> tuple[str, float]:
    """The theorem or equation that a warning names, and the number that follows."""
    counts = {"outer_steps": 1, "inner_steps": 8, **options}
    with pytest.warns(StepSizeWarning) as caught:
        getattr(asynchronous, name)(problem, **counts)
    (warning,) = [each for each in caught if issubclass(each.category, StepSizeWarning)]
    found = re.search(r"beyond ((?:eq\.|theorem) [\d.]+), ([\d.e+-]+) \(", str(warning.message))
    return found[1], float(found[2])


@pytest.mark.parametrize(
    ("options", "tau"),
    [({"workers": 3}, 2), ({"delays": 5}, 5), ({"delays": DrawnDelays(7)}, 7), ({"delays": np.array([4, 0] * 4)}, 4)],
    ids=["workers", "constant", "drawn", "given"],
)
def test_convex_losses(options: dict[str, Any], tau: int) -> None:
    """Eq. 3.18; workers that are equally fast hear of K - 1 others between two messages."""
    largest = 2 * float(np.max(np.sum(X**2, axis=1)))
    name, value = bound_of(asynchronous.ridge(X, Y, l2=L2), step_size=1e-1, local_steps=2, **options)
    assert name == "eq. 3.18"
    np.testing.assert_allclose(value, 1 / (4 * 2 * largest * tau**2 + L2 * 12 + 2 * largest), rtol=1e-2)


@pytest.mark.parametrize("convex", [True, False])
def test_parts_that_are_not_convex(convex: bool) -> None:
    """Eq. 3.30, where any of them is not; L is the largest number in the spectrum of a Hessian."""
    mu = 30.0 if convex else float(np.linalg.eigvalsh(X.T @ X / 12)[-1]) + 0.3
    problem = asynchronous.pca(X, mu=mu, l2=L2)
    spectra = [np.linalg.eigvalsh((mu - L2) * np.eye(4) - np.outer(x, x)) for x in X]
    assert (np.min(spectra) >= 0) == convex
    large, h, tau, n = np.abs(spectra).max(), 2, 2, 12
    name, value = bound_of(problem, step_size=1e-1, local_steps=h, workers=3)
    if convex:
        assert name == "eq. 3.18"
        expected = 1 / (4 * h * large * tau**2 + L2 * n + 2 * large)
    else:
        assert name == "eq. 3.30"
        stale = 2 * h * large * tau**2 * L2**2 + 8 * h * large * tau**2 * (large + L2) ** 2
        expected = L2**2 / (stale + 4 * L2 * large**2 + n * L2**3)
    np.testing.assert_allclose(value, expected, rtol=1e-2)


def test_no_warning_within_the_bound_or_without_a_step_size() -> None:
    problem = asynchronous.ridge(X, Y, l2=L2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StepSizeWarning)
        asynchronous.dis_dfsdca(problem, local_steps=2, outer_steps=1, workers=3, step_size=1e-3)
        asynchronous.dis_dfsdca(problem, local_steps=2, outer_steps=1, workers=3)
        asynchronous.distributed_asysvrg(problem, batch_size=2, outer_steps=1, workers=3, step_size=1e-5)
        asynchronous.distributed_asysvrg(problem, batch_size=2, outer_steps=1, workers=3)


def least_room(eta: float, beta: float, large: float, b: int, delta: int, m: int, d: float) -> float:
    """Above 0 where the theorem holds: for all t, Gamma_t > 0, and 1/2 >= c_{t+1} / beta (below eq. 2.20, and 2.41).

    Gamma_t is that of eq. 2.14, with c_t of eq. 2.13; with d = 1 those of eqs. 2.35 and 2.34.
    """
    room = d - 2 * large**2 * delta**2 * eta**2
    if room <= 0:
        return -np.inf
    both = large**2 * delta**2 * eta**3 / (2 * d) + eta**2 * large / 2
    c, rooms = 0.0, []
    for _ in range(m):  # t = m - 1, ..., 0
        rooms += [eta / (2 * d) - 4 / room * (both + c * eta**2), 1 / 2 - c / beta]
        c = c * (1 + eta * beta / d + 4 * large**2 * eta**2 / (room * b)) + 4 * large**2 / (room * b) * both
    return min(rooms)


@pytest.mark.parametrize(
    ("large", "b", "delta", "m", "d"),
    [(3.0, 1, 0, 1, 1.0), (3.0, 2, 0, 5, 1.0), (0.5, 10, 3, 40, 1.0), (3.0, 2, 4, 20, 7.0)],
    ids=str,
)
def test_variance_reduction(large: float, b: int, delta: int, m: int, d: float) -> None:
    """Up to the bound both conditions hold for some beta, and hardly further for any of many."""
    counts = {"h": b, "delay": delta, "inner_steps": m, "coordinates": d}
    bound = step_sizes.variance_reduced(largest=large, **counts)

    def best(eta: float) -> float:
        return max(least_room(eta, beta, large, b, delta, m, d) for beta in large * np.logspace(-5, 5, 101))

    assert 0 < bound < 1 / large
    for share in (0.2, 0.6, 0.999):
        assert best(share * bound) > 0
    for share in (1.05, 2, 10):
        assert best(share * bound) <= 0


@pytest.mark.parametrize("name", ["distributed_asysvrg", "shared_asysvrg"])
def test_warnings_of_variance_reduction(name: str) -> None:
    """L is that of f_i, with its l2; for shared memory d counts in coordinates of an update."""
    options = {} if name == "distributed_asysvrg" else {"coordinates": 2}
    theorem, value = bound_of(asynchronous.ridge(X, Y, l2=L2), name, step_size=0.1, batch_size=2, workers=4, **options)
    large, d = 2 * float(np.max(np.sum(X**2, axis=1))) + L2, 2.0 if options else 1.0
    assert theorem == ("theorem 2.3.1" if options else "theorem 2.4.1")
    betas = large * np.logspace(-5, 5, 101)
    assert max(least_room(0.99 * value, beta, large, 2, 3, 8, d) for beta in betas) > 0
    assert max(least_room(1.06 * value, beta, large, 2, 3, 8, d) for beta in betas) <= 0
