"""How fast the engines are: with more workers, with messages that are too short, and with a straggler.

    python -m experiments.asynchronous.benchmark

measures on this machine, each part in interleaved rounds, after all is compiled:

- *work dominates*: Distributed-AsySVRG on the network of section 2.5.2, 384-50-10, with mini-batches of 2000: messages
  per second with 1 and with 2 workers;
- *memory dominates*: Dis-dfSDCA on dense examples, 2000 in a message, of which each number is used twice;
- *messages dominate*: the same with one example in a message, so that what is measured is the way there and back;
- *short messages*, *long messages*: how long Dis-dfSDCA and CoCoA+ take to a duality gap, with one worker that is
  sometimes late;
- *one long row*: an epoch of SDCA in one process on sparse rows of 20 entries, with one among them that has 50000, by
  that without it.

The workdir gets results.json and table.md.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import cli as command_line
from experiments import devices
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir
from experiments.settings import choose
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import ConvergenceWarning, EngineWarning, Linear, Result, Stragglers
from jaxdecouple.asynchronous.sources import load

FLAGS = flags.FLAGS
ENGINES = ("local", "ray")
GAP = 1e-6
LONG_ROW = "one long row"
RACES = {"short messages": ((4000, 200), 200), "long messages": ((20000, 500), 500)}  # n and d, and H


@dataclasses.dataclass(frozen=True)
class Rate:
    """Messages that the server takes per second.

    Attributes:
      part: which part of the benchmark this is.
      engine: local or ray.
      workers: K.
      per_second: one for each round.
      ratios: of them to one worker's, within each round.
    """

    part: str
    engine: str
    workers: int
    per_second: list[float]
    ratios: list[float]

    def cells(self) -> list[str]:
        """A row of the table."""
        spread = f"{min(self.ratios):.2f}..{max(self.ratios):.2f}"
        return [
            self.part,
            self.engine,
            str(self.workers),
            f"{statistics.median(self.per_second):.0f}",
            f"{statistics.median(self.ratios):.2f}",
            spread,
        ]


@dataclasses.dataclass(frozen=True)
class Race:
    """Seconds until a duality gap of `GAP`, one for each round.

    Attributes:
      part: which of `RACES`.
      engine: local or ray.
      workers: K.
      dis_dfsdca: of the method that waits for nobody.
      cocoa_plus: of the method in rounds.
    """

    part: str
    engine: str
    workers: int
    dis_dfsdca: list[float]
    cocoa_plus: list[float]

    def cells(self) -> list[str]:
        """A row of the table."""
        ratios = [slow / fast for fast, slow in zip(self.dis_dfsdca, self.cocoa_plus, strict=True)]
        return [
            self.part,
            self.engine,
            str(self.workers),
            f"{statistics.median(self.dis_dfsdca):.2f}",
            f"{statistics.median(self.cocoa_plus):.2f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f}..{max(ratios):.2f}",
        ]


def made(n: int, d: int) -> Linear:
    """Examples of Euclidean norm 1, about."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)) / np.sqrt(d)
    return asynchronous.quadratic(x, np.sign(x @ rng.standard_normal(d)), l2=0.1)


def rates(
    part: str,
    solve: Callable[..., Result],
    messages: int,
    engines: Sequence[str],
    workers: Sequence[int],
    rounds: int,
) -> list[Rate]:
    """Messages per second of each engine and number of workers, every configuration once in each round."""
    measured: dict[tuple[str, int], list[float]] = {(engine, k): [] for engine in engines for k in workers}
    for _ in range(rounds):
        for (engine, k), found in measured.items():
            result = solve(workers=k, engine=engine, outer_steps=4, inner_steps=messages)
            seconds = result.trace.column("seconds")
            found.append(3 * messages / (seconds[4] - seconds[1]))  # the first outer iteration fills caches
            print(f"{part}, {engine}, {k} workers: {found[-1]:.0f} messages/s", flush=True)
    return [
        Rate(part, engine, k, found, [a / b for a, b in zip(found, measured[engine, workers[0]], strict=True)])
        for (engine, k), found in measured.items()
    ]


def race(part: str, engine: str, workers: int, rounds: int, seed: int) -> Race:
    """Both methods on the same problem with the same straggler, as in section 3.5, in turn."""
    (n, d), local_steps = RACES[part]
    problem, late = made(n, d), Stragglers(seed=seed)
    options: dict[str, Any] = {"workers": workers, "engine": engine, "stragglers": late, "outer_steps": 60}

    def seconds(solve: Callable[..., Result]) -> float:
        trace = solve(problem, local_steps=local_steps, **options).trace
        there = np.flatnonzero(trace.column("gap") <= GAP)
        return float(trace[there[0]].seconds) if len(there) else float("inf")

    times: dict[str, list[float]] = {"dis_dfsdca": [], "cocoa_plus": []}
    for _ in range(rounds):
        for name, found in times.items():
            found.append(seconds(getattr(asynchronous, name)))
            print(f"{part}, {engine}, {workers} workers, {name}: {found[-1]:.2f} s to a gap of {GAP}", flush=True)
    return Race(part, engine, workers, **times)


