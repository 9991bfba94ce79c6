"""A run in several processes, from within one of them: how they meet, who speaks for all, and how they agree to stop.

`launching` starts them. The last process has the last stage, and so the losses: it alone prints and writes files. The
others are shown nothing of a run but its checkpoints, of which each writes its part.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from experiments.training import launching
from experiments.training.stopping import Stopped, StopRequest
from jaxdecouple.engine import processes
from jaxdecouple.network.jax_internals import coordinator_store

_BEAT = 0.5  # seconds between two signs of life
_LAST_WORDS = 3.0  # seconds that a process which failed has to say why
_EVERY = 8  # ticks between two votes: a vote costs half a millisecond
_CUT_OFF = re.compile(r"[Cc]onnection (closed|reset)|[Ss]ocket closed")  # what a transfer ends with
_ALIVE, _FAILED = "jaxdecouple/alive", "jaxdecouple/failed"


def count() -> int:
    """How many processes train."""
    return jax.process_count()


def is_speaker() -> bool:
    """Whether this process prints, and writes the files of the run."""
    return jax.process_index() == jax.process_count() - 1


class Told(ValueError):
    """What one process found wrong, in all of them."""


def agreed(act: Callable[[], Any]) -> Any:
    """What ``act`` gives in the process that speaks for all, which alone does it: JSON; or, in all, its error.

    Raises:
      ValueError: ``act`` did.
    """
    try:
        return processes.agreed(act, ValueError, count() - 1)
    except ValueError as error:
        raise error if count() == 1 else Told(str(error)) from error


@contextlib.contextmanager
def joined(settings: Mapping[str, Any], group_size: int = 1) -> Iterator[None]:
    """Joins the other processes, if a watcher has started this one as one of several.

    Args:
      settings: that must be the same in all.
      group_size: how many devices each stage has.

    Raises:
      ValueError: the processes do not meet in time, or differ in settings or versions.
    """
    if not launching.is_one_of_several():
        yield
        return
    index, number = int(os.environ[launching.INDEX]), int(os.environ[launching.COUNT])
    patience = float(os.environ[launching.PATIENCE])
    _take_share(index, int(os.environ[launching.SHARE]))
    _initialize(index, number, patience, group_size)
    with _SignsOfLife(index, number, patience):
        try:
            _compare(settings)
            yield
        except (Stopped, Told):  # all of them end, for the same reason
            _part()
            raise
        _part()


def _part() -> None:
    """Ends together: the others may still need the coordinator."""
    processes.told_by_all("done")
    jax.distributed.shutdown()


def _take_share(index: int, share: int) -> None:
    """On a machine's CPU, which several processes share, each takes cores of its own."""
    if share == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= share:
        os.sched_setaffinity(0, cores[index * len(cores) // share : (index + 1) * len(cores) // share])


def _initialize(index: int, number: int, patience: float, group_size: int) -> None:
    devices, coordinator = int(os.environ[launching.STAGES]) * group_size, os.environ[launching.COORDINATOR]
    host, local = coordinator.rsplit(":", 1)[0], int(os.environ[launching.SHARE]) == number
    address = "127.0.0.1" if local else _address_towards(host)
    jax.config.update("jax_num_cpu_devices", devices)
    # With port 0, JAX 0.12 would tell the others port 0, and the first transfer would never come.
    jax.config.update("jax_cross_host_transfer_socket_address", f"{address}:{launching.free_port(address)}")
    jax.config.update("jax_cross_host_transport_addresses", f"{address}:0")
    waits = 3 * patience
    failed = (
        f"process {index} of {number} could not meet the others at {coordinator} within {waits:g} s{{}}; start all of "
        "them, with the same --processes, a free port, and --coordinator as the address of process 0"
    )

    def give_up() -> None:  # JAX would abort the process, and not say why
        print(f"error: {failed.format('')}", file=sys.stderr, flush=True)
        os._exit(1)

    patient = threading.Timer(waits, give_up)
    patient.daemon = True
    patient.start()
    try:
        jax.distributed.initialize(
            coordinator,
            number,
            index,
            local_device_ids=range(index * devices, (index + 1) * devices) if local else range(devices),
            initialization_timeout=max(10, int(2 * waits)),
            heartbeat_timeout_seconds=max(10, int(10 * patience)),  # ours come first, and say more
            coordinator_bind_address=f"{host if local else '0.0.0.0'}:{coordinator.rsplit(':', 1)[1]}",
        )
    except Exception as error:  # XlaRuntimeError, whose kinds are strings
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(failed.format(f" ({text})")) from error
    finally:
        patient.cancel()


def _address_towards(host: str) -> str:
    """This machine's address in the network in which it reaches the host: where others reach it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
            probe.connect((host, 9))
            return probe.getsockname()[0]
    except OSError as error:
        raise ValueError(f"coordinator is on {host}, which cannot be reached ({error}); write HOST:PORT") from error


def _compare(settings: Mapping[str, Any]) -> None:
    import jaxdecouple as jd

    mine = {"Python": platform.python_version(), "JAX": jax.__version__, "jaxdecouple": jd.__version__, **settings}
    all_of_them = processes.told_by_all(mine)
    for name in mine:
        found = [theirs.get(name) for theirs in all_of_them]
        if any(value != found[0] for value in found):
            each = ", ".join(f"{value!r} in process {index}" for index, value in enumerate(found))
            raise Told(f"{name} is {each}; start all processes with the same settings and versions")


class _SignsOfLife:
    """Gives a sign of life now and then, and ends this process when another has given none for too long.

    Devices wait for ever for what a lost process was to send; so the process has to end from another thread.
    """

    def __init__(self, index: int, number: int, patience: float):
        self._index, self._number, self._patience = index, number, patience
        self._name = functools.partial(launching.name_of, stages=int(os.environ[launching.STAGES]))
        self._heard = {other: time.monotonic() for other in range(number) if other != index}
        self._last: dict[int, Any] = {}
        self._answered = time.monotonic()  # by the coordinator
        self._ended, self._parent = threading.Event(), os.getppid()

    def __enter__(self) -> _SignsOfLife:
        for target in (self._beat, self._guard):
            threading.Thread(target=target, daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError) and _CUT_OFF.search(str(error)):
            time.sleep(self._patience + 2 * _BEAT)  # by then `_guard` has said who is gone, and ended this process
        if error is not None and not isinstance(error, (Stopped, Told)):
            with contextlib.suppress(Exception):
                processes.write(f"{_FAILED}/{self._index}", True)
            if self._index == 0:  # with it goes the coordinator; the others are to know before
                time.sleep(2 * _BEAT)
        self._ended.set()

    def _beat(self) -> None:
        store, number = coordinator_store(), 0
        while not self._ended.wait(_BEAT):
            number += 1
            with contextlib.suppress(Exception):  # `_guard` sees it
                processes.write(f"{_ALIVE}/{self._index}", number)
                for key, value in store.key_value_dir_get(_ALIVE):
                    other = int(key.rsplit("/", 1)[1])
                    if self._last.get(other) != value:
                        self._last[other], self._heard[other] = value, time.monotonic()
                failed = [int(key.rsplit("/", 1)[1]) for key, _ in store.key_value_dir_get(_FAILED)]
                self._answered = time.monotonic()
                if failed and self._index not in failed:
                    if self._index == 0:  # without a coordinator, JAX ends a process at once: it is still to say why
                        time.sleep(_LAST_WORDS)
                    self._end(f", since {self._name(failed[0])} failed", status=1)

    def _guard(self) -> None:
        while not self._ended.wait(_BEAT):
            now = time.monotonic()
            if os.getppid() != self._parent:
                self._end(", since its watcher is gone")
            if now - self._answered > self._patience:
                self._end(self._silence(0))
            for other, heard in self._heard.items():
                if other != self._index and now - heard > self._patience:
                    self._end(self._silence(other))

    def _end(self, why: str, status: int = 3) -> None:
        if not self._ended.is_set():
            print(f"{self._name(self._index)} stopped{why}", file=sys.stderr, flush=True)
            os._exit(status)

    def _silence(self, process: int) -> str:
        return f": {self._name(process)} has given no sign of life for {self._patience:g} s"


class Stop:
    """Whether the run is to end, which all processes learn in the same tick, whichever was asked.

    They vote every few ticks. A vote is counted at the next, when all have long given it: nobody waits.
    """

    def __init__(self, request: StopRequest):
        self._request, self._voted = request, -1

    def signum(self, tick: int) -> int | None:
        """The signal that asked, if one did. To be called once in every tick."""
        if count() == 1:
            return self._request.signum
        if tick % _EVERY:
            return None
        before, self._voted = self._voted, tick
        processes.write(f"jaxdecouple/votes/{tick}/{jax.process_index()}", self._request.signum or 0)
        if before < 0:
            return None
        votes = [processes.read(f"jaxdecouple/votes/{before}/{process}") for process in range(count())]
        return next((vote for vote in votes if vote), None)
