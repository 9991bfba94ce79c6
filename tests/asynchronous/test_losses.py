"""Losses against numerical derivatives, suprema and maxima; rows, dense and sparse; errors; bounds of step sizes."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse

from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import StepSizeWarning
from jaxdecouple.asynchronous.problems import rows
from jaxdecouple.asynchronous.problems.losses import Logistic, SmoothedHinge, Squared

LOSSES = {
    "ridge": Squared(1.0),
    "quadratic": Squared(0.5),
    "logistic": Logistic(),
    "smoothed_hinge": SmoothedHinge(1.0),
    "smoothed_hinge 0.3": SmoothedHinge(0.3),
}
WRITTEN: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "ridge": lambda z, y: (y - z) ** 2,
    "quadratic": lambda z, y: (z - y) ** 2 / 2,
    "logistic": lambda z, y: np.log1p(np.exp(-y * z)),
    "smoothed_hinge": lambda z, y: hinge(y * z, 1.0),
    "smoothed_hinge 0.3": lambda z, y: hinge(y * z, 0.3),
}


def hinge(a: np.ndarray, gamma: float) -> np.ndarray:
    """Shalev-Shwartz and Zhang (2013): 0 from 1 on, straight up to 1 - gamma, a parabola between."""
    return np.select([a >= 1, a <= 1 - gamma], [0 * a, 1 - a - gamma / 2], (1 - a) ** 2 / (2 * gamma))


every_loss = pytest.mark.parametrize("name", LOSSES)
signs = pytest.mark.parametrize("y", [-1.0, 1.0])


@every_loss
@signs
def test_value_and_derivative(name: str, y: float, x64: None) -> None:
    loss, z, step = LOSSES[name], np.linspace(-4, 4, 97) + 0.013, 1e-6
    np.testing.assert_allclose(loss.value(z, y), WRITTEN[name](z, y), atol=1e-12)
    differences = (WRITTEN[name](z + step, y) - WRITTEN[name](z - step, y)) / (2 * step)
    derivative = loss.derivative(z, y)
    np.testing.assert_allclose(derivative, differences, atol=2e-6)
    by_jax = jax.grad(lambda z: jnp.sum(loss.value(z, y)))(z)
    np.testing.assert_allclose(derivative, by_jax, atol=1e-12)


@every_loss
def test_lipschitz_constant(name: str, x64: None) -> None:
    """No slope of the derivative is larger, and one comes close."""
    loss, z = LOSSES[name], np.linspace(-4, 4, 4001)
    slopes = np.abs(np.diff(np.asarray(loss.derivative(z, 1.0))) / np.diff(z))
    assert slopes.max() <= loss.smoothness * (1 + 1e-9)
    assert slopes.max() > 0.99 * loss.smoothness


@every_loss
@signs
def test_conjugate(name: str, y: float, x64: None) -> None:
    """phi*(-a) = sup_z -a z - phi(z), over a grid."""
    loss, z = LOSSES[name], np.linspace(-30, 30, 600001)
    for a in (0.05, 0.3, 0.5, 0.95):
        a = a * y
        np.testing.assert_allclose(loss.conjugate(a, y), np.max(-a * z - WRITTEN[name](z, y)), atol=1e-6)


@pytest.mark.parametrize("name", ["logistic", "smoothed_hinge"])
@signs
def test_conjugate_at_and_beyond_the_ends(name: str, y: float, x64: None) -> None:
    """The derivative of the loss is between 0 and -y, so that nothing else has a finite supremum."""
    loss = LOSSES[name]
    assert np.isposinf(loss.conjugate(jnp.array([-0.1, 1.1]) * y, y)).all()
    at_one = {"logistic": 0.0, "smoothed_hinge": -0.5}[name]
    np.testing.assert_allclose(loss.conjugate(jnp.array([0.0, 1.0]) * y, y), [0.0, at_one], atol=1e-12)


@every_loss
def test_increase_is_the_maximiser(name: str, x64: None) -> None:
    """Of -phi*(-(alpha + c)) - z c - q c^2 / 2: no point nearby is higher, and SciPy finds no other."""
    loss, rng, count = LOSSES[name], np.random.default_rng(3), 300
    y, share = rng.choice([-1.0, 1.0], count), rng.random(count)
    z, q = 3 * rng.standard_normal(count), 10 ** rng.uniform(-2, 2, count)
    alpha = share * y
    change = np.asarray(jax.jit(loss.increase)(z, alpha, y, q))

    def height(c: Any, i: Any = slice(None)) -> np.ndarray:
        return np.asarray(-loss.conjugate(alpha[i] + c, y[i]) - z[i] * c - q[i] * c**2 / 2)

    assert np.isfinite(height(change)).all()
    for aside in (1e-3, -1e-3):
        assert (height(change) > height(change + aside)).all()
    for i in range(0, count, 60):
        bounds_ = (-share[i], 1 - share[i]) if "ridge" != name != "quadratic" else (-200.0, 200.0)
        inside = tuple(sorted(bound * y[i] for bound in bounds_))
        found = scipy.optimize.minimize_scalar(lambda c, i=i: -height(c, i), bounds=inside, options={"xatol": 1e-10})
        np.testing.assert_allclose(change[i], found.x, atol=1e-5)


@every_loss
def test_increase_is_precise(name: str, x64: None) -> None:
    """At the maximum alpha + c = -phi'(z + q c), to the precision of float64."""
    loss, rng, count = LOSSES[name], np.random.default_rng(4), 2000
    y = rng.choice([-1.0, 1.0], count)
    z, q = 3 * rng.standard_normal(count), 10 ** rng.uniform(-2, 2, count)
    alpha = rng.random(count) * y
    change = np.asarray(jax.jit(loss.increase)(z, alpha, y, q))
    np.testing.assert_allclose(alpha + change, -loss.derivative(z + q * change, y), rtol=0, atol=1e-11)


