"""Starting a program as several processes that train one network, and watching over them until all have ended.

A watcher needs no JAX. It passes on what the processes print, leaves out what JAX's own libraries print when a process
is lost, and sees to it that none is left behind: when one fails, the others have a moment to end by themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import IO, Any

from experiments.settings import Settings, option
from experiments.training.stopping import Stopped, leave_terminal, stopping_signals

INDEX, COUNT, COORDINATOR = "JAXDECOUPLE_PROCESS", "JAXDECOUPLE_PROCESSES", "JAXDECOUPLE_COORDINATOR"
STAGES, SHARE, TERMINAL = "JAXDECOUPLE_STAGES", "JAXDECOUPLE_SHARE", "JAXDECOUPLE_TERMINAL"
PATIENCE = "JAXDECOUPLE_PATIENCE"
_NOISE = re.compile(  # of JAX's own libraries
    rb"\[Gloo\]|[WEIF]\d{4} \d\d:\d\d:|Additional GRPC|:UNAVAILABLE|=== Source Loc|external/xla|\. This is only|\s*$"
)
_DYING = (b"*** Check failure", b"Fatal Python error")  # what JAX's libraries end with when they lose a process
_GRACE = 5.0  # seconds, beyond the patience, that the others have once one has failed
_FAREWELL = 1.0  # seconds that they have once they have said why; JAX would wait for the one that is gone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes(Settings):
    """How many processes and devices train, and where the processes meet."""

    processes: int = option(
        1, "how many processes the stages are spread over, neighbours together", least=1, group="devices and processes"
    )
    group_size: int = option(1, "devices of each stage, over which its batches are split", least=1)
    process: int = option(-1, "of these, the one to start here, 0 or above; -1: all of them", least=-1)
    coordinator: str = option("", "address of process 0, HOST:PORT, where --process is given")
    patience: float = option(15.0, "seconds after which a process that shows no sign of life is given up", above=0.0)

    def check(self) -> None:
        """Refuses processes that cannot meet."""
        if self.process >= self.processes:
            raise ValueError(
                f"process is {self.process}, but processes is {self.processes}; write --process of 0 to "
                f"{self.processes - 1}, or more --processes"
            )
        if (self.process >= 0) != bool(self.coordinator):
            raise ValueError(
                "process and coordinator belong together; write both, --process=0 --coordinator=HOST:PORT, or neither "
                "to start all processes on this machine"
            )
        found = re.fullmatch(r".+:(\d{1,5})", self.coordinator)
        if self.coordinator and not (found and 0 < int(found[1]) < 2**16):
            raise ValueError(f"coordinator is {self.coordinator!r}; write HOST:PORT, such as 10.0.0.1:7800")


def name_of(process: int, stages: int) -> str:
    """A process and its stages, as messages name it.

    Args:
      process: its index.
      stages: how many each process has.
    """
    first, last = process * stages, (process + 1) * stages - 1
    return f"process {process} ({f'stage {first}' if first == last else f'stages {first} to {last}'})"


def with_cores_of_their_own(num_stages: int) -> int:
    """How many processes let each stage have cores of its own: K, or 1 where the devices are no cores, or too few.

    JAX is not asked: to look for accelerators, it would take their memory.
    """
    others = [name for name in ("jax_plugins", "libtpu") if importlib.util.find_spec(name)]  # of accelerators
    on_cpu = (os.environ.get("JAX_PLATFORMS") or ("" if others else "cpu")) == "cpu"
    version = tuple(int(part) for part in importlib.metadata.version("jax").split(".")[:2])
    enough = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) >= num_stages
    return num_stages if on_cpu and enough and version >= (0, 12) else 1


def share_compiled(cache: str | pathlib.Path) -> None:
    """Lets processes started from now on find what one of them compiled, in a directory, unless the user names one."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def begin(module: str, *arguments: str, place: Mapping[str, Any] | None = None, **streams: Any) -> subprocess.Popen:
    """Starts another process, which finds these programs wherever it begins, as ``python -m`` in a checkout does.

    Args:
      module: what it runs.
      *arguments: of its command line.
      place: variables of its environment, besides those of this process.
      **streams: and what else `subprocess.Popen` takes.
    """
    top, others = str(pathlib.Path(__file__).parents[2]), os.environ.get("PYTHONPATH")
    added = {**(place or {}), "PYTHONPATH": f"{top}{os.pathsep}{others}" if others else top}
    environment = {**os.environ, **{name: str(value) for name, value in added.items()}}
    return subprocess.Popen([sys.executable, "-P", "-m", module, *arguments], env=environment, **streams)


def is_one_of_several() -> bool:
    """Whether this is a process that a watcher has started."""
    return INDEX in os.environ


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as free:
        free.bind((host, 0))
        return free.getsockname()[1]


