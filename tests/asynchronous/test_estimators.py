"""The estimators keep scikit-learn's rules, and come to where its own come to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

from jaxdecouple import asynchronous

GENERATOR = np.random.default_rng(3)
X = GENERATOR.standard_normal((120, 4)) + np.array([0.0, 3.0, -1.0, 0.0])
NUMBERS = X @ np.array([1.0, -2.0, 0.5, 0.0]) + 50 + GENERATOR.standard_normal(120)
CODES = np.digitize(X[:, 0] + 0.3 * GENERATOR.standard_normal(120), [-0.6, 0.6])
TWO = CODES > 0
WEIGHTS = GENERATOR.integers(0, 4, 120)


# A weight of 2 and an example given twice have the same solution, but not the same random draws: the two fits end
# within `tol` of it, and the checks compare to 1e-7.
UNLIKE_DRAWS = {
    f"check_sample_weight_equivalence_on_{kind}_data": "both fits end within tol of one solution"
    for kind in ("dense", "sparse")
}


def test_the_rules_of_scikit_learn() -> None:
    model = asynchronous.LogisticClassifier(max_iter=100)
    results = check_estimator(model, on_fail=None, expected_failed_checks=UNLIKE_DRAWS)
    failed = [result for result in results if _failed(result)]
    assert [(result["check_name"], str(result["exception"])) for result in failed] == []


@pytest.mark.parametrize("model", [asynchronous.RidgeRegressor(), asynchronous.LinearSVM()], ids=str)
def test_some_rules_of_scikit_learn(model: Any) -> None:
    """Those of what these do by themselves; the rest is the same code."""
    wanted = ("check_estimators_dtypes", "check_sample_weights", "check_fit2d_1sample", "check_regressors_train")
    wanted += ("check_classifiers_train", "check_estimator_sparse_array", "check_dict_unchanged")
    checks = [check for _, check in estimator_checks_generator(model) if _name(check).startswith(wanted)]
    assert len(checks) > 5
    for check in checks:
        check(clone(model))


def _name(check: Any) -> str:
    return getattr(check, "func", check).__name__


def _failed(result: dict[str, Any]) -> bool:
    return result["status"] == "failed"


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_ridge_is_that_of_scikit_learn(weights: Any) -> None:
    total = 120 if weights is None else weights.sum()
    ours = asynchronous.RidgeRegressor(l2=0.1, tol=1e-12).fit(X, NUMBERS, weights)
    theirs = Ridge(alpha=0.1 * total).fit(X, NUMBERS, weights)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-4)
    assert ours.converged_ and ours.score(X, NUMBERS) == pytest.approx(theirs.score(X, NUMBERS), abs=1e-6)


@pytest.mark.parametrize("solver", ["sdca", "cocoa_plus", "dis_dfsdca", "svrg"])
def test_logistic_is_that_of_liblinear(solver: str) -> None:
    """Which regularises the intercept too."""
    workers = {"workers": 3} if solver in ("cocoa_plus", "dis_dfsdca") else {}
    ours = asynchronous.LogisticClassifier(l2=0.05, tol=1e-9, solver=solver, max_iter=3000, **workers).fit(X, TWO)
    theirs = LogisticRegression(C=1 / (0.05 * 120), solver="liblinear", tol=1e-10).fit(X, TWO)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=2e-4)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=2e-4)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=2e-4)
    assert ours.converged_ and list(ours.classes_) == [False, True]


def test_weights_are_repetitions() -> None:
    repeated = np.repeat(np.arange(120), WEIGHTS)
    for model, y in ((asynchronous.LogisticClassifier, TWO), (asynchronous.LinearSVM, TWO)):
        weighted = model(l2=0.1, tol=1e-10).fit(X, y, WEIGHTS)
        plain = model(l2=0.1, tol=1e-10).fit(X[repeated], y[repeated])
        np.testing.assert_allclose(weighted.coef_, plain.coef_, atol=1e-4)


def test_several_classes_one_against_the_rest() -> None:
    names = np.array(["low", "middle", "high"])[CODES]
    model = asynchronous.LogisticClassifier(l2=0.01, tol=1e-8).fit(X, names)
    assert model.coef_.shape == (3, 4) and list(model.classes_) == ["high", "low", "middle"]
    alone = asynchronous.LogisticClassifier(l2=0.01, tol=1e-8).fit(X, names == "low")
    np.testing.assert_allclose(model.coef_[1], alone.coef_[0], atol=1e-5)
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (model.classes_[probabilities.argmax(axis=1)] == model.predict(X)).all() and model.score(X, names) > 0.6


def test_sparse_examples_with_entries_that_occur_twice() -> None:
    rows, columns = np.nonzero(np.ones_like(X))
    halves = np.tile(X.ravel() / 2, 2), (np.tile(rows, 2), np.tile(columns, 2))
    order = np.argsort(halves[1][0], kind="stable")
    starts = np.arange(121) * 8
    twice = scipy.sparse.csr_matrix((halves[0][order], halves[1][1][order], starts), shape=X.shape)
    assert twice.nnz == 2 * X.size
    sparse = asynchronous.LogisticClassifier(l2=0.05, tol=1e-10).fit(twice, TWO)
    dense = asynchronous.LogisticClassifier(l2=0.05, tol=1e-10).fit(X, TWO)
    np.testing.assert_allclose(sparse.coef_, dense.coef_, atol=1e-5)


def test_a_warm_start_goes_on() -> None:
    model = asynchronous.LogisticClassifier(l2=1e-3, tol=1e-8, warm_start=True).fit(X, TWO)
    first = model.n_iter_
    assert model.fit(X, TWO).n_iter_ == 1 < first
    with pytest.warns(ConvergenceWarning, match="ended after 2 iterations without reaching tol"):
        asynchronous.LogisticClassifier(l2=1e-6, tol=1e-12, max_iter=2).fit(X, TWO)


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="solver is 'lbfgs'; write one of auto, sdca"):
        asynchronous.LogisticClassifier(solver="lbfgs").fit(X, TWO)
    with pytest.raises(ValueError, match="labels of at least 2 classes"):
        asynchronous.LogisticClassifier().fit(X, np.ones(120))
    with pytest.raises(ValueError, match="sample_weight are all 0|at least one non-zero"):
        asynchronous.LinearSVM().fit(X, TWO, np.zeros(120))


@pytest.mark.parametrize("solver", ["sdca", "dis_dfsdca"])
def test_a_warm_start_with_other_weights_begins_within_the_duals_domain(solver: str) -> None:
    weights = np.random.default_rng(1).uniform(0.1, 3, len(X))
    options = {"l2": 0.05, "tol": 1e-6, "solver": solver}
    warm = asynchronous.LinearSVM(warm_start=True, **options).fit(X, TWO).fit(X, TWO, sample_weight=weights)
    cold = asynchronous.LinearSVM(**options).fit(X, TWO, sample_weight=weights)
    assert warm.converged_ and warm.n_iter_ <= 2 * cold.n_iter_
    np.testing.assert_allclose(warm.coef_, cold.coef_, atol=1e-2)


def test_a_warm_start_may_change_the_solver() -> None:
    model = asynchronous.LogisticClassifier(l2=0.05, tol=1e-5, warm_start=True)
    found = [model.set_params(solver=solver).fit(X, TWO).coef_ for solver in ("svrg", "dis_dfsdca", "sdca", "svrg")]
    for coef in found[1:]:
        np.testing.assert_allclose(coef, found[0], atol=1e-2)


@pytest.mark.parametrize("gamma", [0, -1, np.nan, np.inf])
def test_a_hinge_is_rounded_over_something(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma is .*; write a positive number"):
        asynchronous.LinearSVM(gamma=gamma).fit(X, TWO)
