"""Checkpoints: a run that was stopped goes on as if it had not been, and another run is refused."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pathlib
import signal
from typing import Any

import jax
import numpy as np
import pytest

from jaxdecouple import asynchronous
from jaxdecouple.asynchronous.engines import saving
from jaxdecouple.asynchronous.outer import Outer

pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.filterwarnings("ignore::jaxdecouple.asynchronous.StepSizeWarning"),
    pytest.mark.filterwarnings("ignore::jaxdecouple.asynchronous.ConvergenceWarning"),
]
N = 60


def make_problem(n: int = N, *, l2: float = 0.1) -> asynchronous.Linear:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 6))
    return asynchronous.ridge(x, np.sign(x @ rng.standard_normal(6)), l2=l2)


SOLVERS: dict[str, dict[str, Any]] = {
    "sgd": {"step_size": 0.003, "decay": 0.5},
    "distributed_asysvrg": {},  # with safeguarded steps
    "distributed_svrg": {"step_size": 0.003},
    "sgd_svrg": {"sgd_epochs": 2, "sgd_step_size": 0.003},
    "shared_asysvrg": {"step_size": 0.003, "coordinates": 3},
    "dis_dfsdca": {"sampling": "importance"},
    "cocoa_plus": {"local_steps": 7},
}
LATE = asynchronous.Stragglers(probability=0.5, workers=(1,))


def assert_same_ends(one: asynchronous.Result, other: asynchronous.Result) -> None:
    np.testing.assert_array_equal(one.w, other.w)
    assert (one.alpha is None) == (other.alpha is None)
    if one.alpha is not None:
        np.testing.assert_array_equal(one.alpha, other.alpha)
    for name in ("outer", "messages", "epochs", "seconds", "objective", "step_size", "largest_delay"):
        np.testing.assert_allclose(getattr(one.trace[-1], name), getattr(other.trace[-1], name), rtol=1e-12)


@pytest.mark.parametrize("delays", [None, asynchronous.DrawnDelays(3)], ids=["clock", "drawn"])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_run_that_is_stopped_after_every_outer_iteration(name: str, delays: Any, tmp_path: pathlib.Path) -> None:
    """It goes on as if it had not been: the same examples, delays, step sizes and seconds, to the last bit."""
    if delays is not None and name in ("distributed_svrg", "cocoa_plus"):
        pytest.skip("has no delays")
    problem, at = make_problem(), str(tmp_path / "checkpoint.npz")
    solve, options = getattr(asynchronous, name), {"workers": 3, "delays": delays, "stragglers": LATE, **SOLVERS[name]}
    straight = solve(problem, outer_steps=6, **options)
    result = None
    for stop in range(3 if name == "sgd_svrg" else 1, 7):
        goes_on = {"resume": at} if result else {}
        result = solve(problem, outer_steps=stop, checkpoint=at, **goes_on, **options)
        assert result.trace[-1].outer == stop
    assert_same_ends(result, straight)
    finished = solve(problem, outer_steps=6, resume=at, **options)
    assert len(finished.trace) == 1
    np.testing.assert_array_equal(finished.w, straight.w)


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"step_size": 0.011}, {"l2": 0.1 + 1e-9}, {"workers": 2}, {"local_steps": 6}, {"n": N - 1}],
    ids=str,
)
def test_a_checkpoint_of_another_run_is_refused(other: dict[str, Any], tmp_path: pathlib.Path) -> None:
    at = str(tmp_path / "checkpoint.npz")
    options = {"workers": 3, "local_steps": 5, "step_size": 0.01, "outer_steps": 1}
    asynchronous.dis_dfsdca(make_problem(), checkpoint=at, **options)
    data = {name: other.pop(name) for name in ("n", "l2") if name in other}
    with pytest.raises(ValueError, match="is of another run"):
        asynchronous.dis_dfsdca(make_problem(**data), resume=at, **{**options, **other})


def _asked_to_end(at: str) -> None:
    jax.config.update("jax_enable_x64", True)

    def ask(record: asynchronous.Record, w: Any) -> None:
        if record.outer == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        asynchronous.cocoa_plus(make_problem(), outer_steps=20, checkpoint=at, on_record=ask)
    finally:
        if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
            os._exit(1)


def test_a_run_that_is_asked_to_end_saves_what_it_has(tmp_path: pathlib.Path) -> None:
    """At SIGTERM it ends after the outer iteration that it is in; afterwards the signal means what it meant."""
    problem, at = make_problem(), str(tmp_path / "checkpoint.npz")
    # In a process of its own: what others have done to its signals does not matter there.
    process = multiprocessing.get_context("spawn").Process(target=_asked_to_end, args=(at,))
    process.start()
    process.join(120)
    assert process.exitcode == 128 + signal.SIGTERM
    result = asynchronous.cocoa_plus(problem, outer_steps=5, resume=at)
    assert result.trace[0].outer == 3
    np.testing.assert_array_equal(result.w, asynchronous.cocoa_plus(problem, outer_steps=5).w)


def test_a_damaged_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
    """Cut off, of no archive, or with pickles in it."""
    path = tmp_path / "checkpoint"
    saved = Outer(np.ones(3), np.ones(4), 2, 7, 2.5, 1.5, 1, np.arange(3), np.ones(2), 0.25)
    saving.save(path, saved, np.array([0.5, 2.0]), (3.0, 4.0), "this")
    loaded, steps, began = saving.load(path, "this")
    assert began == (3.0, 4.0)
    for field in dataclasses.fields(Outer):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(saved, field.name))
    assert steps.tolist() == [0.5, 2.0]
    with pytest.raises(ValueError, match="is of another run: this; this one is that"):
        saving.load(path, "that")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nothing"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no checkpoint, or damaged"):
            saving.load(path, "this")
    with path.open("wb") as file:
        np.savez(file, fingerprint=np.array([object()]))
    with pytest.raises(ValueError, match="no checkpoint, or damaged"):
        saving.load(path, "this")


def problems_alike() -> dict[str, tuple[Any, Any]]:
    """Pairs that differ in what does not show in the size, nor in the gradient at 0."""
    x = np.round(4 * np.random.default_rng(0).standard_normal((20, 3))) / 4  # so that sums are exact in any order
    y = np.sign(x[:, 0] + 0.1)
    labels = (y > 0).astype(int)
    return {
        "gamma": tuple(asynchronous.smoothed_hinge(x, y, l2=0.1, gamma=gamma) for gamma in (0.5, 1.0)),
        "loss": (asynchronous.quadratic(x, y, l2=0.1), asynchronous.smoothed_hinge(x, y, l2=0.1)),
        "order": (asynchronous.ridge(x, y, l2=0.1), asynchronous.ridge(x[::-1].copy(), y[::-1].copy(), l2=0.1)),
        "mu": tuple(asynchronous.pca(x, mu=mu, l2=0.1) for mu in (50, 100)),
        "data of a network": tuple(asynchronous.network(data, labels, hidden=2, l2=0.1) for data in (x, 3 * x)),
    }


@pytest.mark.parametrize("name", ["gamma", "loss", "order", "mu", "data of a network"])
def test_a_checkpoint_of_another_problem_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    one, other = problems_alike()[name]
    at, options = str(tmp_path / "checkpoint.npz"), {"step_size": 1e-3, "outer_steps": 2}
    asynchronous.svrg(one, checkpoint=at, **options)
    with pytest.raises(ValueError, match="is of another run"):
        asynchronous.svrg(other, resume=at, **options)
    asynchronous.svrg(one, resume=at, **options)


def test_one_engine_goes_on_where_another_was(tmp_path: pathlib.Path) -> None:
    at, options = str(tmp_path / "checkpoint.npz"), {"workers": 1, "step_size": 0.003}
    asynchronous.distributed_asysvrg(make_problem(), engine="local", checkpoint=at, outer_steps=1, **options)
    found = asynchronous.distributed_asysvrg(make_problem(), resume=at, checkpoint=at, outer_steps=2, **options)
    assert found.trace[-1].outer == 2
    with pytest.raises(ValueError, match="is of another run"):  # of the same engine, delays are compared
        asynchronous.distributed_asysvrg(
            make_problem(), resume=at, outer_steps=3, delays=asynchronous.DrawnDelays(2), **options
        )


def test_a_run_that_has_converged_is_not_gone_on_with(tmp_path: pathlib.Path) -> None:
    """Also where convergence is told by the gradient at the start, which a checkpoint knows."""
    x = np.random.default_rng(0).standard_normal((30, 3))
    problem = asynchronous.network(x, (x[:, 0] > 0).astype(int), hidden=2, l2=0.0)
    at, options = str(tmp_path / "checkpoint.npz"), {"step_size": 0.5, "tol": 0.3, "outer_steps": 40}
    whole = asynchronous.svrg(problem, checkpoint=at, **options)
    again = asynchronous.svrg(problem, resume=at, **options)
    assert 0 < whole.trace[-1].outer == again.trace[-1].outer < 40 and again.converged
