"""Estimators in scikit-learn's manner: regularised linear models that the solvers fit.

    model = asynchronous.LogisticClassifier(l2=1e-4).fit(X, y)
    model.predict_proba(X_test), model.coef_, model.n_iter_

They minimise ``(1/n) sum_i s_i phi_i(w) + (l2/2) |w|^2``, with weights s of the examples whose mean is 1. An intercept
is the coefficient of a column of ones, and regularised as the others are, as in liblinear; `RidgeRegressor` centres
the labels first. They compute in float64.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from typing import Any

import jax
import numpy as np
import scipy.sparse

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, check_random_state, validate_data
except ImportError as error:
    raise ImportError("the estimators need scikit-learn; write pip install scikit-learn") from error

from jaxdecouple.asynchronous import solvers
from jaxdecouple.asynchronous.engines.run import ConvergenceWarning
from jaxdecouple.asynchronous.problems.factories import linear
from jaxdecouple.asynchronous.problems.losses import Logistic, Loss, SmoothedHinge, Squared

SOLVERS = {
    "sdca": solvers.sdca,
    "cocoa_plus": solvers.cocoa_plus,
    "dfsdca": solvers.dfsdca,
    "dis_dfsdca": solvers.dis_dfsdca,
    "svrg": solvers.svrg,
    "distributed_asysvrg": solvers.distributed_asysvrg,
    "distributed_svrg": solvers.distributed_svrg,
}
_ALONE = ("sdca", "dfsdca", "svrg")
_DUAL = ("sdca", "cocoa_plus", "dfsdca", "dis_dfsdca")


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class LinearModel(BaseEstimator):
    """What the estimators have in common.

    Args:
      l2: lambda, the weight of the regularisation; scikit-learn's ``C`` is ``1 / (l2 n)``.
      fit_intercept: whether there is an intercept.
      solver: "auto": "sdca", or with several workers "cocoa_plus"; or any of `SOLVERS`.
      tol: the fit ends at a duality gap of at most ``tol`` times the objective; without a dual when the gradient's norm
        is ``tol`` times that at the start.
      max_iter: outer iterations, which are epochs of a dual solver, after which it ends in any case, with a warning.
      workers: K.
      engine: "simulated", "local" or "ray", see `Options`.
      warm_start: whether ``fit`` begins where it ended the last time, if the data have the same shape.
      random_state: of the order of examples; None: 0.

    Attributes:
      coef_: ``[d]``, of classifiers ``[1, d]`` or ``[num_classes, d]``.
      intercept_: a number, of classifiers ``[1]`` or ``[num_classes]``.
      n_iter_: outer iterations, the most of any class.
      converged_: whether all reached ``tol``.
    """

    l2: float = 1e-4
    fit_intercept: bool = True
    solver: str = "auto"
    tol: float = 1e-4
    max_iter: int = 1000
    workers: int = 1
    engine: str = "simulated"
    warm_start: bool = False
    random_state: Any = None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _loss(self) -> Loss:
        raise NotImplementedError

    def _weights(self, sample_weight: Any, x: Any) -> np.ndarray:
        """Weights of the examples, none below 0 and some above."""
        if sample_weight is None:
            return np.ones(x.shape[0])
        weights = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
        if not weights.sum() > 0:
            raise ValueError("the sample_weight are all 0; write some above 0")
        return weights

    def _columns(self, x: Any) -> Any:
        """The examples with a column of ones, if there is to be an intercept; CSR if sparse."""
        if scipy.sparse.issparse(x):
            x = scipy.sparse.csr_matrix(x, dtype=np.float64)
            return scipy.sparse.hstack([x, np.ones((x.shape[0], 1))], format="csr") if self.fit_intercept else x
        return np.column_stack([x, np.ones(len(x))]) if self.fit_intercept else np.asarray(x, np.float64)

    def _solve(self, x: Any, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """w for each row of ``targets``, ``[num_targets, columns]``; sets what tells of the fit."""
        used = weights > 0
        x, targets, weights = x[used], targets[:, used], weights[used] / weights[used].mean()
        name = self.solver
        if name == "auto":
            name = "sdca" if self.workers == 1 else "cocoa_plus"
        if name not in SOLVERS:
            raise ValueError(f"solver is {name!r}; write one of auto, {', '.join(SOLVERS)}")
        seed = 0 if self.random_state is None else int(check_random_state(self.random_state).randint(2**31 - 1))
        options = {"outer_steps": self.max_iter, "tol": self.tol, "engine": self.engine, "seed": seed}
        options |= {"workers": 1 if name in _ALONE else min(self.workers, x.shape[0])}
        before = getattr(self, "_results", None) if self.warm_start else None
        results, rows = [], None
        with _float64(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # one of scikit-learn's follows
            for k, y in enumerate(targets):
                problem = linear(x if rows is None else rows, y, self._loss(), l2=self.l2, weights=weights)
                rows = problem.rows
                start = {}
                if before is not None and len(before) == len(targets):
                    start = _start(before[k], problem, has_dual=name in _DUAL)
                results.append(SOLVERS[name](problem, **start, **options))
            w = np.stack([np.asarray(result.w) for result in results])
        self._results = [(np.asarray(r.w), None if r.alpha is None else np.asarray(r.alpha)) for r in results]
        self.n_iter_ = max(1, *(result.trace[-1].outer for result in results))
        self.converged_ = all(bool(result.converged) for result in results)
        if not self.converged_:
            from sklearn.exceptions import ConvergenceWarning as Theirs

            text = f"{name} ended after {self.n_iter_} iterations without reaching tol={self.tol:g}"
            remedy = "write a larger max_iter, or a larger tol"
            if self.n_iter_ < self.max_iter:
                remedy = "its objective grew without bound; scale the columns of X, or write another solver"
            warnings.warn(f"{text}; {remedy}", Theirs, stacklevel=3)
        return w

    def _split(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and intercepts."""
        return (w[:, :-1], w[:, -1]) if self.fit_intercept else (w, np.zeros(len(w)))


