"""The simulated engine computes what the thesis's listings say: w and alpha of naive float64 loops, to 1e-10."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse

from jaxdecouple import asynchronous
from jaxdecouple.asynchronous.algorithms import sampling
from jaxdecouple.asynchronous.engines import clock
from tests.oracles import naive_asynchronous as naive

pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.filterwarnings("ignore::jaxdecouple.asynchronous.StepSizeWarning"),
]

L2, STEP, H, SEED = 0.15, 0.03, 2, 7
N, D, INNER = 11, 4, 6  # three workers have 4, 4 and 3 examples
GENERATOR = np.random.default_rng(20)
X = GENERATOR.standard_normal((N, D))
REAL = GENERATOR.standard_normal(N)
SIGNS = np.where(GENERATOR.random(N) < 0.5, -1.0, 1.0)
CLASSES = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1])
B = GENERATOR.standard_normal(D)
MU = float(np.linalg.eigvalsh(X.T @ X / N)[-1]) + L2 + 0.5
HOLES = np.where(GENERATOR.random((N, D)) < 0.5, X, 0)
HOLES[3] = 0
PATTERN = np.array([[0, 1, 2, 0, 3, 2], [0, 0, 1, 3, 4, 5], [0, 1, 1, 2, 2, 1]])  # delays of three outer iterations


class Case(NamedTuple):
    """A problem, and the same one for the naive loops; ``x`` where a scalar alpha_i stands for alpha_i x_i."""

    problem: asynchronous.Problem
    naive: naive.Problem
    x: np.ndarray | None = None


def linear(make: Callable[..., Any], x: Any, y: np.ndarray, derivative: Any, constant: float) -> Case:
    dense = x.toarray() if scipy.sparse.issparse(x) else x
    return Case(make(x, y, l2=L2), naive.linear(dense, y, derivative, constant, L2), dense)


@functools.cache
def case(name: str) -> Case:
    smoothed = functools.partial(asynchronous.smoothed_hinge, gamma=0.5)
    if name == "pca":
        return Case(asynchronous.pca(X, mu=MU, l2=L2, b=B), naive.pca(X, MU, B, L2))
    if name == "network":
        problem = asynchronous.network(X, CLASSES, hidden=3, l2=L2, seed=1)
        return Case(problem, naive.network(X, CLASSES, 3, 3, L2))
    return {
        "ridge": lambda: linear(asynchronous.ridge, X, REAL, naive.squared, 2.0),
        "quadratic": lambda: linear(asynchronous.quadratic, X, REAL, naive.halved, 1.0),
        "logistic": lambda: linear(asynchronous.logistic, X, SIGNS, naive.logistic, 0.25),
        "smoothed_hinge": lambda: linear(smoothed, X, SIGNS, naive.hinge(0.5), 2.0),
        "sparse ridge": lambda: linear(asynchronous.ridge, scipy.sparse.csr_matrix(HOLES), REAL, naive.squared, 2.0),
        "sparse logistic": lambda: linear(
            asynchronous.logistic, scipy.sparse.csc_matrix(HOLES), SIGNS, naive.logistic, 0.25
        ),
    }[name]()


class Setting(NamedTuple):
    """How a method is run: workers, the delays as the library takes them, and outer iterations."""

    workers: int
    delays: Any
    outer_steps: int

    def options(self, outer_steps: int) -> dict[str, Any]:
        delays = self.delays[:outer_steps] if isinstance(self.delays, np.ndarray) else self.delays
        clock = {"clock": CLOCK, "stragglers": STRAGGLERS} if delays is None else {}
        common = {"workers": self.workers, "outer_steps": outer_steps, "inner_steps": INNER, "seed": SEED}
        return {**common, "delays": delays, **clock}

    def messages(self, work: clock.Work) -> list[list[tuple[int, int]]]:
        """(worker, delay): workers take turns, nothing is older than its outer iteration; or as on the clock."""
        counts = {"workers": self.workers, "outer_steps": self.outer_steps, "inner_steps": INNER}
        if self.delays is None:
            plans = clock.asynchronous(CLOCK, STRAGGLERS, work, **counts)
        elif isinstance(self.delays, asynchronous.DrawnDelays):
            plans = clock.given(self.delays, **counts)
        else:
            wanted = np.broadcast_to(self.delays, (self.outer_steps, INNER))
            return [[(t % self.workers, min(int(of[t]), t)) for t in range(INNER)] for of in wanted]
        return [list(zip(of.worker.tolist(), of.delay.tolist(), strict=True)) for of in plans]


CLOCK = asynchronous.Clock(example=1.0, message=0.5, update=0.25)
STRAGGLERS = asynchronous.Stragglers(probability=0.5, slowdown=(1.0, 4.0), workers=(0,), seed=0)


def counts_of(messages: list[list[tuple[int, int]]], worker: int) -> list[int]:
    """How many messages of a worker there are in each outer iteration."""
    return [sum(k == worker for k, _ in of_outer) for of_outer in messages]


def drawn(case: Case, messages: list[list[tuple[int, int]]], workers: int, how: str = "uniform", h: int = H) -> list:
    """What each worker draws for its messages: examples, or for adaptive sampling the numbers that choose them.

    Every outer iteration has draws of its own, so that a run can go on from any.
    """

    def of_worker(k: int) -> Iterator[Any]:
        for outer, count in enumerate(counts_of(messages, k)):
            mine, seed = np.arange(k, N, workers), (SEED, k, outer, 0)
            draws = sampling.draws(case.problem, mine, sampling.How(h, how), seed)
            yield from (draw.uniforms if how == "adaptive" else draw.rows for draw in itertools.islice(draws, count))

    return [of_worker(k) for k in range(workers)]


def rounds_of(setting: Setting) -> list[list[tuple[int, int]]]:
    return [[(t % setting.workers, 0) for t in range(INNER)] for _ in range(setting.outer_steps)]


def start(case: Case) -> np.ndarray:
    return np.array(case.problem.initial())


def parts_of(workers: int) -> tuple[int, ...]:
    return tuple(len(range(k, N, workers)) for k in range(workers))


def naive_sgd(case: Case, setting: Setting) -> list[naive.State]:
    messages = setting.messages(clock.Work(H, ()))
    return naive.sgd(case.naive, start(case), messages, drawn(case, messages, setting.workers), STEP, 0.7)


def naive_sgd_of_some(case: Case, setting: Setting) -> list[naive.State]:
    messages = setting.messages(clock.Work(H, ()))
    chosen = coordinates_of(case, messages, setting.workers)
    return naive.sgd(case.naive, start(case), messages, drawn(case, messages, setting.workers), STEP, 0.7, chosen)


def naive_asysvrg(case: Case, setting: Setting) -> list[naive.State]:
    messages = setting.messages(clock.Work(2 * H, parts_of(setting.workers)))
    return naive.distributed_asysvrg(case.naive, start(case), messages, drawn(case, messages, setting.workers), STEP)


def naive_svrg_in_rounds(case: Case, setting: Setting) -> list[naive.State]:
    of_workers = drawn(case, rounds_of(setting), setting.workers)
    rounds = INNER // setting.workers
    return naive.distributed_svrg(case.naive, start(case), setting.outer_steps, rounds, of_workers, STEP)


def naive_dis_dfsdca(case: Case, setting: Setting, how: str, step: float = STEP) -> list[naive.State]:
    messages = setting.messages(clock.Work(H, ()))
    of_workers = drawn(case, messages, setting.workers, how)
    return naive.dis_dfsdca(case.naive, messages, of_workers, step, sampling=how)


def naive_cocoa_plus(case: Case, setting: Setting) -> list[naive.State]:
    rounds = setting.outer_steps * INNER // setting.workers
    return naive.cocoa_plus(case.naive, rounds, drawn(case, rounds_of(setting), setting.workers, "shuffled"))


def naive_shared(case: Case, setting: Setting) -> list[naive.State]:
    """With a number or an array as delays, iteration t has not seen the last so many."""
    if isinstance(setting.delays, asynchronous.DrawnDelays):
        bound, seed = setting.delays.bound, setting.delays.seed
        unseen = [np.random.default_rng((seed, s)).random((INNER, bound)) < 0.5 for s in range(setting.outer_steps)]
        iterations = [
            [(t % setting.workers, {t - 1 - j for j in range(min(t, bound)) if of[t, j]}) for t in range(INNER)]
            for of in unseen
        ]
    else:
        sizes = tuple(len(part) for part in np.array_split(np.arange(N), setting.workers))
        iterations = [
            [(k, set(range(t - delay, t))) for t, (k, delay) in enumerate(of)]
            for of in setting.messages(clock.Work(2 * H, sizes))
        ]
    of_threads = threads(case, iterations, setting.workers)
    return naive.shared_asysvrg(case.naive, start(case), iterations, *of_threads, STEP)


def threads(case: Case, iterations: list, workers: int) -> tuple[list[Iterator[Any]], list[Iterator[Any]]]:
    """Examples, of all there are, and coordinates that each thread draws."""

    def rows(k: int) -> Iterator[Any]:
        for outer, count in enumerate(counts_of(iterations, k)):
            draws = sampling.draws(case.problem, np.arange(N), sampling.How(H), (SEED, k, outer, 0))
            yield from (draw.rows for draw in itertools.islice(draws, count))

    return [rows(k) for k in range(workers)], coordinates_of(case, iterations, workers)


def coordinates_of(case: Case, messages: list, workers: int) -> list[Iterator[Any]]:
    """The coordinates that each worker's updates change."""

    def of_worker(k: int) -> Iterator[Any]:
        for outer, count in enumerate(counts_of(messages, k)):
            yield from itertools.islice(sampling.coordinate_draws(case.naive.d, 3, (SEED, k, outer, 0, 1)), count)

    return [of_worker(k) for k in range(workers)]


