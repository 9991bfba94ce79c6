"""How fast the engines are: with more workers, with messages that are too short, and with a straggler.

    python -m experiments.asynchronous.benchmark

measures on this machine, each part in interleaved rounds, after all is compiled:

- *work dominates*: Dis-dfSDCA on a dense problem with long messages; messages per second with 1 and 2 workers;
- *messages dominate*: the same with one example in a message, so that what is measured is the way there and back;
- *a straggler*: how long Dis-dfSDCA and CoCoA+ take to a duality gap, with one worker that is sometimes late.

The workdir gets results.json and table.md.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments import command_line, devices
from experiments.methods import choose
from experiments.workdir import Workdir
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import Linear, Result, Stragglers

FLAGS = flags.FLAGS
ENGINES = ("local", "ray")
GAP = 1e-6


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
      engine: local or ray.
      workers: K.
      dis_dfsdca: of the method that waits for nobody.
      cocoa_plus: of the method in rounds.
    """

    engine: str
    workers: int
    dis_dfsdca: list[float]
    cocoa_plus: list[float]

    def cells(self) -> list[str]:
        """A row of the table."""
        ratios = [slow / fast for fast, slow in zip(self.dis_dfsdca, self.cocoa_plus, strict=True)]
        return [
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
    problem: Linear,
    local_steps: int,
    messages: int,
    engines: Sequence[str],
    workers: Sequence[int],
    rounds: int,
) -> list[Rate]:
    """Messages per second of each engine and number of workers, every configuration once in each round."""
    measured: dict[tuple[str, int], list[float]] = {(engine, k): [] for engine in engines for k in workers}
    for _ in range(rounds):
        for (engine, k), found in measured.items():
            result = asynchronous.dis_dfsdca(
                problem, workers=k, engine=engine, local_steps=local_steps, outer_steps=4, inner_steps=messages
            )
            seconds = result.trace.column("seconds")
            found.append(3 * messages / (seconds[4] - seconds[1]))  # the first outer iteration fills caches
            print(f"{part}, {engine}, {k} workers: {found[-1]:.0f} messages/s", flush=True)
    return [
        Rate(part, engine, k, found, [a / b for a, b in zip(found, measured[engine, workers[0]], strict=True)])
        for (engine, k), found in measured.items()
    ]


def race(engine: str, workers: int, rounds: int, seed: int) -> Race:
    """Both methods on the same problem with the same straggler, as in section 3.5, in turn."""
    problem, late = made(4000, 200), Stragglers(seed=seed)
    options: dict[str, Any] = {"workers": workers, "engine": engine, "stragglers": late, "outer_steps": 30}

    def seconds(solve: Callable[..., Result], **own: Any) -> float:
        trace = solve(problem, **own, **options).trace
        there = np.flatnonzero(trace.column("gap") <= GAP)
        return float(trace[there[0]].seconds) if len(there) else float("inf")

    times: dict[str, list[float]] = {"dis_dfsdca": [], "cocoa_plus": []}
    for _ in range(rounds):
        for name, found in times.items():
            found.append(seconds(getattr(asynchronous, name), local_steps=200))
            print(f"{engine}, {workers} workers, {name}: {found[-1]:.2f} s to a gap of {GAP}", flush=True)
    return Race(engine, workers, **times)


def table(found: Sequence[Rate], races: Sequence[Race]) -> str:
    """Both tables as Markdown."""
    heads = ["part", "engine", "workers", "messages/s", "times one worker", "range"]
    race_heads = ["engine", "workers", "Dis-dfSDCA, s", "CoCoA+, s", "ratio", "range"]
    parts = []
    for head, rows in ((heads, found), (race_heads, races)):
        lines = [head, ["---"] * len(head), *(row.cells() for row in rows)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def define_flags() -> None:
    """The flags of this program."""
    command_line.define_workdir()
    flags.DEFINE_list("engines", list(ENGINES), f"of {', '.join(ENGINES)}")
    flags.DEFINE_integer("workers", 2, "K, compared with one worker", lower_bound=2)
    flags.DEFINE_integer("rounds", 5, "interleaved repeats", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of the straggler")


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing was written"):
        engines = [choose("engines", engine, ENGINES) for engine in FLAGS.engines]
        jax.config.update("jax_enable_x64", True)
        settings = {"engines": engines, "workers": FLAGS.workers, "rounds": FLAGS.rounds}
        workdir = pathlib.Path(FLAGS.workdir) if FLAGS.workdir else Workdir.unused("runs/asynchronous-benchmark")
        output = Workdir(workdir, settings, overwrite=FLAGS.overwrite)
        counts, rounds = (1, FLAGS.workers), FLAGS.rounds
        found = rates("work dominates", made(20000, 1000), 2000, 40, engines, counts, rounds)
        found += rates("messages dominate", made(2000, 100), 1, 500, engines, counts, rounds)
        races = [race(engine, FLAGS.workers, rounds, FLAGS.seed) for engine in engines]
        result = {
            name: [dataclasses.asdict(row) for row in rows] for name, rows in {"rates": found, "races": races}.items()
        }
        output.write_json("results.json", {**result, "machine": devices.describe()})
        (output.path / "table.md").write_text(table(found, races))
        print(f"\n{table(found, races)}\n(also in {output.path})")


if __name__ == "__main__":
    define_flags()
    app.run(main)
