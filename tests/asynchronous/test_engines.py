"""The engines that are really asynchronous: the server's bookkeeping, lost workers, a lost server, and the way on."""

from __future__ import annotations

import dataclasses
import pathlib
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxdecouple import asynchronous
from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm, DualAscent, DualFree, Svrg
from jaxdecouple.asynchronous.algorithms.sampling import rows_of
from jaxdecouple.asynchronous.algorithms.step_sizes import Steps
from jaxdecouple.asynchronous.engines.clock import NO_STRAGGLERS, Stragglers
from jaxdecouple.asynchronous.engines.messages import (
    Compute,
    Go,
    Job,
    Joined,
    Lost,
    ServerLost,
    Task,
    WorkersLost,
)
from jaxdecouple.asynchronous.engines.options import Settings
from jaxdecouple.asynchronous.engines.run import Run
from jaxdecouple.asynchronous.engines.serving import Serving
from jaxdecouple.asynchronous.engines.worker import Worker
from jaxdecouple.asynchronous.outer import Outer
from jaxdecouple.asynchronous.problems.problem import Problem
from tests.oracles.killer import Killer, descendants

pytestmark = [
    pytest.mark.filterwarnings("ignore::jaxdecouple.asynchronous.StepSizeWarning"),
    pytest.mark.filterwarnings("ignore::jaxdecouple.asynchronous.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::jaxdecouple.asynchronous.EngineWarning"),
]

N, D = 240, 6


@pytest.fixture(autouse=True)
def _in_float64(x64: None) -> None:
    """Everything here is to be exact."""


def make_problem(n: int = N, *, l2: float = 0.1) -> asynchronous.Linear:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, D))
    return asynchronous.ridge(x, np.sign(x @ rng.standard_normal(D)), l2=l2)


class Room:
    """A crew in this process, whose workers answer in the order that ``next_one`` chooses among those that were asked.

    A worker in ``dies`` is lost when it has been asked so many times, with its answer, and comes again at once.
    """

    def __init__(self, problem: Problem, algorithm: Algorithm, workers: int, order: Callable[[list[int]], int]):
        self.tasks = [
            Task(problem.part(rows_of(k, workers, problem.n)), algorithm, k, 0, NO_STRAGGLERS) for k in range(workers)
        ]
        self.workers = {task.worker: Worker(task) for task in self.tasks}
        self.asked: dict[int, Any] = {}
        self.news: deque[tuple[int, Any]] = deque((k, Joined()) for k in range(workers))
        self.order, self.dies, self.log = order, {}, []

    def send(self, worker: int, request: Any) -> None:
        answer = self.workers[worker].answer(request)
        if isinstance(request, Compute):
            self.log.append((worker, request.version))
            self.dies[worker] = self.dies.get(worker, 0) - 1
            if self.dies[worker] == 0:
                self.workers[worker] = Worker(self.tasks[worker])
                self.news += [(worker, Lost()), (worker, Joined())]
                return
        if answer is not None:
            self.asked[worker] = answer

    def receive(self) -> tuple[int, Any]:
        if self.news:
            return self.news.popleft()
        worker = self.order(sorted(self.asked))
        return worker, self.asked.pop(worker)


def job_of(
    problem: Problem,
    algorithm: Algorithm,
    workers: int,
    *,
    outer: int,
    inner: int,
    step: float,
    safeguarded: bool = False,
) -> Job:
    how = {"in_rounds": algorithm.in_rounds, "needs_mean": algorithm.needs_mean, "safeguarded": safeguarded}
    steps = (algorithm.shrunk(step, workers),) * outer
    return Job(n=problem.n, l2=problem.l2, workers=workers, inner_steps=inner, epochs=1.0, steps=steps, **how)


def start_of(problem: Problem, algorithm: Algorithm) -> Outer:
    alpha = np.asarray(problem.initial_dual()) if algorithm.has_dual else None
    return Outer(np.zeros(problem.d), alpha)


