"""A process of an engine of this machine: ``python -m jaxdecouple.asynchronous.engines.process ROLE DESCRIPTOR``.

`local.Child` starts it. It is told what to do by a socket whose file descriptor it is given, and ends when that socket
does. What only some roles need is imported by them, so that a server starts without JAX.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import traceback
from collections import deque
from multiprocessing.connection import Connection
from typing import Any


def main(role: str, descriptor: int) -> None:
    """Does what a process of this role does, until it is done or its run is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    core = os.environ.get("JAXDECOUPLE_CORE")
    if core:
        os.sched_setaffinity(0, {int(core)})  # before JAX is imported, which counts the cores
    pipe = Connection(descriptor)
    try:
        {"server": _serve, "worker": _work, "sharer": _share}[role](pipe, pipe.recv())
    except (EOFError, ConnectionError):
        return  # the run is over
    except Exception:
        pipe.send(traceback.format_exc())
        raise


def _serve(pipe: Connection, _: Any) -> None:
    from jaxdecouple.asynchronous.engines.serving import Serving

    job, at = pipe.recv()
    crew = LinkedCrew(pipe)
    outers, go = Serving(crew, job, at).run(), None
    while True:
        try:
            done = outers.send(go)
        except StopIteration:
            pipe.recv()  # ends when the run does
            continue
        pipe.send(done)
        go = crew.told() if job.safeguarded else None


def _work(pipe: Connection, ends: tuple[int, int]) -> None:
    from jaxdecouple.asynchronous.engines.links import Link
    from jaxdecouple.asynchronous.engines.messages import Joined
    from jaxdecouple.asynchronous.engines.worker import Worker

    worker = Worker(pipe.recv())
    server = Link(*ends, upper=True)
    server.send(Joined())
    while True:
        answer = worker.answer(server.receive())
        if answer is not None:
            server.send(answer)


def _share(pipe: Connection, ends: tuple[int, ...]) -> None:
    from jaxdecouple.asynchronous.engines.sharing import take_part

    take_part(pipe, ends[0])


class LinkedCrew:
    """The workers of a server that has a link to each; a `messages.Crew`."""

    def __init__(self, parent: Connection):
        """``parent`` says who has been started, and gives an end of a link to each."""
        self._parent = parent
        self._links: dict[int, Any] = {}
        self._ready: deque[Any] = deque()
        self._told: deque[Any] = deque()
        self._lost: deque[int] = deque()  # who has been replaced before it was seen that its link had ended
        self._selector = selectors.DefaultSelector()
        self._selector.register(parent, selectors.EVENT_READ, None)

    def send(self, worker: int, request: Any) -> None:
        """Asks something of a worker; if it is gone, nothing happens."""
        from jaxdecouple.asynchronous.engines.messages import Start

        try:
            # A start may come before the worker has read the request before it.
            self._links[worker].send(request, by_socket=isinstance(request, Start))
        except (KeyError, ConnectionError):
            pass  # `receive` says that it is lost

    def receive(self) -> tuple[int, Any]:
        """Waits for whoever has something to say; hears all who have, before it waits again.

        Raises:
          EOFError: the process that started this one has ended.
        """
        from jaxdecouple.asynchronous.engines.messages import Lost

        while True:
            if self._lost:
                return self._lost.popleft(), Lost()
            if not self._ready:
                self._ready.extend(key.data for key, _ in self._selector.select())
            worker = self._ready.popleft()
            if worker is None:
                self._hear()
            elif worker in self._links:
                try:
                    return worker, self._links[worker].receive()
                except (EOFError, ConnectionError):
                    self._lose(worker)

    def told(self) -> Any:
        """How to go on."""
        while not self._told:
            self._hear()
        return self._told.popleft()

    def _lose(self, worker: int) -> None:
        link = self._links.pop(worker)
        self._selector.unregister(link)
        link.close()
        self._lost.append(worker)

    def _hear(self) -> None:
        """Takes what the process that started this one says: that there is a worker, or how to go on."""
        from jaxdecouple.asynchronous.engines.links import Link, take

        news = self._parent.recv()
        if not isinstance(news, int):
            self._told.append(news)
            return
        link = Link(*take(self._parent), upper=False)
        if news in self._links:
            self._lose(news)
        self._links[news] = link
        self._selector.register(link, selectors.EVENT_READ, news)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