def _start(before: tuple[np.ndarray, np.ndarray | None], problem: Any, *, has_dual: bool) -> dict[str, Any]:
    w, alpha = before
    if has_dual:
        return {"alpha": alpha} if alpha is not None and alpha.shape == (problem.n,) else {}
    return {"start": w} if w.shape == (problem.d,) else {}


@contextlib.contextmanager
def _float64() -> Any:
    with jax.enable_x64(True):
        yield


class RidgeRegressor(RegressorMixin, LinearModel):
    """Least squares: phi_i(w) = (y_i - x_i . w)^2 / 2; arguments: see `LinearModel`.

    scikit-learn's ``Ridge(alpha)`` is this with ``l2 = alpha / n``, but for the regularisation of the intercept, which
    is that of what is left when the mean of y, and of dense X, is subtracted.
    """

    def _loss(self) -> Loss:
        return Squared(0.5)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RidgeRegressor:  # noqa: N803
        """Fits the coefficients to examples ``X``, ``[n, d]``, dense or sparse, and numbers ``y``, ``[n]``."""
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64, y_numeric=True)  # noqa: N806
        weights = self._weights(sample_weight, X)
        mean_y = np.average(y, weights=weights) if self.fit_intercept else 0.0
        mean_x = np.zeros(X.shape[1])
        if self.fit_intercept and not scipy.sparse.issparse(X):
            mean_x = np.average(X, axis=0, weights=weights)
        w = self._solve(self._columns(X if scipy.sparse.issparse(X) else X - mean_x), (y - mean_y)[None], weights)
        coef, intercept = self._split(w)
        self.coef_ = coef[0]
        self.intercept_ = float(intercept[0] + mean_y - mean_x @ self.coef_) if self.fit_intercept else 0.0
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Numbers for examples, ``[n]``."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)  # noqa: N806
        return np.asarray(X @ self.coef_ + self.intercept_)


class Classifier(ClassifierMixin, LinearModel):
    """What the classifiers have in common: several classes are told apart one against the rest.

    Attributes:
      classes_: the labels, sorted.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:  # noqa: N803
        """Fits the coefficients to examples ``X``, ``[n, d]``, dense or sparse, and labels of any kind, ``[n]``."""
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)  # noqa: N806
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class, {self.classes_[0]!r}; write labels of at least 2 classes")
        which = [1] if len(self.classes_) == 2 else range(len(self.classes_))
        targets = np.stack([np.where(codes == k, 1.0, -1.0) for k in which])
        w = self._solve(self._columns(X), targets, self._weights(sample_weight, X))
        self.coef_, self.intercept_ = self._split(w)
        return self

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """How far examples are on the side of each class, ``[n, num_classes]``; of two classes the second, ``[n]``."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)  # noqa: N806
        scores = np.asarray(X @ self.coef_.T + self.intercept_)
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Classes of examples, ``[n]``."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]


class LogisticClassifier(Classifier):
    """Logistic regression; arguments: see `LinearModel`. Several classes are told apart one against the rest."""

    def _loss(self) -> Loss:
        return Logistic()

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Probabilities of the classes, ``[n, num_classes]``; of several, those against the rest scaled to sum 1."""
        scores = self.decision_function(X)
        positive = np.exp(-np.logaddexp(0, -scores))
        if scores.ndim == 1:
            return np.column_stack([1 - positive, positive])
        total = positive.sum(axis=1, keepdims=True)
        return np.where(total > 0, positive / np.where(total > 0, total, 1), 1 / len(self.classes_))

    def predict_log_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Their logarithms."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class LinearSVM(Classifier):
    """A linear support vector machine with a hinge rounded over ``gamma``; other arguments: see `LinearModel`."""

    gamma: float = 1.0

    def _loss(self) -> Loss:
        return SmoothedHinge(self.gamma)