def long_row(rounds: int) -> list[float]:
    """Seconds of an epoch of SDCA with a long row among short ones, by those without it, one for each round."""
    import scipy.sparse  # --help need not wait for it

    n, d = 20_000, 50_000
    short = load(f"made:{n}x{d}:{20 / d}")
    long = np.zeros((1, d))
    long[0] = np.random.default_rng(0).standard_normal(d) / np.sqrt(d)
    with_it = scipy.sparse.vstack([short.x[:-1], scipy.sparse.csr_matrix(long)], format="csr")
    problems = [asynchronous.ridge(x, short.y, l2=1e-2) for x in (short.x, with_it)]

    def seconds(problem: Linear) -> float:
        ends: list[float] = []
        asynchronous.sdca(problem, outer_steps=4, on_record=lambda record, w: ends.append(time.perf_counter()))
        return (ends[4] - ends[1]) / 3  # the first compiles

    ratios = []
    for _ in range(rounds):
        without, with_one = map(seconds, problems)
        ratios.append(with_one / without)
        print(f"{LONG_ROW}: {1e3 * without:.0f} ms an epoch without it, {1e3 * with_one:.0f} ms with it", flush=True)
    return ratios


def classified(n: int, d: int) -> asynchronous.General:
    """The network of section 2.5.2 on random examples of ten classes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)).astype(np.float32)
    return asynchronous.network(x, x[:, :10].argmax(axis=1), hidden=50, l2=1e-4)


# Messages of an outer iteration, and what makes the solver, whose other arguments are workers and so on.
LONG_RUNS: dict[str, tuple[int, Callable[[], Callable[..., Result]]]] = {
    "work dominates": (
        40,
        lambda: functools.partial(
            asynchronous.distributed_asysvrg, classified(20000, 384), batch_size=2000, step_size=0.01
        ),
    ),
    "memory dominates": (40, lambda: functools.partial(asynchronous.dis_dfsdca, made(20000, 1000), local_steps=2000)),
    "messages dominate": (500, lambda: functools.partial(asynchronous.dis_dfsdca, made(2000, 100), local_steps=1)),
}


PARTS = (*LONG_RUNS, *RACES, LONG_ROW)


def table(found: Sequence[Rate], races: Sequence[Race], ratios: Sequence[float]) -> str:
    """All tables as Markdown."""
    heads = ["part", "engine", "workers", "messages/s", "times one worker", "range"]
    race_heads = ["a straggler, and", "engine", "workers", "Dis-dfSDCA, s", "CoCoA+, s", "ratio", "range"]
    parts = []
    for head, rows in ((heads, found), (race_heads, races)):
        if not rows:
            continue
        parts.append(markdown([head, *(row.cells() for row in rows)]))
    if ratios:
        spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
        parts.append(f"{LONG_ROW}: an epoch takes {statistics.median(ratios):.2f} ({spread}) times as long.")
    return "\n\n".join(parts) + "\n"


def define_flags() -> None:
    """The flags of this program."""
    command_line.define_workdir()
    flags.DEFINE_list("parts", list(PARTS), f"of {', '.join(PARTS)}")
    flags.DEFINE_list("engines", list(ENGINES), f"of {', '.join(ENGINES)}")
    flags.DEFINE_integer("workers", 2, "K, compared with one worker", lower_bound=2)
    flags.DEFINE_integer("rounds", 5, "interleaved repeats", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of the straggler", lower_bound=0)


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing was written"):
        engines = [choose("engines", engine, ENGINES) for engine in FLAGS.engines]
        if not (engines and FLAGS.parts):
            raise ValueError("parts or engines is empty; write at least one, or leave both out")
        wanted = [choose("parts", part, PARTS) for part in FLAGS.parts]
        settings = {"parts": wanted, "engines": engines, "workers": FLAGS.workers, "rounds": FLAGS.rounds}
        workdir = pathlib.Path(FLAGS.workdir) if FLAGS.workdir else Workdir.unused("runs/asynchronous-benchmark")
        output = Workdir(workdir, settings, overwrite=FLAGS.overwrite)
        found: list[Rate] = []
        races: list[Race] = []
        ratios: list[float] = []
        with warnings.catch_warnings(), devices.precision("float64"):
            for expected in (ConvergenceWarning, EngineWarning):
                warnings.simplefilter("ignore", expected)
            for part in wanted:
                if part == LONG_ROW:
                    ratios = long_row(FLAGS.rounds)
                elif part in RACES:
                    races += [race(part, engine, FLAGS.workers, FLAGS.rounds, FLAGS.seed) for engine in engines]
                else:
                    messages, solve = LONG_RUNS[part]
                    found += rates(part, solve(), messages, engines, (1, FLAGS.workers), FLAGS.rounds)
        result = {"rates": found, "races": races}
        rows = {name: [dataclasses.asdict(row) for row in of_name] for name, of_name in result.items()}
        more = {LONG_ROW: ratios, "machine": devices.describe()}
        output.write_json("results.json", {**rows, **more}, depth=3)
        output.write("table.md", table(found, races, ratios))
        print(f"\n{table(found, races, ratios)}\n(also in {output.path})")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
