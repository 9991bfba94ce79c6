"""The local engine: the server and every worker are processes of this machine, which talk over sockets.

                        main  starts all of them, starts lost workers anew, measures what the server sends
                       /    \\
                 server      worker 0, worker 1, ...          by a socket each; that it closes means that one ended
                      \\_______/  requests and answers         by a socket that the server has in a directory of the run

A worker has one core, if there are enough, and takes no more of them than one.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import jax

from jaxdecouple.asynchronous.engines.run import ONE_CORE, RESTARTS, ServerLost, WorkersLost, how_to_go_on
from jaxdecouple.asynchronous.engines.serving import Job, Outer
from jaxdecouple.asynchronous.engines.worker import Task


class Child:
    """A process of the run, and the socket by which it belongs to this one.

    Attributes:
      process: the process.
      pipe: a connection that ends when the process ends.
    """

    def __init__(self, role: str, first: Any, *, core: int | None = None):
        """Starts a process and tells it what it is: ``first`` is the first thing that it reads.

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
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        self.pipe = Connection(ours.detach())
        self.pipe.send_bytes(message)

    def stop(self) -> None:
        """Ends the process, if it has not ended."""
        self.process.kill()
        self.process.wait()
        self.pipe.close()


def _phi(value: Any) -> Any:
    """phi of the problem in what a worker is told, if the user wrote one."""
    task = value[1] if isinstance(value, tuple) else value
    problem = getattr(task, "part", None) or getattr(task, "problem", None)
    return getattr(problem, "phi", None)


def _pickled(value: Any) -> bytes:
    phi = _phi(value)
    try:
        if getattr(phi, "__module__", None) == "__main__":
            raise AttributeError(f"{phi.__qualname__} is defined in the program that was started")
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the problem cannot be sent to another process ({error}); define phi at the top of a module that can be "
            "imported, or write engine='simulated'"
        ) from error


def core_of(worker: int) -> int | None:
    """The core that a worker is to keep to, one after another; None where that cannot be said."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores[worker % len(cores)] if cores else None


def serve(job: Job, at: Outer, tasks: list[Task]) -> Iterator[Outer]:
    """The outer iterations of a run on worker processes, as they are done.

    Raises:
      ServerLost: the server's process ended.
      WorkersLost: a worker ended again and again, or could not do its work.
    """
    with tempfile.TemporaryDirectory(prefix="jaxdecouple-") as directory:
        address = os.path.join(directory, "server")
        children: dict[Any, Child] = {"server": Child("server", (address, job, at))}

        def start(worker: int) -> None:
            children[worker] = Child("worker", (address, tasks[worker]), core=core_of(worker))

        try:
            if children["server"].pipe.recv() != "listening":
                raise AssertionError("the server says that it listens, first of all")
            for task in tasks:
                start(task.worker)
            yield from _supervise(children, start, job)
        except (EOFError, ConnectionError):
            raise ServerLost(how_to_go_on(job, _end_of(children["server"]), None)) from None
        finally:
            for child in children.values():
                child.stop()


def _supervise(children: dict[Any, Child], start: Any, job: Job) -> Iterator[Outer]:
    """Passes on what the server sends, and starts workers anew that have ended."""
    restarts, last = dict.fromkeys(range(job.workers), 0), None
    while True:
        ready = wait([child.pipe for child in children.values()])
        for name, child in list(children.items()):
            if child.pipe not in ready:
                continue
            try:
                news = child.pipe.recv()
            except (EOFError, ConnectionError):
                if name == "server":
                    raise ServerLost(how_to_go_on(job, _end_of(child), last)) from None
                child.stop()
                restarts[name] += 1
                if restarts[name] > RESTARTS:
                    raise WorkersLost(
                        f"worker {name} ended {restarts[name]} times; the last time {_end_of(child)}"
                    ) from None
                start(name)
                continue
            if isinstance(news, Outer):
                last = news.outer
                yield news
                if news.outer == len(job.steps):
                    return
            else:
                raise WorkersLost(f"{name if name == 'server' else f'worker {name}'} cannot do its work:\n{news}")


def _end_of(child: Child) -> str:
    code = child.process.wait()
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