X = np.random.default_rng(5).standard_normal((12, 4))
SIGNS = np.where(np.random.default_rng(6).random(12) < 0.5, -1.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "remedy"), [([0, 1], r"y = 2 \* y - 1"), ([1, 2], "numpy.where"), ([-1, 0, 1], "numpy.where")]
)
@pytest.mark.parametrize("name", ["logistic", "smoothed_hinge"])
def test_labels_that_are_no_signs(name: str, labels: list[int], remedy: str, x64: None) -> None:
    y = np.resize(labels, 12)
    with pytest.raises(ValueError, match=f"the labels are {labels[0]}, .*{name} needs -1 and 1; write .*{remedy}"):
        getattr(asynchronous, name)(X, y, l2=0.1)


def phi(w: jax.Array, example: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Of ridge regression."""
    x, y = example
    return (y - x @ w) ** 2


def test_general_is_linear_with_whole_dual_vectors(x64: None) -> None:
    general = asynchronous.general(phi, (X, SIGNS), np.zeros(4), l2=0.2, bounds=(50.0, 10.0))
    linear = asynchronous.ridge(X, SIGNS, l2=0.2)
    w = np.array([0.5, -1, 2, 0.1])
    np.testing.assert_allclose(general.objective(w), linear.objective(w))
    np.testing.assert_allclose(general.gradient(w), linear.gradient(w))
    settings = {"workers": 3, "outer_steps": 2, "step_size": 0.01, "local_steps": 2, "delays": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StepSizeWarning)
        wide, narrow = (asynchronous.dis_dfsdca(problem, **settings) for problem in (general, linear))
    np.testing.assert_allclose(wide.w, narrow.w, atol=1e-12)
    np.testing.assert_allclose(wide.alpha, narrow.alpha[:, None] * X, atol=1e-12)
    part, same = general.part(np.array([1, 5])), linear.part(np.array([1, 5]))
    assert (part.n, part.num_rows) == (12, 2)
    np.testing.assert_allclose(part.gradient_sum(w), same.gradient_sum(w))


def test_problems_are_what_they_say(x64: None) -> None:
    """P(w) by hand, and its gradient by differences."""
    w, b, step = np.array([0.5, -1, 2, 0.1]), np.arange(4.0), 1e-6
    for name in ("ridge", "quadratic", "logistic", "smoothed_hinge"):
        problem = getattr(asynchronous, name)(X, SIGNS, l2=0.3)
        losses = [WRITTEN[name](np.array(X[i] @ w), SIGNS[i]) for i in range(12)]
        np.testing.assert_allclose(problem.objective(w), np.mean(losses) + 0.15 * w @ w)
    problem = asynchronous.pca(X, mu=4.0, l2=0.3, b=b)
    parts = [w @ ((4.0 - 0.3) * np.eye(4) - np.outer(x, x)) @ w / 2 - b @ w for x in X]
    np.testing.assert_allclose(problem.objective(w), np.mean(parts) + 0.15 * w @ w)
    ahead = [float(problem.objective(w + step * e) - problem.objective(w - step * e)) for e in np.eye(4)]
    np.testing.assert_allclose(problem.gradient(w), np.array(ahead) / (2 * step), atol=1e-7)


def test_pca_asks_for_a_convex_sum(x64: None) -> None:
    least = float(np.linalg.eigvalsh(X.T @ X / 12)[-1]) + 0.3
    asynchronous.pca(X, mu=least + 1e-9, l2=0.3)
    with pytest.raises(ValueError, match="convex only from .* on.*write a larger mu"):
        asynchronous.pca(X, mu=least - 1e-3, l2=0.3)
    with pytest.raises(ValueError, match="X is sparse"):
        asynchronous.pca(scipy.sparse.csr_matrix(X), mu=9.0, l2=0.3)
    with pytest.raises(ValueError, match="b has shape"):
        asynchronous.pca(X, mu=9.0, l2=0.3, b=np.zeros(3))


def some_rows(n: int, d: int, seed: int) -> scipy.sparse.csr_matrix:
    """A sparse matrix with rows of different lengths, the first, the last and one between empty."""
    matrix = scipy.sparse.random(n, d, density=0.2, random_state=seed, format="lil")
    matrix[[0, n // 2, n - 1]] = 0
    return matrix.tocsr()


@pytest.mark.parametrize(("n", "d"), [(4096 + 37, 7)])
def test_sparse_rows_are_dense_rows(n: int, d: int, x64: None) -> None:
    """Also beyond the number of rows that are padded at once."""
    matrix, rng = some_rows(n, d, 2), np.random.default_rng(1)
    dense, sparse = rows.as_rows(matrix.toarray()), rows.as_rows(matrix)
    assert isinstance(dense, rows.Dense) and isinstance(sparse, rows.Sparse)
    assert dense.shape == sparse.shape == (n, d) and dense.dtype == sparse.dtype
    w, weights = jnp.asarray(rng.standard_normal(d)), jnp.asarray(rng.standard_normal(n))
    some = np.array([n - 1, 0, 3, n // 2, 3, 1])
    of_some = weights[some]
    host = matrix.toarray()
    for of in (dense, sparse):
        np.testing.assert_allclose(of.dot(some, w), host[some] @ w, atol=1e-12)
        np.testing.assert_allclose(of.combine(some, of_some), of_some @ host[some], atol=1e-12)
        np.testing.assert_allclose(of.dot_all(w), host @ w, atol=1e-12)
        np.testing.assert_allclose(of.combine_all(weights), weights @ host, atol=1e-10)
        np.testing.assert_allclose(of.squared_norms(some), np.sum(host[some] ** 2, axis=1), atol=1e-12)
        np.testing.assert_allclose(of.all_squared_norms(), np.sum(host**2, axis=1), atol=1e-12)
        np.testing.assert_allclose(of.take(some).dot_all(w), host[some] @ w, atol=1e-12)
    np.testing.assert_array_equal(sparse.as_csr().toarray(), host)
    largest = np.linalg.eigvalsh(host.T @ host / n)[-1]
    for of in (dense, sparse):
        np.testing.assert_allclose(rows.largest_eigenvalue(of), largest, rtol=0.02)
        assert float(rows.largest_eigenvalue(of)) <= largest * (1 + 1e-9)


def test_rows_that_are_all_empty(x64: None) -> None:
    of = rows.as_rows(scipy.sparse.csr_matrix((3, 2)))
    np.testing.assert_array_equal(of.dot_all(jnp.ones(2)), np.zeros(3))
    np.testing.assert_array_equal(of.combine_all(jnp.ones(3)), np.zeros(2))


def test_part_of_a_sparse_problem(x64: None) -> None:
    matrix, y = some_rows(9, 6, 3), np.arange(9.0)
    problem, chosen = asynchronous.ridge(matrix, y, l2=0.1), np.array([1, 4, 7])
    part = problem.part(chosen)
    assert isinstance(part.rows, rows.Sparse) and (part.n, part.num_rows) == (9, 3)
    w = jnp.linspace(-1, 1, 6)
    np.testing.assert_allclose(part.loss_sum(w), np.sum((y - matrix @ w)[chosen] ** 2))


def test_a_sparse_problem_is_never_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a million columns, of which a dense copy would take 8 GB; and nobody asks for it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("made dense")

    n, d = 2000, 1_000_000
    at = np.random.default_rng(0).integers(0, d, (2, n))
    matrix = scipy.sparse.csr_matrix((np.ones(2 * n, np.float32), (np.tile(np.arange(n), 2), at.ravel())), (n, d))
    for name in ("toarray", "todense"):
        monkeypatch.setattr(scipy.sparse.csr_matrix, name, refuse)
    problem = asynchronous.ridge(matrix, np.ones(n, np.float32), l2=0.1)
    held = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(problem))
    assert held < 8 * (matrix.nnz + 3 * n) and problem.part(np.arange(5)).num_rows == 5
    result = asynchronous.dis_dfsdca(problem, workers=2, local_steps=10, outer_steps=1, inner_steps=4)
    assert result.trace.column("gap")[-1] < result.trace.column("gap")[0]


SINGLE, LABELS = X.astype(np.float32), SIGNS.astype(np.float32)


def changed(at: tuple[int, ...], value: float) -> np.ndarray:
    x = SINGLE.copy()
    x[at] = value
    return x


BAD_PROBLEMS: dict[str, tuple[Callable[[], Any], str]] = {
    "float64": (lambda: asynchronous.ridge(X, SIGNS, l2=0.1), "jax_enable_x64"),
    "sparse float64": (lambda: asynchronous.ridge(scipy.sparse.csr_matrix(X), SIGNS, l2=0.1), "jax_enable_x64"),
    "NaN": (lambda: asynchronous.ridge(changed((2, 1), np.nan), LABELS, l2=0.1), "X holds numbers that are not finite"),
    "sparse infinity": (
        lambda: asynchronous.ridge(scipy.sparse.csr_matrix(changed((2, 1), np.inf)), LABELS, l2=0.1),
        "X holds numbers that are not finite",
    ),
    "labels": (lambda: asynchronous.ridge(SINGLE, LABELS[:-1], l2=0.1), "X has 12 rows and y has shape .11,."),
    "column of labels": (lambda: asynchronous.ridge(SINGLE, LABELS[:, None], l2=0.1), "y has shape .12, 1."),
    "NaN label": (lambda: asynchronous.ridge(SINGLE, LABELS * np.nan, l2=0.1), "y holds numbers that are not finite"),
    "vector": (lambda: asynchronous.ridge(SINGLE[0], LABELS, l2=0.1), "X has shape .4,.; write a matrix"),
    "no rows": (lambda: asynchronous.ridge(SINGLE[:0], LABELS[:0], l2=0.1), "write a matrix of n examples"),
    "l2": (lambda: asynchronous.ridge(SINGLE, LABELS, l2=-0.1), "l2 is -0.1; write a number of at least 0"),
    "l2 of pca": (lambda: asynchronous.pca(SINGLE, mu=9.0, l2=-0.1), "l2 is -0.1"),
    "gamma": (lambda: asynchronous.smoothed_hinge(SINGLE, LABELS, l2=0.1, gamma=0.0), "gamma is 0.0"),
    "classes": (lambda: asynchronous.network(SINGLE, LABELS, hidden=2, l2=0.1), "write one class for each row"),
    "num_classes": (
        lambda: asynchronous.network(SINGLE, np.arange(12), hidden=2, l2=0.1, num_classes=5),
        "y holds class 11, and num_classes is 5",
    ),
    "examples": (
        lambda: asynchronous.general(phi, (SINGLE, LABELS[:3]), np.zeros(4, np.float32), l2=0.1),
        r"have \[3, 12\] rows",
    ),
    "phi": (
        lambda: asynchronous.general(lambda w, x: w * x, SINGLE, np.zeros(4, np.float32), l2=0.1),
        "write a function to a number",
    ),
}


@pytest.mark.parametrize("name", BAD_PROBLEMS)
def test_problems_that_cannot_be(name: str) -> None:
    make, message = BAD_PROBLEMS[name]
    with pytest.raises(ValueError, match=message):
        make()


BAD_SETTINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "workers": ("dis_dfsdca", {"workers": 13, "local_steps": 1}, "workers is 13, and there are 12 examples"),
    "no workers": ("dis_dfsdca", {"workers": 0, "local_steps": 1}, "workers is 0; write at least 1"),
    "local_steps": ("dis_dfsdca", {"workers": 5, "local_steps": 3}, "of 3 examples, and a worker has 2; write"),
    "inner_steps": (
        "dis_dfsdca",
        {"workers": 4, "local_steps": 2, "inner_steps": 3},
        "inner_steps is 3, for 4 workers",
    ),
    "rounds": ("cocoa_plus", {"workers": 4, "local_steps": 2, "inner_steps": 6}, "write a multiple of 4"),
    "number of delays": (
        "dis_dfsdca",
        {"local_steps": 2, "outer_steps": 2, "inner_steps": 4, "delays": np.zeros(7, int)},
        "delays has 7 numbers, and there are 2 x 4 messages",
    ),
    "negative delay": ("dis_dfsdca", {"local_steps": 2, "delays": -1}, "a delay is -1; write numbers of at least 0"),
    "negative bound": ("sgd", {"step_size": 0.1, "batch_size": 2, "delays": asynchronous.DrawnDelays(-1)}, "is -1"),
    "delays in rounds": ("cocoa_plus", {"local_steps": 2, "delays": 1}, "cocoa_plus is synchronous; leave them out"),
    "engine": (
        "dis_dfsdca",
        {"local_steps": 2, "engine": "mpi"},
        "engine is 'mpi'; write one of simulated, local, ray",
    ),
    "sampling": ("dis_dfsdca", {"local_steps": 2, "sampling": "some"}, "sampling is 'some'; write one of uniform"),
    "step_size": ("dis_dfsdca", {"local_steps": 2, "step_size": 0.0}, "step_size is 0.0; write a positive number"),
    "decay": ("sgd", {"step_size": 0.1, "batch_size": 2, "decay": 2.0}, "decay is 2.0; write a number from 0 to 1"),
    "start": ("sgd", {"step_size": 0.1, "batch_size": 2, "start": np.zeros(3)}, "write that many numbers"),
    "start of a dual": ("dis_dfsdca", {"local_steps": 2, "start": np.zeros(4)}, "leave it out"),
    "one worker": ("svrg", {"step_size": 0.1, "batch_size": 2, "workers": 2}, "svrg has one; leave it out"),
    "coordinates": ("shared_asysvrg", {"step_size": 0.1, "coordinates": 5}, "coordinates is 5, and w has 4"),
    "missing": (
        "shared_asysvrg",
        {"step_size": 0.1, "batch_size": 2, "outer_steps": 1, "inner_steps": 4, "missing": np.zeros((5, 2), bool)},
        "missing has shape .5, 2.; write .4, Delta.",
    ),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
@pytest.mark.filterwarnings("ignore::jaxdecouple.asynchronous.StepSizeWarning")
def test_settings_that_cannot_be(name: str) -> None:
    solver, options, message = BAD_SETTINGS[name]
    problem = asynchronous.ridge(SINGLE, LABELS, l2=0.1)
    with pytest.raises(ValueError, match=message):
        getattr(asynchronous, solver)(problem, **options)


def test_problems_that_a_method_cannot_solve() -> None:
    flat, unknown = asynchronous.ridge(SINGLE, LABELS, l2=0), np.zeros(4, np.float32)
    for solve in (asynchronous.dis_dfsdca, asynchronous.cocoa_plus):
        with pytest.raises(ValueError, match="l2 is 0, and .* needs it above 0"):
            solve(flat, local_steps=2)
    with pytest.raises(ValueError, match="cocoa_plus needs the conjugates"):
        asynchronous.cocoa_plus(asynchronous.pca(SINGLE, mu=9.0, l2=0.1), local_steps=2)
    general = asynchronous.general(phi, (SINGLE, LABELS), unknown, l2=0.1)
    for options in ({"sampling": "importance"}, {"step_size": None}):
        with pytest.raises(ValueError, match="Lipschitz constant"):
            asynchronous.dis_dfsdca(general, local_steps=2, **options)


def test_columns_of_a_trace() -> None:
    problem = asynchronous.ridge(SINGLE, LABELS, l2=0.1)
    trace = asynchronous.dis_dfsdca(problem, local_steps=2, outer_steps=2).trace
    assert trace.column("messages").tolist() == [0, 6, 12] and trace.column("epochs").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="a record has no 'loss'; write one of outer, messages"):
        trace.column("loss")
