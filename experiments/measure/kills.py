"""Kills training runs at random moments, resumes them, and compares how they end with runs that were left alone.

    python -m experiments.measure.kills
    python -m experiments.measure.kills --kills=60 --methods=fdg,auto
    python -m experiments.measure.kills --processes=2 --kills=40 --jobs=1

Every method, with K = 2 and 4 stages and updates of 1 and 4 batches, trains ResNet-8 on the handwritten digits, probed
and saved every few ticks, so that many kills come in the middle of a save. Runs are killed with SIGKILL up to three
times, resumed each time as the same command would, and must end with the files of an undisturbed run, byte for byte:
metrics, what probes found, summary, pictures, exported weights, and all arrays of the final checkpoint, optimizer
states and random keys included. Only speed.json, which holds times, may differ.

What the method auto measures differs from time to time. So its runs begin with the files that the undisturbed one
wrote before it trained.

With several processes, one of them is killed, without probes and without auto; the others must end within half a
minute.

The directory gets results.json and table.md.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from absl import flags

import jaxdecouple as jd
from experiments import cli as command_line
from experiments import devices
from experiments.report.tables import markdown
from experiments.report.workdir import CONFIG, LIST, LOCK, OWNER, Workdir
from experiments.settings import Settings, define, option, read
from experiments.training.config import Config, Saving
from experiments.training.launching import begin, share_compiled
from experiments.training.methods import AUTO, WITH_AUTO
from experiments.training.run_directory import CHECKPOINTS, FINAL, LAYOUT, MEASURED, METRICS, SPEED, Standing, standing

FLAGS = flags.FLAGS
STAGES, ACCUMULATE = (2, 4), (1, 4)
SAVING = Saving(save_every=3, keep=2)
_A_SAVE = 0.1  # seconds, about
_NOT_COMPARED = {SPEED, LOCK, OWNER, LIST, CHECKPOINTS}  # times, and what belongs to the directory or is compared apart
_PROCESSES = multiprocessing.get_context("forkserver")  # each begins with everything imported, and nothing started


@dataclasses.dataclass
class Case:
    """Runs of one config, and what came of them.

    Attributes:
      config: of all its runs.
      processes: how many train together.
      kills: how often a run is to be killed.
      resumed_at: ticks of the checkpoints that resumed runs went on from; 0: from the beginning.
      during_saves: how many kills left a half-written checkpoint.
      others: files that ended otherwise than those of the undisturbed run; ``None`` before the run has ended.
    """

    config: Config
    kills: int
    processes: int = 1
    resumed_at: list[int] = dataclasses.field(default_factory=list)
    during_saves: int = 0
    others: list[str] | None = None

    @property
    def exact(self) -> bool:
        """Whether the last run ended as the undisturbed one."""
        return self.others == []


def cases(
    kills: int,
    model: str = "resnet8",
    processes: int = 1,
    methods: Sequence[str] = tuple(WITH_AUTO),
    stages: Sequence[int] = STAGES,
    accumulate: Sequence[int] = ACCUMULATE,
) -> list[Case]:
    """Every method with every number of stages and accumulation, the kills spread evenly over them."""
    # The last batch of an epoch is smaller.
    base = Config(model=model, batch_size=100, learning_rate=0.02, epochs=3, diagnose_every=0 if processes > 1 else 11)
    combinations = list(itertools.product(methods, stages, accumulate))
    if processes > 1:
        combinations = [of for of in combinations if of[0] != AUTO and of[1] % processes == 0]
    found = []
    for n, (method, num_stages, every) in enumerate(combinations):
        config = dataclasses.replace(base, method=method, num_stages=num_stages, accumulate=every)
        share = kills * (n + 1) // len(combinations) - kills * n // len(combinations)
        if share:
            found.append(Case(config, share, processes))
    return found


def run_case(case: Case, directory: pathlib.Path, seed: int) -> None:
    """Trains undisturbed, then with kills, and notes down what came of it.

    A run may end before it was killed as often as asked. Then another is killed for the rest.

    Raises:
      RuntimeError: a run failed by itself; the message has the end of its output.
    """
    draw, undisturbed = random.Random(seed), directory / "undisturbed"
    span = _seconds_of_training(case, undisturbed)
    ticks = json.loads((undisturbed / METRICS).read_text().splitlines()[-1])["ticks"]
    others: list[str] = []
    for number in itertools.count():
        killed = directory / f"killed-{number}"
        _begin(case, undisturbed, killed)
        while len(case.resumed_at) < case.kills and _kill(case, killed, draw, span, ticks):
            checkpoints = killed / CHECKPOINTS
            case.during_saves += any(checkpoints.glob("*tmp*"))
            saved = jd.checkpoints.saved_in(checkpoints)
            case.resumed_at.append(saved[-1].tick if saved else 0)
        if standing(killed, case.config) is not Standing.FINISHED:
            _finish(_start(case, killed), killed)
        others += differences(undisturbed, killed)
        if len(case.resumed_at) == case.kills:
            break
        span /= 2  # undisturbed runs compile, later ones find what they compiled
    case.others = others


def _begin(case: Case, undisturbed: pathlib.Path, killed: pathlib.Path) -> None:
    """The directory of a run that has yet to train: of the method auto, with what was measured."""
    if case.config.method == AUTO:
        killed.mkdir()
        for name in (CONFIG, *MEASURED, LAYOUT):
            shutil.copy(undisturbed / name, killed)


def _seconds_of_training(case: Case, workdir: pathlib.Path) -> float:
    started = time.time()
    process = _start(case, workdir)
    _wait_for_training(process, workdir, started)
    begun = time.monotonic()
    _finish(process, workdir)
    return time.monotonic() - begun


def _kill(case: Case, workdir: pathlib.Path, draw: random.Random, span: float, ticks: int) -> bool:
    """Kills a run at a random moment of its training; ``False`` if it ended before, as a run should.

    Much of the time goes to compilation, before the first tick. So one moment in three is drawn from all the time, one
    is shortly after a tick that is drawn, and one within the save of such a tick.
    """
    started, saved = time.time(), jd.checkpoints.saved_in(workdir / CHECKPOINTS)
    to_come = range((saved[-1].tick if saved else 0) + SAVING.save_every, ticks, SAVING.save_every)
    process = _start(case, workdir)
    _wait_for_training(process, workdir, started)
    kind = draw.choice(("any", "after", "within")) if to_come else "any"
    if kind == "any":
        process.join(draw.uniform(0, span))
    else:
        tick = draw.choice(to_come)  # or the next, where probes have a save wait
        pattern = "tick-????????*" if kind == "within" else "tick-????????"  # in a save, more is added to the name
        while process.is_alive() and not any(
            int(path.name[5:13]) >= tick for path in (workdir / CHECKPOINTS).glob(pattern)
        ):
            time.sleep(0.001)
        process.join(draw.uniform(0, _A_SAVE / 2 if kind == "within" else _A_SAVE))
    if not process.is_alive():
        _finish(process, workdir)
        return False
    process.kill()
    process.join()
    return process.exitcode != 0  # it may have ended in between


class _Joint:
    """A run in several processes, with what of a `multiprocessing` process is asked for here."""

    def __init__(self, case: Case, workdir: pathlib.Path, log: pathlib.Path):
        settings = {**dataclasses.asdict(case.config), **dataclasses.asdict(SAVING), "processes": case.processes}
        changed = {name: value for name, value in settings.items() if value != getattr(Config, name, None)}
        flags = [f"--{name}={value}" for name, value in {**changed, "workdir": workdir}.items()]
        with log.open("a") as output:
            self._watcher = begin("experiments.train", *flags, stdout=output, stderr=output)

    @property
    def exitcode(self) -> int | None:
        return self._watcher.poll()

    def is_alive(self) -> bool:
        return self._watcher.poll() is None

    def join(self, timeout: float | None = None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._watcher.wait(timeout)

    def kill(self) -> None:
        """One of the processes, drawn, if they have not ended by themselves."""
        pid = self._watcher.pid
        children = [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        if not children:
            return
        os.kill(random.choice(children), signal.SIGKILL)
        begun = time.monotonic()
        self._watcher.wait(60)
        if time.monotonic() - begun > 30:
            raise RuntimeError(f"the others took {time.monotonic() - begun:.0f} s to end")


def _start(case: Case, workdir: pathlib.Path) -> multiprocessing.process.BaseProcess | _Joint:
    if case.processes > 1:
        return _Joint(case, workdir, workdir.with_suffix(".log"))
    process = _PROCESSES.Process(target=_train, args=(case.config, workdir, workdir.with_suffix(".log")), daemon=True)
    process.start()
    return process


def _train(config: Config, workdir: pathlib.Path, log: pathlib.Path) -> None:
    with log.open("a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        from experiments.training.session import train

        devices.request(config.num_stages)
        train(config, workdir, saving=SAVING)


def _wait_for_training(
    process: multiprocessing.process.BaseProcess | _Joint, workdir: pathlib.Path, begun: float
) -> None:
    """Just before a run begins to train, it writes where the network was cut."""
    layout = workdir / LAYOUT
    while process.is_alive() and not (layout.is_file() and layout.stat().st_mtime >= begun):
        time.sleep(0.005)


def _finish(process: multiprocessing.process.BaseProcess | _Joint, workdir: pathlib.Path) -> None:
    process.join()
    if process.exitcode != 0:
        log = workdir.with_suffix(".log")
        end = log.read_text()[-2000:] if log.exists() else ""
        raise RuntimeError(f"the run in {workdir.name} ended with {process.exitcode}: {end}")


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Names of files that two finished runs do not have alike; of checkpoints, the final one counts."""
    names = sorted({path.name for run in (one, other) for path in run.iterdir()} - _NOT_COMPARED)
    found = [name for name in names if _content(one / name) != _content(other / name)]
    final = [jd.checkpoints.document(run / CHECKPOINTS / FINAL) for run in (one, other)]  # with checksums of all arrays
    return found if final[0] == final[1] else [*found, CHECKPOINTS]