class Method(NamedTuple):
    """A solver with its settings, and the naive loop; ``dual`` where it needs conjugates."""

    solve: Callable[..., Any]
    loop: Callable[[Case, Setting], list[naive.State]]
    rounds: bool = False
    dual: bool = False


DFSDCA = functools.partial(asynchronous.dis_dfsdca, local_steps=H, step_size=STEP)
METHODS = {
    "sgd": Method(functools.partial(asynchronous.sgd, step_size=STEP, decay=0.7, batch_size=H), naive_sgd),
    "sgd of some": Method(
        functools.partial(asynchronous.sgd, step_size=STEP, decay=0.7, batch_size=H, coordinates=3), naive_sgd_of_some
    ),
    "distributed_asysvrg": Method(
        functools.partial(asynchronous.distributed_asysvrg, step_size=STEP, batch_size=H), naive_asysvrg
    ),
    "shared_asysvrg": Method(
        functools.partial(asynchronous.shared_asysvrg, step_size=STEP, batch_size=H, coordinates=3), naive_shared
    ),
    "dis_dfsdca": Method(DFSDCA, functools.partial(naive_dis_dfsdca, how="uniform")),
    "importance": Method(
        functools.partial(DFSDCA, sampling="importance"), functools.partial(naive_dis_dfsdca, how="importance")
    ),
    "adaptive": Method(
        functools.partial(DFSDCA, sampling="adaptive", step_size=5 * STEP),  # some messages are scaled down
        functools.partial(naive_dis_dfsdca, how="adaptive", step=5 * STEP),
    ),
    "distributed_svrg": Method(
        functools.partial(asynchronous.distributed_svrg, step_size=STEP, batch_size=H), naive_svrg_in_rounds, True
    ),
    "cocoa_plus": Method(
        functools.partial(asynchronous.cocoa_plus, local_steps=H), naive_cocoa_plus, rounds=True, dual=True
    ),
}
ASYNCHRONOUS = ("sgd", "distributed_asysvrg", "shared_asysvrg", "dis_dfsdca")
PROBLEMS = ("ridge", "quadratic", "logistic", "smoothed_hinge", "pca", "network", "sparse ridge", "sparse logistic")


