r"""The local engine: the server and every worker are processes of this machine.

                        main  starts all of them, starts lost workers anew, measures what the server sends
                       /    \
                 server      worker 0, worker 1, ...          by a socket each; that it closes means that one ended
                      \_______/  requests and answers         by a link each

A worker has one core, if there are enough, and takes no more of them than one.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from jaxdecouple.asynchronous.engines.children import Children
from jaxdecouple.asynchronous.engines.links import Link, give
from jaxdecouple.asynchronous.engines.messages import Go, Job, Lost, Task
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