def _content(path: pathlib.Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def run_cases(todo: list[Case], scratch: pathlib.Path, jobs: int, seed: int) -> None:
    """Runs cases, several at a time; they find in ``scratch`` what another has compiled."""
    share_compiled(scratch / "cache")
    _PROCESSES.set_forkserver_preload(["experiments.training.session", "sklearn.datasets"])
    with concurrent.futures.ThreadPoolExecutor(jobs) as executor:
        waiting = {}
        for n, case in enumerate(todo):
            directory = scratch / str(n)
            directory.mkdir()
            waiting[executor.submit(run_case, case, directory, seed + n)] = case
        for future in concurrent.futures.as_completed(waiting):
            future.result()
            case = waiting[future]
            config = case.config
            print(
                f"{config.method:16s} K={config.num_stages} M={config.accumulate}: killed {case.kills} times, resumed "
                f"after ticks {case.resumed_at}, {'same bytes' if case.exact else f'OTHER BYTES: {case.others}'}",
                flush=True,
            )


def report(done: list[Case], output: Workdir) -> int:
    """Writes the results; how many kills were followed by an exact resume."""
    rows = [
        {
            "method": case.config.method,
            "K": case.config.num_stages,
            "M": case.config.accumulate,
            "kills": case.kills,
            "in a save": case.during_saves,
            "resumed after tick": ", ".join(map(str, case.resumed_at)),
            "same bytes": "yes" if case.exact else "NO",
        }
        for case in done
    ]
    exact = sum(case.kills for case in done if case.exact)
    total, saves = sum(case.kills for case in done), sum(case.during_saves for case in done)
    output.write_json(
        "results.json",
        {"kills": total, "exact": exact, "during_saves": saves, "machine": devices.describe(), "runs": rows},
    )
    table = markdown([list(rows[0]), *(list(map(str, row.values())) for row in rows)])
    output.write("table.md", table + "\n")
    return exact


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked(Settings):
    """How many runs are killed, and when."""

    kills: int = option(100, "how many runs to kill, over the methods, K and M", least=1)
    methods: tuple[str, ...] = option(tuple(WITH_AUTO), "which methods", choices=tuple(WITH_AUTO))
    model: str = option("resnet8", "as for experiments.train; mlp takes a tenth of the time")
    stages: tuple[int, ...] = option(STAGES, "K, numbers of stages", least=1)
    accumulate: tuple[int, ...] = option(ACCUMULATE, "M, batches to an update", least=1)
    jobs: int = option(2, "runs at a time", least=1)
    processes: int = option(1, "how many processes each run has", least=1)
    seed: int = option(0, "of the moments", least=0)


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(Asked)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    start = time.perf_counter()
    with command_line.frame(argv, interrupted="nothing was written"):
        asked = read(Asked)
        output = Workdir(command_line.workdir("kills"), dataclasses.asdict(asked), overwrite=FLAGS.overwrite)
        done = cases(asked.kills, asked.model, asked.processes, asked.methods, asked.stages, asked.accumulate)
        if not done:
            stages = " or ".join(map(str, asked.stages))
            raise ValueError(f"processes is {asked.processes}, which cannot share {stages} stages; write 1, 2 or 4")
        with tempfile.TemporaryDirectory(prefix="jaxdecouple-kills-") as scratch:
            run_cases(done, pathlib.Path(scratch), asked.jobs, asked.seed)
        exact, seconds = report(done, output), time.perf_counter() - start
        print(f"{exact} of {asked.kills} exact resumes, {seconds:.0f} s; the table is in {output.path}")
    if exact < asked.kills:
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