def assert_same(case: Case, result: asynchronous.Result, state: naive.State) -> None:
    """w and alpha agree; and they are not where they began."""
    np.testing.assert_allclose(result.w, state.w, rtol=0, atol=1e-10)
    assert np.abs(np.asarray(result.w) - start(case)).max() > 1e-3
    if state.alpha is not None:
        alpha = np.asarray(result.alpha)
        vectors = alpha[:, None] * case.x if alpha.ndim == 1 and state.alpha.ndim == 2 else alpha
        np.testing.assert_allclose(vectors, state.alpha, rtol=0, atol=1e-10)
    else:
        assert result.alpha is None


def compare(name: str, of: str, setting: Setting) -> None:
    """After each of the outer iterations, of which a shorter run has the first ones."""
    method, where = METHODS[name], case(of)
    states = method.loop(where, setting)
    per_outer = len(states) // setting.outer_steps
    for outer in range(1, setting.outer_steps + 1):
        assert_same(where, method.solve(where.problem, **setting.options(outer)), states[outer * per_outer - 1])


def on_all_problems() -> list[tuple[str, str]]:
    """Methods and problems, but those that `test_delays` has; the network has no known constants, and no dual."""
    few = dict.fromkeys(ASYNCHRONOUS, tuple(of for of in PROBLEMS if of != "quadratic"))
    few |= {
        "sgd of some": ("quadratic", "pca"),
        "importance": ("ridge", "pca", "sparse ridge"),
        "adaptive": ("logistic", "pca", "sparse ridge"),
    }
    linear_ones = tuple(of for of in PROBLEMS if of not in ("pca", "network"))
    return [
        (name, of) for name, method in METHODS.items() for of in few.get(name, linear_ones if method.dual else PROBLEMS)
    ]


