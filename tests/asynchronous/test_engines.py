"""The engines that are really asynchronous: the server's bookkeeping, lost workers, a lost server, and the way on."""

from __future__ import annotations

import os
import pathlib
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxdecouple import asynchronous
from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm, DualAscent, DualFree, Server, Svrg
from jaxdecouple.asynchronous.algorithms.sampling import rows_of
from jaxdecouple.asynchronous.engines import saving
from jaxdecouple.asynchronous.engines.clock import NO_STRAGGLERS
from jaxdecouple.asynchronous.engines.run import ServerLost, WorkersLost
from jaxdecouple.asynchronous.engines.serving import Compute, Job, Joined, Lost, Outer, Serving
from jaxdecouple.asynchronous.engines.worker import Task, Worker
from jaxdecouple.asynchronous.problems.problem import Problem

N, D = 240, 6
COUNTS = "jaxdecouple-*/w.counts"  # of the processes that share a vector


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


def job_of(problem: Problem, algorithm: Algorithm, workers: int, *, outer: int, inner: int, step: float) -> Job:
    return Job(algorithm, problem.n, problem.l2, workers, inner, (algorithm.shrunk(step, workers),) * outer)


def start_of(problem: Problem, algorithm: Algorithm) -> Outer:
    alpha = np.asarray(problem.initial_dual()) if algorithm.has_dual else None
    return Outer(np.zeros(problem.d), alpha)


@pytest.mark.parametrize("algorithm", [DualFree(5), Svrg(5), DualAscent(5, sigma=3.0)], ids=lambda a: a.name)
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
        with pytest.warns(asynchronous.StepSizeWarning):
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

    def check(server: Server) -> None:
        seen.append(float(np.abs(np.asarray(server.w) - np.asarray(problem.primal(server.alpha))).max()))

    job = job_of(problem, algorithm, workers, outer=30, inner=20, step=0.02)
    done = list(Serving(room, job, start_of(problem, algorithm), check).run())
    assert len(seen) == 30 * 20
    assert max(seen) < 1e-12
    assert done[-1].lost == 2
    assert max(int(outer.delays.max()) for outer in done) < 20
    start = float(np.abs(problem.gradient(np.zeros(D))).max())
    assert float(np.abs(problem.gradient(done[-1].w)).max()) < 0.1 * start


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


def test_local_engine_solves_and_replaces_a_killed_worker(tmp_path: pathlib.Path) -> None:
    """With SIGKILL for a worker in the middle of a run: the same solution, and primal and dual belong together."""
    problem = make_problem()
    at = tmp_path / "checkpoint.npz"
    with Killer("jaxdecouple.asynchronous.engines.process", "worker", after=at):
        result = asynchronous.cocoa_plus(
            problem, workers=2, local_steps=10, engine="local", outer_steps=60, inner_steps=10, checkpoint=str(at)
        )
    assert result.lost == 1
    assert result.trace.column("relation").max() < 1e-9
    assert result.trace[-1].gap < 1e-7
    assert (np.diff(result.trace.column("seconds")) > 0).all()


def test_local_engine_after_its_server_was_killed(tmp_path: pathlib.Path) -> None:
    """One clear error that names the checkpoint, records of what was done, and a run that goes on from there."""
    problem, records = make_problem(), []

    def keep(record: asynchronous.Record, w: Any) -> None:
        records.append(record)

    at = tmp_path / "checkpoint.npz"
    settings = {"workers": 2, "local_steps": 10, "engine": "local", "inner_steps": 20, "checkpoint": str(at)}
    killer = Killer("jaxdecouple.asynchronous.engines.process", "server", after=at)
    with (
        killer,
        pytest.raises(ServerLost, match=r"the server ended after outer iteration \d+ \(killed by SIGKILL\)") as error,
    ):
        asynchronous.dis_dfsdca(problem, outer_steps=100_000, on_record=keep, **settings)
    assert f"resume={str(at)!r}" in str(error.value)
    assert len(records) > 2
    done = int(np.load(at)["outer"])
    result = asynchronous.dis_dfsdca(problem, outer_steps=done + 60, resume=str(at), **settings)
    assert [record.outer for record in result.trace] == list(range(done, done + 61))
    assert result.trace.column("relation").max() < 1e-9
    assert result.trace[-1].gap < 1e-6
    with pytest.raises(ValueError, match="is of another run"):
        asynchronous.dis_dfsdca(make_problem(n=N - 1), outer_steps=3, resume=str(at), **settings)


