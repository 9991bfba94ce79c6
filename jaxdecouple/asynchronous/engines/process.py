"""A process of the local engine: ``python -m jaxdecouple.asynchronous.engines.process ROLE DESCRIPTOR``.

`local` and `sharing` start it. It is told what to do by a socket whose file descriptor it is given, and ends when that
socket does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections import deque
from multiprocessing.connection import Connection, wait
from typing import Any


def main(role: str, descriptor: int) -> None:
    """Does what a process of this role does, until it is done or its run is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    core = os.environ.get("JAXDECOUPLE_CORE")
    if core:
        os.sched_setaffinity(0, {int(core)})  # before JAX is imported, which counts the cores
    pipe = Connection(descriptor)
    try:
        {"server": _serve, "worker": _work, "sharer": _share}[role](pipe)
    except (EOFError, ConnectionError):
        return  # the run is over
    except Exception:
        pipe.send(traceback.format_exc())
        raise


def _serve(pipe: Connection) -> None:
    from jaxdecouple.asynchronous.engines.serving import Serving

    address, job, at = pipe.recv()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(job.workers)
        pipe.send("listening")
        for done in Serving(SocketCrew(listener, pipe), job, at).run():
            pipe.send(done)
        pipe.recv()  # which ends when the run does


def _work(pipe: Connection) -> None:
    from jaxdecouple.asynchronous.engines.worker import Worker

    address, task = pipe.recv()
    worker = Worker(task)
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(address)
        server = Connection(connected.detach())
    server.send(task.worker)
    while True:
        answer = worker.answer(server.recv())
        if answer is not None:
            server.send(answer)


def _share(pipe: Connection) -> None:
    from jaxdecouple.asynchronous.engines.sharing import take_part

    take_part(pipe)


class SocketCrew:
    """The workers of a server that waits for them on a socket; as `jaxdecouple.asynchronous.engines.serving.Crew`."""

    def __init__(self, listener: socket.socket, parent: Connection):
        self._listener, self._parent = listener, parent
        self._of: dict[int, Connection] = {}
        self._ready: deque[Any] = deque()

    def send(self, worker: int, request: Any) -> None:
        """As of `Crew`."""
        try:
            self._of[worker].send(request)
        except (KeyError, ConnectionError):
            pass  # `receive` says that it is lost

    def receive(self) -> tuple[int, Any]:
        """As of `Crew`.

        Raises:
          EOFError: the process that started this one has ended.
        """
        from jaxdecouple.asynchronous.engines.serving import Joined, Lost

        while True:
            if not self._ready:
                self._ready.extend(wait([self._listener, self._parent, *self._of.values()]))
            source = self._ready.popleft()
            if source is self._parent:
                raise EOFError
            if source is self._listener:
                worker = self._accept()
                if worker is not None:
                    return worker, Joined()
                continue
            worker = next((worker for worker, connection in self._of.items() if connection is source), None)
            if worker is None:
                continue
            try:
                return worker, source.recv()
            except (EOFError, ConnectionError):
                del self._of[worker]
                return worker, Lost()

    def _accept(self) -> int | None:
        """Who has come; None where it has gone again."""
        connection = Connection(self._listener.accept()[0].detach())
        try:
            worker = connection.recv()
        except (EOFError, ConnectionError):
            return None
        self._of[worker] = connection
        return worker


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