@pytest.mark.parametrize(
    "algorithm", [DualFree(5), Svrg(5), DualAscent(5, "shuffled", sigma=3.0)], ids=lambda a: a.name
)
def test_workers_that_take_turns_are_what_is_simulated(algorithm: Algorithm) -> None:
    """With workers that answer in turn, delays are K - 1 after the first round, as given to the simulated engine."""
    problem, workers, inner = make_problem(), 3, 12
    turn = iter(range(10**6))

    def in_turn(asked: list[int]) -> int:
        return asked[0] if algorithm.in_rounds else next(turn) % workers

    room = Room(problem, algorithm, workers, in_turn)
    job = job_of(problem, algorithm, workers, outer=1, inner=inner, step=1.0 if algorithm.in_rounds else 0.003)
    (done,) = Serving(room, job, start_of(problem, algorithm)).run()
    options = {"workers": workers, "outer_steps": 1, "inner_steps": inner}
    late = options | {"delays": workers - 1, "step_size": 0.003}
    expected = np.arange(inner) % workers if algorithm.in_rounds else np.minimum(np.arange(inner), workers - 1)
    np.testing.assert_array_equal(done.delays, expected)
    if algorithm.name == "cocoa_plus":
        known = asynchronous.cocoa_plus(problem, local_steps=5, **options)
    elif algorithm.name == "dis_dfsdca":
        known = asynchronous.dis_dfsdca(problem, local_steps=5, **late)
    else:
        known = asynchronous.distributed_asysvrg(problem, batch_size=5, **late)
    np.testing.assert_allclose(done.w, known.w, rtol=1e-10, atol=1e-12)
    if algorithm.has_dual:
        np.testing.assert_allclose(done.alpha, known.alpha, rtol=1e-10, atol=1e-12)


def test_primal_and_dual_belong_together_after_every_message_also_when_workers_are_lost() -> None:
    """w = w(alpha) at each update, with messages in random order, stale ones at every border, two lost workers."""
    problem, algorithm, workers = make_problem(), DualFree(5), 4
    rng = np.random.default_rng(1)
    room = Room(problem, algorithm, workers, lambda asked: int(rng.choice(asked)))
    room.dies = {1: 7, 3: 20}
    seen = []

    def check(w: np.ndarray, alpha: np.ndarray) -> None:
        seen.append(float(np.abs(w - np.asarray(problem.primal(alpha))).max()))

    job = job_of(problem, algorithm, workers, outer=30, inner=20, step=0.02)
    done = list(Serving(room, job, start_of(problem, algorithm), check).run())
    assert len(seen) == 30 * 20
    assert max(seen) < 1e-12
    assert done[-1].lost == 2
    assert max(int(outer.delays.max()) for outer in done) < 20
    start = float(np.abs(problem.gradient(np.zeros(D))).max())
    assert float(np.abs(problem.gradient(done[-1].w)).max()) < 0.1 * start


def test_what_was_computed_is_what_was_taken(monkeypatch) -> None:
    """Stale messages are not counted; of SVRG, the parts of the full gradient are."""
    answer = Worker.answer

    def in_a_second(worker: Worker, request: Any) -> Any:
        found = answer(worker, request)
        return found and dataclasses.replace(found, seconds=1.0)

    monkeypatch.setattr(Worker, "answer", in_a_second)
    problem, order_of_answers = make_problem(), iter([0, 0, 0, 0, 1] * 5)
    room = Room(problem, DualFree(5), 2, lambda asked: next(order_of_answers))
    job = job_of(problem, DualFree(5), 2, outer=5, inner=4, step=0.01)
    done = list(Serving(room, job, start_of(problem, DualFree(5))).run())
    assert [outer.computing for outer in done] == [4, 8, 12, 16, 20]
    room = Room(problem, Svrg(5), 2, lambda asked: asked[0])
    job = job_of(problem, Svrg(5), 2, outer=2, inner=4, step=0.01)
    done = list(Serving(room, job, dataclasses.replace(start_of(problem, Svrg(5)), computing=100.0)).run())
    assert [outer.computing for outer in done] == [106, 112]


