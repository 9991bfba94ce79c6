"""At the edges: data and settings of any size come out right, or a warning names the trouble."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.special

from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import ConvergenceWarning, DivergenceWarning
from jaxdecouple.asynchronous.problems.losses import Logistic

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(11)
PLAIN = RNG.standard_normal((24, 3))


def one_dense_row() -> scipy.sparse.csr_matrix:
    matrix = scipy.sparse.random(24, 9, density=0.15, random_state=1, format="lil")
    matrix[5] = RNG.standard_normal(9)
    return matrix.tocsr()


def duplicated_entries() -> scipy.sparse.csr_matrix:
    """Every entry is there twice, by halves."""
    rows, columns = np.nonzero(np.ones_like(PLAIN))
    both = scipy.sparse.coo_matrix((np.tile(PLAIN.ravel() / 2, 2), (np.tile(rows, 2), np.tile(columns, 2))))
    order = np.argsort(both.row, kind="stable")
    return scipy.sparse.csr_matrix((both.data[order], both.col[order], np.arange(25) * 6), shape=PLAIN.shape)


DATA: dict[str, Any] = {
    "plain": PLAIN,
    "thousands": 1e3 * PLAIN,
    "thousandths": 1e-3 * PLAIN,
    "columns of all sizes": PLAIN * np.array([1e-2, 1.0, 1e2]),
    "equal columns": PLAIN[:, [0, 0, 1]],
    "constant column": np.column_stack([PLAIN, np.ones(24)]),
    "rows of zeros": np.where(np.arange(24)[:, None] % 3, PLAIN, 0),
    "zeros": np.zeros((24, 3)),
    "one example": PLAIN[:1],
    "one column": PLAIN[:, :1],
    "equal rows": PLAIN[np.zeros(24, int)],
    "a dense row": one_dense_row(),
    "duplicated entries": duplicated_entries(),
}
SOLVERS: dict[str, dict[str, Any]] = {
    "sdca": {},
    "cocoa_plus": {},
    "dfsdca": {},
    "dis_dfsdca": {},
    "adaptive": {"sampling": "adaptive"},
    "svrg": {},
    "distributed_svrg": {},
}


def labels(n: int) -> np.ndarray:
    """Unbalanced: one of eight is -1."""
    return np.where(np.arange(n) % 8 == 3, -1.0, 1.0)


LOSSES: dict[str, tuple[Any, Any]] = {
    "ridge": (lambda m: (m - 1) ** 2, lambda m: 2 * (m - 1)),  # of the margin y z, since labels are -1 and 1
    "logistic": (lambda m: np.logaddexp(0, -m), lambda m: -scipy.special.expit(-m)),
    "smoothed_hinge": (
        lambda m: np.where(m > 1, 0, np.where(m > 0, (1 - m) ** 2 / 2, 0.5 - m)),
        lambda m: -np.clip(1 - m, 0, 1),
    ),
}


def minimum(loss: str, x: Any, y: np.ndarray, l2: float) -> float:
    """P(w*), by SciPy."""
    x = x.toarray() if scipy.sparse.issparse(x) else x
    value, slope = LOSSES[loss]

    def both(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = y * (x @ w)
        return np.mean(value(margins)) + l2 / 2 * w @ w, (y * slope(margins)) @ x / len(y) + l2 * w

    scale = 1 / np.maximum(np.abs(x).max(axis=0), 1e-300)  # of w, so that columns of all sizes are alike

    def scaled(u: np.ndarray) -> tuple[float, np.ndarray]:
        found, gradient = both(scale * u)
        return found, scale * gradient

    options = {"maxiter": 20000, "maxfun": 40000, "ftol": 1e-16, "gtol": 1e-13, "maxcor": 30}
    start = np.zeros(x.shape[1])
    return scipy.optimize.minimize(scaled, start, jac=True, method="L-BFGS-B", options=options).fun


def cases() -> list[tuple[str, str, tuple[str, ...]]]:
    """Each solver on each loss with data of one shape, and on the logistic loss with data of the others."""
    same = tuple(name for name, x in DATA.items() if not scipy.sparse.issparse(x) and x.shape == (24, 3))
    others = tuple(name for name in DATA if name not in same)
    return [
        (loss, solver, same + others if loss == "logistic" and solver not in ("cocoa_plus", "dfsdca") else same)
        for loss in LOSSES
        for solver in SOLVERS
    ]


@pytest.mark.parametrize(("loss", "solver", "names"), cases(), ids=str)
def test_right_or_a_warning(loss: str, solver: str, names: tuple[str, ...]) -> None:
    """On all the data, with lambda from 1e-9 to 1e3: within what counts as converged, or a warning says it is not."""
    solve = getattr(asynchronous, "dis_dfsdca" if solver == "adaptive" else solver)
    wrong, silent = [], 0
    for name in names:
        x, y = DATA[name], labels(DATA[name].shape[0])
        first = getattr(asynchronous, loss)(x, y, l2=1.0)
        for l2 in (1e-9, 1e-4, 1e-1, 1e3):
            problem = dataclasses.replace(first, l2=l2)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                result = solve(problem, outer_steps=12, **SOLVERS[solver])
            last = result.trace[-1]
            above = last.objective - minimum(loss, x, y, l2)
            silent += not said
            if not (np.isfinite(last.objective) and np.isfinite(np.asarray(result.w)).all()):
                wrong.append((name, l2, "is no number"))
            if not said and above > 0.0101 * abs(last.objective) + 1e-9:
                wrong.append((name, l2, f"{above} above the minimum"))
            if last.gap is not None and not last.gap >= -1e-9 * max(1, abs(last.objective)):
                wrong.append((name, l2, f"gap {last.gap}"))
            if result.converged == bool(said):
                wrong.append((name, l2, f"converged {result.converged}, {[str(w.message) for w in said]}"))
    assert wrong == []
    assert silent > len(names)


@pytest.mark.parametrize("solver", ["sdca", "cocoa_plus"])
@pytest.mark.parametrize("loss", ["ridge", "logistic", "smoothed_hinge"])
@pytest.mark.filterwarnings("ignore::jaxdecouple.asynchronous.ConvergenceWarning")
def test_the_dual_never_falls(loss: str, solver: str) -> None:
    """Ascent has no step size that could be too large, however large |x|^2 / (l2 n) is."""
    for scale, l2 in ((1.0, 1e-2), (1e3, 1e-6), (1e5, 1e-9)):
        problem = getattr(asynchronous, loss)(scale * PLAIN, labels(24), l2=l2)
        trace = getattr(asynchronous, solver)(problem, outer_steps=15).trace
        dual = trace.column("objective") - trace.column("gap")
        assert (np.diff(dual) >= -1e-12 * trace.column("objective").max()).all()  # but for rounding
        assert np.isfinite(dual).all() and dual[-1] >= 0 and trace[-1].objective < 100


def test_increase_of_the_logistic_loss_for_any_curvature() -> None:
    """The logit solves its equation to the precision of numbers, for q from 0 to 1e14 and predictions up to 1e6."""
    rng, count = np.random.default_rng(5), 20000
    q = np.concatenate([[0.0], 10 ** rng.uniform(-14, 14, count - 1)])
    y, b = rng.choice([-1.0, 1.0], count), rng.beta(0.3, 0.3, count)
    z = rng.choice([-1, 1], count) * 10 ** rng.uniform(-6, 6, count)
    change = np.asarray(jax.jit(Logistic().increase)(z, b * y, y, q))
    after = b + change * y
    assert ((after >= 0) & (after <= 1)).all()
    # b + c y = sigmoid(-y (z + q c)) has one solution; the right side falls in c, so the error in c is at most this.
    margin = -y * (z + q * change)
    error = np.abs(after - 1 / (1 + np.exp(-np.clip(margin, -700, 700)))) / (1 + q * after * (1 - after))
    assert error.max() < 1e-9 and np.quantile(error, 0.99) < 1e-12


def test_adaptive_sampling_keeps_alpha_where_the_conjugate_is_finite() -> None:
    problem = asynchronous.smoothed_hinge(PLAIN, np.sign(PLAIN[:, 0]), l2=1.0)
    result = asynchronous.dis_dfsdca(problem, local_steps=2, sampling="adaptive", outer_steps=60)
    b = np.asarray(result.alpha) * np.sign(PLAIN[:, 0])
    assert b.min() > -1e-12 and b.max() < 1 + 1e-12 and result.converged


def test_divergence_stops_and_names_the_step() -> None:
    problem = asynchronous.ridge(100 * PLAIN, labels(24), l2=1e-2)
    with pytest.warns(DivergenceWarning, match=r"sgd diverged: .* with step_size 1; write a smaller step_size"):
        result = asynchronous.sgd(problem, step_size=1.0, outer_steps=50)
    assert not result.converged and len(result.trace) < 10
    with pytest.warns(ConvergenceWarning, match="has not converged: after 2 outer iterations the duality gap is"):
        assert not asynchronous.dis_dfsdca(asynchronous.ridge(PLAIN, labels(24), l2=1e-3), outer_steps=2).converged


def test_tol_stops_a_run() -> None:
    problem = asynchronous.logistic(PLAIN, labels(24), l2=1e-2)
    for solve in (asynchronous.sdca, asynchronous.svrg):
        result = solve(problem, tol=1e-5, outer_steps=5000)
        assert result.converged and len(result.trace) < 2000
        best = minimum("logistic", PLAIN, labels(24), 1e-2)
        assert -1e-9 < result.trace[-1].objective - best < 1e-5 * result.trace[-1].objective
        assert result.trace.column("wall")[-1] > result.trace.column("wall")[0] > 0
    assert (np.diff(result.trace.column("step_size")) > 0).any()  # of SVRG


@pytest.mark.filterwarnings("ignore::jaxdecouple.asynchronous.ConvergenceWarning")
def test_another_l2_compiles_nothing_and_can_be_vmapped() -> None:
    problem = asynchronous.logistic(PLAIN, labels(24), l2=1e-2)
    asynchronous.sdca(problem, outer_steps=2)
    again = asynchronous.sdca(dataclasses.replace(problem, l2=1e-3), outer_steps=2)
    assert again.trace[-1].compiling == 0
    l2s = np.array([1e-2, 1e-3])
    many = jax.vmap(lambda l2: asynchronous.sdca(dataclasses.replace(problem, l2=l2), outer_steps=2))(l2s)
    np.testing.assert_allclose(many.w[1], again.w, atol=1e-12)
    np.testing.assert_allclose(many.trace[-1].gap[1], again.trace[-1].gap, atol=1e-12)


def test_coordinate_ascent_is_not_stopped_where_the_objective_rises_at_first() -> None:
    """Of SDCA the dual objective never falls; the primal one may rise far above its start, as without scaling."""
    x = np.random.default_rng(0).standard_normal((40, 4))[:, :1]
    y = np.sign(x[:, 0] + 0.3 * np.random.default_rng(5).standard_normal(40))
    trace = asynchronous.sdca(asynchronous.ridge(x, y, l2=1e-3), outer_steps=1000, tol=1e-5).trace
    assert trace[1].objective > 10 * trace[0].objective and trace[-1].gap < 1e-5 * trace[-1].objective


def test_an_sgd_that_diverges_before_svrg_is_said_and_ends_it() -> None:
    x = 100 * np.random.default_rng(0).standard_normal((30, 3))
    problem = asynchronous.ridge(x, np.sign(x[:, 0]), l2=0.01)
    with pytest.warns(asynchronous.DivergenceWarning, match="with sgd_step_size 1; write a smaller sgd_step_size"):
        found = asynchronous.sgd_svrg(problem, sgd_step_size=1.0, outer_steps=20)
    assert found.trace[-1].outer < 10 and not found.converged


VMAPPED = {
    "svrg": {},
    "distributed_svrg": {},
    "sgd_svrg": {"sgd_epochs": 1, "sgd_step_size": 0.003},
    "dis_dfsdca": {},
    "shared_asysvrg": {},
}


@pytest.mark.parametrize("name", VMAPPED)
def test_a_path_of_l2_with_a_given_step_size_can_be_vmapped(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((20, 3))
    problem, l2s = asynchronous.ridge(x, np.sign(x[:, 0]), l2=0.1), np.array([0.01, 0.1])

    def solved(l2: Any, **step: Any) -> Any:
        options = {"outer_steps": 2, **VMAPPED[name], **step}
        return getattr(asynchronous, name)(dataclasses.replace(problem, l2=l2), **options).w

    many = jax.vmap(lambda l2: solved(l2, step_size=0.003))(l2s)
    np.testing.assert_allclose(many, [solved(float(l2), step_size=0.003) for l2 in l2s], rtol=1e-12)


@pytest.mark.parametrize("solver", [asynchronous.svrg, asynchronous.dis_dfsdca])
def test_no_step_size_follows_from_a_traced_l2(solver: Any) -> None:
    problem = asynchronous.ridge(np.eye(4), np.ones(4), l2=0.1)
    with pytest.raises(ValueError, match="l2 is traced, so no step size follows from it; write step_size"):
        jax.vmap(lambda l2: solver(dataclasses.replace(problem, l2=l2), outer_steps=1).w)(np.array([0.1, 1.0]))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda x: asynchronous.logistic(x, np.array(list("abab")), l2=0.1),
            "y is .*write numbers, of classes",
        ),
        (lambda x: asynchronous.ridge(x, np.ones(4) * 1j, l2=0.1), "y is complex128"),
        (lambda x: asynchronous.pca(x, mu=np.nan, l2=0.1), "mu is nan, but the sum is convex only from"),
        (lambda x: asynchronous.pca(x, mu=100, l2=0.1, b=np.full(4, np.nan)), "b holds numbers that are not finite"),
        (
            lambda x: asynchronous.sgd_svrg(asynchronous.ridge(x, np.ones(4), l2=0.1), sgd_epochs=2.5, sgd_step_size=1),
            "sgd_epochs is 2.5",
        ),
    ],
    ids=["texts", "complex", "mu", "b", "epochs"],
)
def test_what_is_no_number_of_its_kind_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(np.eye(4))


def test_a_step_size_may_be_a_number_of_numpy() -> None:
    problem = asynchronous.network(np.eye(4), np.array([0, 1, 0, 1]), hidden=2, l2=0.1)
    assert asynchronous.svrg(problem, step_size=np.float32(0.01), outer_steps=1).trace[-1].outer == 1
