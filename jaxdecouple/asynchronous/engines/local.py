r"""The local engine: the server and every worker are processes of this machine.

                        main  starts all of them, starts lost workers anew, measures what the server sends
                       /    \
                 server      worker 0, worker 1, ...          by a socket each; that it closes means that one ended
                      \_______/  requests and answers         by a link each

A worker has one core, if there are enough, and takes no more of them than one.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Generator
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np

from jaxdecouple.asynchronous.engines.links import Link, give
from jaxdecouple.asynchronous.engines.messages import ONE_CORE, RESTARTS, Go, Job, Lost, Task, WorkersLost
from jaxdecouple.asynchronous.outer import Outer


def serve(job: Job, at: Outer, tasks: list[Task]) -> Generator[Outer, Go | None, None]:
    """The outer iterations of a run on worker processes, as they are done; first of all the start.

    Raises:
      ServerLost: the server's process ended.
      WorkersLost: a worker ended again and again, or could not do its work.
    """
    last = None
    yield at
    of_example = 16 + (0 if at.alpha is None else np.asarray(at.alpha[0]).nbytes)
    size = 3 * at.w.nbytes + tasks[0].algorithm.h * of_example + 1024  # the longest message: a Compute or a Sent
    with Children() as children:
        server = children.start("server", "server", (job, at))

        def begin(worker: int) -> None:
            ours, theirs = Link.pair(size)
            children.send("server", worker)
            give(server.pipe, ours, server.process.pid)
            children.start(worker, "worker", tasks[worker], theirs)

        try:
            for worker in range(job.workers):
                begin(worker)
            while True:
                name, news = children.receive()
                if isinstance(news, Lost):
                    begin(int(name))
                elif isinstance(news, Outer):
                    last = news.outer
                    go = yield news
                    if job.safeguarded:
                        children.send("server", go)
        except (EOFError, ConnectionError) as error:
            raise job.server_lost(str(error), last) from None


class Child:
    """A process of the run, and the socket by which it belongs to this one.

    Attributes:
      process: the process.
      pipe: a connection that ends when the process ends.
    """

    def __init__(self, role: str, first: Any, *, core: int | None = None, descriptors: tuple[int, ...] = ()):
        """Starts a process and tells it what it is.

        Args:
          role: see `process`.
          first: the first thing that it reads, after the descriptors.
          core: that it is to keep to.
          descriptors: that it is given; closed here.

        Raises:
          ValueError: ``first`` cannot be sent to another process.
        """
        message = _pickled(first)
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "jaxdecouple.asynchronous.engines.process", role, str(theirs.fileno())]
        environment = {
            **os.environ,
            **ONE_CORE,
            "JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64)),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "JAXDECOUPLE_CORE": "" if core is None else str(core),
        }
        with theirs:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno(), *descriptors], env=environment)
        for descriptor in descriptors:
            os.close(descriptor)
        self.pipe = Connection(ours.detach())
        try:
            self.pipe.send(descriptors)
            self.pipe.send_bytes(message)
        except ConnectionError:
            pass  # it has ended already, which is seen when it is heard

    def stop(self) -> None:
        """Ends the process, if it has not ended."""
        self.process.kill()
        self.process.wait()
        self.pipe.close()

    def end(self) -> str:
        """How the process ended."""
        code = self.process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _pickled(value: Any) -> bytes:
    phi = getattr(getattr(value, "part", None), "phi", None)
    try:
        if phi is not None and getattr(phi, "__module__", None) == "__main__":
            raise AttributeError(f"{phi.__qualname__} is defined in the program that was started")
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the problem cannot be sent to another process ({error}); define phi at the top of a module that can be "
            "imported, or write engine='simulated'"
        ) from error


def _core_of(worker: int) -> int | None:
    """The core that a worker is to keep to, one after another; None where that cannot be said."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores[worker % len(cores)] if cores else None


class Children:
    """The processes of a run, by name: workers have numbers.

    Attributes:
      lost: how often a worker ended before its time.
    """

    def __init__(self):
        self._children: dict[Any, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._ready: deque[Any] = deque()
        self._restarts: dict[Any, int] = {}
        self.lost = 0

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.process.kill()  # all at once, and then wait for each
        for child in self._children.values():
            child.stop()
        self._selector.close()

    def start(self, name: int | str, role: str, first: Any, descriptors: tuple[int, ...] = ()) -> Child:
        """Starts a process; a worker keeps to one core."""
        core = _core_of(name) if isinstance(name, int) else None
        child = self._children[name] = Child(role, first, core=core, descriptors=descriptors)
        self._selector.register(child.pipe, selectors.EVENT_READ, name)
        return child

    def send(self, name: int | str, request: Any) -> None:
        """Tells a process something; if it is gone, nothing happens, and `receive` says that it is lost."""
        try:
            self._children[name].pipe.send(request)
        except ConnectionError:
            pass

    def receive(self) -> tuple[int | str, Any]:
        """Who has something to say, and what; `Lost` of a worker that has ended, to be started anew.

        Raises:
          EOFError: a process that is no worker has ended; its argument says how.
          WorkersLost: a worker has ended too often, or could not do its work.
        """
        if not self._ready:
            self._ready.extend(key.data for key, _ in self._selector.select())
        name = self._ready.popleft()
        who = f"worker {name}" if isinstance(name, int) else f"the {name}"
        child = self._children[name]
        try:
            news = child.pipe.recv()
        except (EOFError, ConnectionError):
            self._selector.unregister(child.pipe)
            if isinstance(name, str):
                raise EOFError(child.end()) from None
            child.stop()
            self.lost += 1
            self._restarts[name] = self._restarts.get(name, 0) + 1
            if self._restarts[name] > RESTARTS:
                raise WorkersLost(f"{who} ended {self._restarts[name]} times; the last time {child.end()}") from None
            return name, Lost()
        if isinstance(news, str):
            raise WorkersLost(f"{who} cannot do its work:\n{news}")
        return name, news