def watch(asked: Processes, num_stages: int, workdir: pathlib.Path, interrupted: str = "") -> int:
    """Runs this program, with its arguments, as several processes; the exit status.

    Args:
      asked: which.
      num_stages: K.
      workdir: of the run; the newest checkpoint in it is named when a process is lost.
      interrupted: what to say of a signal, where the processes save nothing; they are ended at once then.

    Raises:
      ValueError: the stages cannot be spread over the processes.
      Stopped: a signal came, and there is nothing to save.
    """
    if num_stages % asked.processes:
        raise ValueError(
            f"num_stages is {num_stages}, which {asked.processes} processes cannot share evenly; write --num_stages as "
            "a multiple of --processes"
        )
    here = range(asked.processes) if asked.process < 0 else [asked.process]
    coordinator = asked.coordinator or f"127.0.0.1:{free_port()}"
    stages = num_stages // asked.processes
    started = [_Process(index, asked, coordinator, stages, workdir) for index in here]

    def forward(signum: int, frame: FrameType | None) -> None:
        leave_terminal(signum)
        for process in started:
            process.signal(signal.SIGKILL if interrupted else signum)
        if interrupted:
            for number in stopping_signals():  # what follows is short
                signal.signal(number, signal.SIG_IGN)
            for process in started:
                process.wait()
            raise Stopped(f"{signal.Signals(signum).name}: {interrupted}", signum)

    for signum in stopping_signals():
        signal.signal(signum, forward)
    return _wait(started, asked.patience + _GRACE, workdir / "checkpoints")


class _Process:
    """One of the processes, and what it has printed."""

    def __init__(self, index: int, asked: Processes, coordinator: str, stages: int, workdir: pathlib.Path):
        self.name, self.spoke, self._checkpoints = name_of(index, stages), False, workdir / "checkpoints"
        self.held: list[str] = []  # what it said of another's failure, until that one has said why
        shows = index == asked.processes - 1  # it has the losses, and tells how the run goes
        place = {INDEX: index, COUNT: asked.processes, COORDINATOR: coordinator, STAGES: stages}
        place |= {SHARE: asked.processes if asked.process < 0 else 1, PATIENCE: asked.patience}
        place |= {TERMINAL: int(shows and sys.stderr.isatty())}
        self._child = begin(
            sys.modules["__main__"].__spec__.name,
            *sys.argv[1:],
            f"--workdir={workdir}",
            place=place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if shows else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C comes through the watcher, once
        )
        self._readers = [threading.Thread(target=self._relay, args=(self._child.stderr, sys.stderr), daemon=True)]
        if shows:
            self._readers.append(
                threading.Thread(target=self._relay, args=(self._child.stdout, sys.stdout), daemon=True)
            )
        for reader in self._readers:
            reader.start()

    def poll(self) -> int | None:
        return self._child.poll()

    def signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signum)

    def wait(self) -> None:
        self._child.wait()

    def finish(self) -> None:
        """Waits until all that it printed has been passed on."""
        for reader in self._readers:
            reader.join(timeout=5)

    def _relay(self, source: IO[bytes], target: IO[str]) -> None:
        rest, dying = b"", False
        while piece := os.read(source.fileno(), 65536):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                dying = dying or line.startswith(_DYING)
                if dying or _NOISE.match(line):
                    continue
                self.spoke |= target is sys.stderr and line.startswith((b"error", b"process", b"stopped"))
                text = line.decode(errors="replace")
                if line.startswith(b"process"):
                    text = f"{text}; {goes_on(self._checkpoints)}"
                    if line.endswith(b"failed"):
                        self.held.append(text)
                        continue
                _print_once(target, text)
            if rest.startswith(b"\r"):  # a bar
                target.write(rest.decode(errors="replace"))
                target.flush()
                rest = b""


_lock, _errors = threading.Lock(), set()


def _print_once(target: IO[str], line: str) -> None:
    """Several processes say the same of a setting that all of them refuse, or of a signal that came to all."""
    with _lock:
        if line.startswith(("error", "stopped", "SIG")):
            if line in _errors:
                return
            _errors.add(line)
        with contextlib.suppress(BrokenPipeError):
            target.write(f"{line}\n")
            target.flush()


def _wait(started: list[_Process], grace: float, checkpoints: pathlib.Path) -> int:
    """Until all have ended, or those that are left once one has failed have had their time."""
    failed, given_up = None, None
    while any(process.poll() is None for process in started):
        time.sleep(0.05)
        failed = failed or next((process for process in started if process.poll()), None)
        if failed and given_up is None:
            given_up = time.monotonic() + grace
        if given_up and all(process.spoke for process in started if process.poll() is None):
            given_up = min(given_up, time.monotonic() + _FAREWELL)
        if given_up and time.monotonic() > given_up:
            for process in started:
                if process.poll() is None:
                    process.signal(signal.SIGKILL)
    for process in started:
        process.finish()
    if not _errors or any(checkpoints.glob("tick-*")):
        for line in (line for process in started for line in process.held):
            _print_once(sys.stderr, line)
    failed = failed or next((process for process in started if process.poll()), None)
    if failed is None:
        return 0
    status = failed.poll() or 1
    if status < 0 or not any(process.spoke for process in started):
        _report(started, failed, checkpoints)
    return 128 - status if status < 0 else status


def goes_on(checkpoints: pathlib.Path) -> str:
    """What becomes of a run of which a process was lost."""
    saved = sorted(path.name for path in checkpoints.glob("tick-*") if path.suffix == "")
    return f"the same command goes on from {checkpoints / saved[-1]}" if saved else "nothing was saved yet"


def _report(started: list[_Process], failed: _Process, checkpoints: pathlib.Path) -> None:
    for process in started:
        status = process.poll() or 0
        if process is failed:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        elif process.spoke:
            continue
        else:
            how = f"stopped, since {failed.name} is gone"
        print(f"{process.name} {how}; {goes_on(checkpoints)}", file=sys.stderr, flush=True)