def test_local_engine_shares_a_vector_without_a_lock() -> None:
    """Shared-AsySVRG on two processes comes to where one thread comes to, and a killed one is replaced."""
    problem = make_problem()
    settings = {"step_size": 0.01, "batch_size": 5, "coordinates": 3, "inner_steps": 300}

    def iterated() -> bool:
        """Whether two processes have begun to count their iterations."""
        files = [path for folder in ("/dev/shm", tempfile.gettempdir()) for path in pathlib.Path(folder).glob(COUNTS)]
        return any(
            len(counts) == 2 and counts.min() > 30 for counts in map(np.fromfile, files, [np.int64] * len(files))
        )

    with Killer("jaxdecouple.asynchronous.engines.process", "sharer", after=iterated):
        result = asynchronous.shared_asysvrg(problem, workers=2, engine="local", outer_steps=8, **settings)
    assert result.lost == 1
    alone = asynchronous.shared_asysvrg(problem, workers=1, delays=0, outer_steps=8, **settings)
    assert result.trace[-1].squared_gradient < 1e-2 * result.trace[0].squared_gradient
    assert result.trace[-1].objective == pytest.approx(alone.trace[-1].objective, rel=1e-3)


def test_ray_engine_solves_and_replaces_a_killed_worker(tmp_path: pathlib.Path) -> None:
    """As for the local engine."""
    pytest.importorskip("ray")
    problem = make_problem()
    at = tmp_path / "checkpoint.npz"
    with Killer("ray::AsynchronousWorker", after=at):
        result = asynchronous.cocoa_plus(
            problem, workers=2, local_steps=10, engine="ray", outer_steps=60, inner_steps=10, checkpoint=str(at)
        )
    assert result.lost == 1
    assert result.trace.column("relation").max() < 1e-9
    assert result.trace[-1].gap < 1e-7


def test_ray_engine_after_its_server_was_killed(tmp_path: pathlib.Path) -> None:
    """As for the local engine."""
    pytest.importorskip("ray")
    problem = make_problem()
    at = tmp_path / "checkpoint.npz"
    settings = {"workers": 2, "local_steps": 10, "engine": "ray", "inner_steps": 20, "checkpoint": str(at)}
    with Killer("ray::AsynchronousServer", after=at), pytest.raises(ServerLost, match=r"write resume="):
        asynchronous.dis_dfsdca(problem, outer_steps=100_000, **settings)
    done = int(np.load(at)["outer"])
    result = asynchronous.dis_dfsdca(problem, outer_steps=done + 3, resume=str(at), **settings)
    assert [record.outer for record in result.trace] == [done, done + 1, done + 2, done + 3]
    assert result.trace.column("relation").max() < 1e-9


class Killer(threading.Thread):
    """Kills one process with all of these words in its command line, once a checkpoint has some outer iterations."""

    def __init__(self, *words: str, after: pathlib.Path | Callable[[], bool]):
        super().__init__(daemon=True)
        self._words, self._over = words, threading.Event()
        self._now = after if callable(after) else lambda: _done(after) >= 3
        self.killed = False

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        assert self.killed, f"no process with {self._words} was there to be killed"

    def run(self) -> None:
        while not self._over.wait(0.02):
            found = [pid for pid in _descendants() if all(word in _command(pid) for word in self._words)]
            if not found or not self._now():
                continue
            try:
                os.kill(found[-1], signal.SIGKILL)
            except ProcessLookupError:
                continue
            self.killed = True
            return


def _done(checkpoint: pathlib.Path) -> int:
    """The outer iterations that it has."""
    try:
        return int(np.load(checkpoint)["outer"])
    except (OSError, ValueError, KeyError, EOFError):
        return 0


def _descendants() -> list[int]:
    """Processes of which this one is an ancestor, and those of Ray, which leave their family."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue

    def ours(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return sorted(pid for pid in parents if pid != os.getpid() and ours(pid))


def _command(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def test_a_worker_that_cannot_do_its_work_ends_the_run_with_its_reason() -> None:
    """An error in a worker is the run's error, and not a reason to start that worker again and again."""
    problem = make_problem()
    broken = problem.replace(y=problem.y[:7])
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
        ({"checkpoint": "somewhere"}, "write engine='local' or 'ray'"),
        ({"engine": "local", "resume": "/nowhere/at/all"}, "there is no checkpoint"),
        ({"engine": "local", "checkpoint": "/nowhere/at/all"}, "cannot be written"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    """Each is refused before a process is started."""
    with pytest.raises(ValueError, match=message):
        asynchronous.dis_dfsdca(make_problem(), workers=2, local_steps=5, **options)


def test_a_damaged_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
    """Cut off, of no archive, or with pickles in it."""
    path = tmp_path / "checkpoint"
    saving.save(path, Outer(np.ones(3), np.ones(4), 2, 1.5, 1, np.arange(3)), "this")
    loaded = saving.load(path, "this")
    assert (loaded["outer"], loaded["seconds"], loaded["lost"]) == (2, 1.5, 1)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nothing"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no checkpoint, or damaged"):
            saving.load(path, "this")
    with path.open("wb") as file:
        np.savez(file, fingerprint=np.array([object()]))
    with pytest.raises(ValueError, match="no checkpoint, or damaged"):
        saving.load(path, "this")