@pytest.mark.parametrize(("name", "of"), on_all_problems(), ids=str)
def test_methods_on_problems(name: str, of: str) -> None:
    compare(name, of, Setting(3, None if METHODS[name].rounds else PATTERN[:2], 2))


DELAYS = {
    "none": 0,
    "constant": 2,
    "drawn": asynchronous.DrawnDelays(3, seed=6),
    "one for each message": PATTERN,
    "of the clock with stragglers": None,
}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("delays", DELAYS.values(), ids=DELAYS)
@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_delays(name: str, delays: Any, workers: int) -> None:
    compare(name, "quadratic", Setting(workers, delays, 3))


def test_iterations_that_miss_some_updates_and_not_others() -> None:
    """Eq. 2.6 with any J(t); what is from before the outer iteration is never missing, for it began with a barrier."""
    where, missing = case("logistic"), np.random.default_rng(1).random((2 * INNER, 4)) < 0.5
    assert missing[:2].any() and missing[INNER].any()
    iterations = [
        [(t % 3, {t - 1 - j for j in range(4) if missing[s * INNER + t, j] and j < t}) for t in range(INNER)]
        for s in range(2)
    ]
    states = naive.shared_asysvrg(where.naive, start(where), iterations, *threads(where, iterations, 3), STEP)
    options = {"workers": 3, "outer_steps": 2, "inner_steps": INNER, "seed": SEED, "missing": missing}
    result = METHODS["shared_asysvrg"].solve(where.problem, **options)
    assert_same(where, result, states[-1])
    assert result.trace.column("largest_delay").tolist() == [0] + [max(len(j) for _, j in of) for of in iterations]


@pytest.mark.parametrize("of", ["ridge", "pca"])
def test_one_worker_is_dual_free_sdca(of: str) -> None:
    where = case(of)
    rows = [int(i) for (i,) in drawn(where, [[(0, 0)] * N] * 2, 1, h=1)[0]]
    state = naive.dfsdca(where.naive, rows, STEP)[-1]
    alone = {"step_size": STEP, "outer_steps": 2, "inner_steps": N, "seed": SEED}
    assert_same(where, asynchronous.dfsdca(where.problem, **alone), state)
    assert_same(where, asynchronous.dis_dfsdca(where.problem, workers=1, local_steps=1, **alone), state)
    assert_same(where, asynchronous.dis_dfsdca(where.problem, workers=1, local_steps=1, delays=0, **alone), state)