def test_processes_that_gain_nothing_say_so() -> None:
    """One loop is faster where messages take less time to compute than the run took."""
    problem, start = make_problem(), Outer(np.zeros(D), seconds=3.0, computing=1.0)
    run = Run(problem, DualFree(5), Settings(workers=2, engine="local"), Steps(0.01))
    with pytest.warns(asynchronous.EngineWarning, match=r"2 workers took 7 s for what takes 2 s to compute.* than 5"):
        run._warn_of_messages(start, dataclasses.replace(start, seconds=10.0, computing=3.0))
    late = dataclasses.replace(run, settings=Settings(workers=2, engine="local", stragglers=Stragglers()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run._warn_of_messages(start, dataclasses.replace(start, seconds=10.0, computing=9.0))
        run._warn_of_messages(start, dataclasses.replace(start, seconds=10.0))  # nobody computed by itself
        late._warn_of_messages(start, dataclasses.replace(start, seconds=10.0, computing=3.0))


def test_a_stale_message_of_an_earlier_outer_iteration_is_not_taken() -> None:
    """Worker 1 answers only when an outer iteration is over: none of its messages are of the one they come in."""
    problem, algorithm = make_problem(), DualFree(5)
    order_of_answers = iter([0, 0, 0, 0, 1] * 5)  # four make an outer iteration

    def order(asked: list[int]) -> int:
        return next(order_of_answers)

    room = Room(problem, algorithm, 2, order)
    job = job_of(problem, algorithm, 2, outer=5, inner=4, step=0.01)
    done = list(Serving(room, job, start_of(problem, algorithm)).run())
    ours = rows_of(1, 2, N)
    assert not done[-1].alpha[ours].any()
    assert done[-1].alpha[rows_of(0, 2, N)].any()


def test_w_and_alpha_are_taken_back_where_the_objective_rose() -> None:
    """The server goes on from before the last outer iteration, its workers with the dual vectors of then."""
    problem, algorithm, workers = make_problem(), DualFree(5), 3
    room = Room(problem, algorithm, workers, lambda asked: asked[-1])
    seen = []

    def check(w: np.ndarray, alpha: np.ndarray) -> None:
        seen.append(float(np.abs(w - np.asarray(problem.primal(alpha))).max()))

    job = job_of(problem, algorithm, workers, outer=4, inner=12, step=0.01, safeguarded=True)
    outers = Serving(room, job, start_of(problem, algorithm), check).run()
    first = next(outers)
    second = outers.send(Go(0.01))
    third = outers.send(Go(0.0, back=True))
    assert np.abs(second.w - first.w).max() > 1e-3
    np.testing.assert_array_equal(third.w, first.w)
    np.testing.assert_array_equal(third.alpha, first.alpha)
    fourth = outers.send(Go(0.005))
    assert np.abs(fourth.w - first.w).max() > 1e-3 and fourth.outer == 4
    assert max(seen) < 1e-12


@pytest.mark.parametrize("solver", ["dis_dfsdca", "cocoa_plus"])
def test_local_engine_goes_on_as_if_it_had_not_been_stopped(solver: str, tmp_path: pathlib.Path) -> None:
    """It computes what is simulated, where the order of messages is known: with one worker, or in rounds."""
    problem, at = make_problem(), str(tmp_path / "checkpoint.npz")
    options = {"workers": 2 if solver == "cocoa_plus" else 1, "local_steps": 10}
    solve = getattr(asynchronous, solver)
    simulated = solve(problem, outer_steps=3, **options)
    solve(problem, outer_steps=1, engine="local", checkpoint=at, **options)
    result = solve(problem, outer_steps=3, engine="local", resume=at, checkpoint=at, **options)
    np.testing.assert_allclose(result.w, simulated.w, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.alpha, simulated.alpha, rtol=1e-9, atol=1e-12)
    assert [record.outer for record in result.trace] == [1, 2, 3]
    finished = solve(problem, outer_steps=2, engine="local", resume=at, **options)  # starts no process
    np.testing.assert_array_equal(finished.w, result.w)
    assert descendants("engines.process") == []


def test_local_engine_after_a_worker_and_the_server_were_killed(tmp_path: pathlib.Path) -> None:
    """A worker is replaced. Without a server there is one clear error that names the checkpoint, and a way on."""
    problem, at = make_problem(), tmp_path / "checkpoint.npz"
    settings = {"workers": 2, "local_steps": 10, "engine": "local", "inner_steps": 20, "checkpoint": str(at)}
    killer, records = Killer("engines.process worker", "engines.process server"), []

    def note(record: asynchronous.Record, w: Any) -> None:
        records.append(record)
        killer.go_on(record)

    with pytest.raises(ServerLost, match=r"the server ended after outer iteration \d+ \(killed by SIGKILL\)") as error:
        asynchronous.dis_dfsdca(problem, outer_steps=100_000, on_record=note, **settings)
    assert f"resume={str(at)!r}" in str(error.value)
    assert killer.killed == 2 and records[-1].seconds > records[1].seconds > 0
    done = int(np.load(at)["outer"])
    result = asynchronous.dis_dfsdca(problem, outer_steps=done + 200, resume=str(at), tol=1e-8, **settings)
    assert result.converged and result.lost == 1
    assert [record.outer for record in result.trace] == list(range(done, done + len(result.trace)))
    assert result.trace.column("relation").max() < 1e-9


def test_local_engine_shares_a_vector_without_a_lock(tmp_path: pathlib.Path) -> None:
    """Shared-AsySVRG on two processes comes to where one thread comes to, a killed one is replaced, and it goes on."""
    problem, at = make_problem(), str(tmp_path / "checkpoint.npz")
    settings = {"step_size": 0.01, "batch_size": 5, "coordinates": 3, "inner_steps": 300}
    killer = Killer("engines.process sharer")
    options = {"workers": 2, "engine": "local", "on_record": lambda record, w: killer.go_on(record), **settings}
    result = asynchronous.shared_asysvrg(problem, outer_steps=6, checkpoint=at, **options)
    assert result.lost == killer.killed == 1
    result = asynchronous.shared_asysvrg(problem, outer_steps=8, resume=at, **options)
    assert [record.outer for record in result.trace] == [6, 7, 8] and result.lost == 1
    alone = asynchronous.shared_asysvrg(problem, workers=1, delays=0, outer_steps=8, **settings)
    assert result.trace[-1].squared_gradient < 1e-2 * alone.trace[0].squared_gradient
    assert result.trace[-1].objective == pytest.approx(alone.trace[-1].objective, rel=1e-3)


def test_ray_engine_on_three_nodes_of_which_one_is_killed(tmp_path: pathlib.Path) -> None:
    """As for the local engine; and a node that ends takes its worker with it, which is replaced on another."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    problem, at = make_problem(), tmp_path / "checkpoint.npz"
    settings = {"workers": 2, "local_steps": 10, "engine": "ray", "inner_steps": 20, "checkpoint": str(at)}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        killer = Killer("ray::AsynchronousServer")
        removed, without_it = [], []

        def note(record: asynchronous.Record, w: Any) -> None:
            busy = _nodes_of(ray, "AsynchronousWorker")
            if record.outer == 3:
                assert _nodes_of(ray, "AsynchronousServer") == {ray.get_runtime_context().get_node_id()}
                removed.append(next(node for node in nodes if node.node_id in busy))
                cluster.remove_node(removed[0])
            # Ray counts the lost worker among those that live until it has noticed that its node is gone.
            if removed and len(busy - {removed[0].node_id}) == 2:
                without_it.append(record.outer)
            if len(without_it) > 3:
                killer.go_on(record)

        with pytest.raises(ServerLost, match=r"write resume="):
            asynchronous.dis_dfsdca(problem, outer_steps=100_000, on_record=note, **settings)
        done = int(np.load(at)["outer"])
        with pytest.raises(ValueError, match="workers is 3, and Ray has 2 cores"):
            asynchronous.dis_dfsdca(problem, **{**settings, "workers": 3})
        result = asynchronous.dis_dfsdca(problem, outer_steps=done + 200, resume=str(at), tol=1e-6, **settings)
        assert result.converged and result.lost == 1 and result.trace[0].outer == done
        assert result.trace.column("relation").max() < 1e-9
    finally:
        ray.shutdown()
        cluster.shutdown()


def _nodes_of(ray: Any, kind: str) -> set[str]:
    """Where the actors of a kind are that live."""
    actors = ray._private.state.actors().values()
    alive = [actor for actor in actors if actor["ActorClassName"] == kind and actor["State"] == "ALIVE"]
    return {actor["Address"]["NodeID"] for actor in alive}


def test_a_worker_that_cannot_do_its_work_ends_the_run_with_its_reason() -> None:
    """An error in a worker is the run's error, and not a reason to start that worker again and again."""
    problem = make_problem()
    broken = dataclasses.replace(problem, y=problem.y[:7])
    with pytest.raises((WorkersLost, ValueError, TypeError)):
        asynchronous.dis_dfsdca(broken, workers=2, local_steps=5, engine="local", outer_steps=2, step_size=1e-3)


def test_problems_that_cannot_be_sent_say_so() -> None:
    """A phi that only this process knows is refused with what to do about it."""
    problem = asynchronous.general(lambda w, example: (w @ example) ** 2, np.ones((8, 2)), np.ones(2), l2=0.1)
    with pytest.raises(ValueError, match="define phi at the top of a module"):
        asynchronous.dis_dfsdca(problem, workers=2, local_steps=2, engine="local", outer_steps=2, step_size=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "local", "delays": 2}, "has its own; write engine='simulated'"),
        ({"outer_steps": 2.5}, "outer_steps is 2.5; write a whole number"),
        ({"seed": True}, "seed is True; write a whole number"),
        ({"tol": float("nan")}, "tol is nan; write a number"),
        ({"step_size": float("nan")}, "step_size is nan; write a positive number"),
        ({"engine": "local", "resume": "/nowhere/at/all"}, "there is no checkpoint"),
        ({"engine": "local", "checkpoint": "/nowhere/at/all"}, "cannot be written"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    """Each is refused before a process is started."""
    with pytest.raises(ValueError, match=message):
        asynchronous.dis_dfsdca(make_problem(), workers=2, local_steps=5, **options)
