"""The ray engine: the server and every worker are Ray actors, on this machine or on those of a cluster.

    driver  --- streams of outer iterations ---  server actor  --- requests and answers ---  worker actors
    (both on one node)                                                                       (anywhere)

If no Ray is running, one is started on this machine for the run, and stopped after it; a cluster is found as always, by
``ray.init()`` before the run or RAY_ADDRESS.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Generator, Iterator
from typing import Any, cast

import jax

from jaxdecouple.asynchronous.engines.messages import ONE_CORE, RESTARTS, Go, Job, Joined, Lost, Task, WorkersLost
from jaxdecouple.asynchronous.engines.serving import Serving
from jaxdecouple.asynchronous.engines.worker import Worker
from jaxdecouple.asynchronous.outer import Outer

try:
    import ray
    from ray._private import ray_constants
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise ValueError("engine is 'ray', and Ray is not installed; write pip install ray, or engine='local'") from error


class AsynchronousWorker:
    """The actor of a worker."""

    def __init__(self, task: Task):
        self._worker = Worker(task)

    def ready(self) -> None:
        """Ends when everything is compiled."""

    def answer(self, request: Any) -> Any:
        return self._worker.answer(request)


class AsynchronousServer:
    """The actor of the server, which owns the workers' actors: without it, they end."""

    def __init__(self, job: Job, at: Outer, tasks: list[Any], environment: dict[str, str]):
        self._outers = Serving(ActorCrew(tasks, environment), job, at).run()

    def next(self, go: Go | None) -> Outer:
        """The next outer iteration."""
        return self._outers.send(go)


class ActorCrew:
    """The workers of a server, as actors; a `messages.Crew`."""

    def __init__(self, tasks: list[Any], environment: dict[str, str]):
        self._tasks, self._environment = tasks, environment
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, tuple[int, bool]] = {}  # what is awaited: of whom, and whether it is that it is ready
        self._restarts = [0] * len(tasks)
        for worker in range(len(tasks)):
            self._start(worker)

    def send(self, worker: int, request: Any) -> None:
        self._asked[self._actors[worker].answer.remote(request)] = worker, False

    def receive(self) -> tuple[int, Any]:
        """Waits for whoever has something to say.

        Raises:
          WorkersLost: a worker has ended too often, or could not do its work.
        """
        while True:
            answers, _ = ray.wait(list(self._asked), num_returns=1)
            worker, is_ready = self._asked.pop(answers[0])
            try:
                answer = ray.get(answers[0])
            except RayTaskError as error:
                raise WorkersLost(f"worker {worker} cannot do its work:\n{error}") from error
            except RayActorError as error:
                self._replace(worker, error)
                return worker, Lost()
            if is_ready:
                return worker, Joined()
            if answer is not None:
                return worker, answer

    def _replace(self, worker: int, error: RayActorError) -> None:
        self._restarts[worker] += 1
        if self._restarts[worker] > RESTARTS:
            raise WorkersLost(f"worker {worker} ended {self._restarts[worker]} times; the last time: {error}")
        self._asked = {ref: of for ref, of in self._asked.items() if of[0] != worker}
        self._start(worker)

    def _start(self, worker: int) -> None:
        make = ray.remote(AsynchronousWorker).options(num_cpus=1, runtime_env={"env_vars": self._environment})
        self._actors[worker] = make.remote(self._tasks[worker])
        self._asked[self._actors[worker].ready.remote()] = worker, True


def serve(job: Job, at: Outer, tasks: list[Task]) -> Generator[Outer, Go, None]:
    """The outer iterations of a run on Ray actors, as they are done; first of all the start.

    Raises:
      ValueError: the cluster has fewer cores than the run has workers, which would wait for one another for ever.
      ServerLost: the server's actor ended.
      WorkersLost: a worker ended again and again, or could not do its work.
    """
    yield at
    ours = _initialized()
    last = None
    try:
        cores = int(ray.cluster_resources().get("CPU", 0))
        if cores < job.workers:
            raise ValueError(
                f"workers is {job.workers}, and Ray has {cores} cores; write {cores} or less, or add nodes"
            )
        environment = {**ONE_CORE, "JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64))}
        environment |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        # Beside this process, so that the loss of another node is one of workers alone. Ray places what needs no core
        # anywhere, unless it must be there.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        settings: Any = {"num_cpus": 0, "runtime_env": {"env_vars": environment}, "scheduling_strategy": here}
        make = ray.remote(AsynchronousServer).options(**settings)
        server = make.remote(job, at, [ray.put(task) for task in tasks], environment)
        asked = server.next.remote(None)
        while True:
            outer = cast(Outer, ray.get(asked))  # of one reference, one object
            last = outer.outer
            # What is known beforehand is computed while this process measures.
            ahead = last < len(job.steps) and not job.safeguarded
            asked = server.next.remote(None) if ahead else None
            go = yield outer
            asked = asked or server.next.remote(go)
    except RayTaskError as error:
        raise error.as_instanceof_cause() from None
    except RayActorError as error:
        raise job.server_lost(str(error).splitlines()[0], last) from None
    finally:
        if ours:
            ray.shutdown()


def _initialized() -> bool:
    """Whether a Ray was started for this run: where none runs in this process, and no cluster is named.

    It listens on the loopback interface alone: Ray asks nobody for a password, and who reaches its ports runs code.
    """
    if ray.is_initialized():
        return False
    with warnings.catch_warnings():
        # Ray forks to start its processes, of which JAX warns; the forked ones use no JAX.
        warnings.simplefilter("ignore", RuntimeWarning)
        quiet: Any = {"log_to_driver": False, "logging_level": "error"}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            with _on_loopback():
                ray.init(address="local", include_dashboard=False, **quiet)
    return True


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Lets a Ray that is started within it use the loopback interface, as on systems where it has no clusters.

    An address that is given it would replace: Ray takes a loopback address for an oversight.
    """
    name, constants = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", cast(Any, ray_constants)
    before, enabled = os.environ.get(name), constants.ENABLE_RAY_CLUSTER
    os.environ[name], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = enabled
        os.environ.pop(name) if before is None else os.environ.update({name: before})