def test_one_worker_is_svrg() -> None:
    where = case("ridge")
    state = naive.svrg(where.naive, np.zeros(D), 2, INNER, drawn(where, [[(0, 0)] * INNER] * 2, 1)[0], STEP)[-1]
    alone = {"step_size": STEP, "outer_steps": 2, "inner_steps": INNER, "seed": SEED, "batch_size": H}
    assert_same(where, asynchronous.svrg(where.problem, **alone), state)
    assert_same(where, asynchronous.distributed_asysvrg(where.problem, workers=1, **alone), state)
    assert_same(where, asynchronous.distributed_svrg(where.problem, workers=1, **alone), state)


@pytest.mark.parametrize("of", ["ridge", "smoothed_hinge"])
def test_one_worker_is_sdca(of: str) -> None:
    where = case(of)
    (rows,) = drawn(where, [[(0, 0)]], 1, "shuffled", h=N)[0]
    state = naive.sdca(where.naive, rows)[-1]
    alone = {"outer_steps": 1, "inner_steps": 1, "seed": SEED}
    assert_same(where, asynchronous.sdca(where.problem, **alone), state)
    assert_same(where, asynchronous.cocoa_plus(where.problem, workers=1, local_steps=N, **alone), state)


@pytest.mark.parametrize("how", ["uniform", "importance", "adaptive"])
@pytest.mark.parametrize("of", ["ridge", "pca"])
def test_primal_is_the_sum_of_the_dual_vectors_after_every_message(of: str, how: str) -> None:
    """Eq. 3.3, for which nothing has to converge; with as many outer iterations as messages of each of two workers."""
    where = case(of)
    solve = functools.partial(METHODS["dis_dfsdca"].solve, sampling=how, workers=2, seed=SEED, inner_steps=2)
    for outer in range(1, 5):
        result = solve(where.problem, outer_steps=outer, delays=np.tile([0, 1], outer))
        alpha = np.asarray(result.alpha)
        total = alpha.sum(axis=0) if alpha.ndim == 2 else sum(a * x for a, x in zip(alpha, where.x, strict=True))
        assert np.abs(alpha).max() > 1e-2
        np.testing.assert_allclose(result.w, total / (L2 * N), rtol=0, atol=1e-9)
        np.testing.assert_allclose(where.problem.primal(result.alpha), result.w, rtol=0, atol=1e-9)


@pytest.mark.parametrize("how", ["n", "n_k"])
def test_the_relation_holds_with_n_of_all_examples(how: str) -> None:
    """Algorithm 7 prints the worker's n_k in the place of eq. 3.7's n; then the dual vectors would fall behind."""
    where = case("ridge")
    turns = Setting(3, PATTERN, 3).messages(clock.Work(H, ()))
    counts = {"n": None, "n_k": parts_of(3)}[how]
    states = naive.dis_dfsdca(where.naive, turns, drawn(where, turns, 3), STEP, counts=counts)
    errors = [np.abs(state.w - state.alpha.sum(axis=0) / (L2 * N)).max() for state in states]
    if how == "n":
        assert max(errors) < 1e-12
    else:
        assert min(errors) > 1e-2


def test_uniform_examples_are_the_workers_own_and_all_different() -> None:
    """As section 3.4.1 assumes; and every one of them has its turn."""
    seen = set()
    for rows in drawn(case("ridge"), [[(1, 0)] * 50], 3, h=3)[1]:
        assert len(set(rows.tolist())) == 3
        seen |= set(rows.tolist())
    assert seen == {1, 4, 7, 10}


def test_important_examples_are_drawn_more_often() -> None:
    """In proportion to L_i + l2 n, within five standard deviations."""
    where, draws, part = case("ridge"), 20000, np.arange(2, N, 3)
    (rows,) = drawn(where, [[(2, 0)]], 3, "importance", h=draws)[2]
    p = where.naive.smoothness[part] + L2 * N
    p = p / p.sum()
    seen = np.array([np.sum(rows == i) for i in part])
    assert seen.sum() == draws
    assert (np.abs(seen / draws - p) < 5 * np.sqrt(p * (1 - p) / draws)).all()
    assert p.max() > 1.5 * p.min()
