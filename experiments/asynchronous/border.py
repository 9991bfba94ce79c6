"""Where workers begin to gain: local processes against the loop on one core, by the work in a message.

    python -m experiments.asynchronous.border

The loop is that of ``engine="simulated"`` with one worker: the same updates, compiled as a whole, and no messages. A
worker computes on one core, and so does the loop, where the system can confine a process.
Both train the network of section 2.5.2, 384-50-10, by distributed SVRG with mini-batches of several sizes. Each outer
iteration reads the examples ten times in mini-batches, and once for the full gradient. The first is left out:
it compiles, and fills caches. Loop and workers take turns, and ratios are those within a round.

The workdir gets results.json, table.md and border.png.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from experiments import cli as command_line
from experiments import devices
from experiments.asynchronous.benchmark import classified
from experiments.measure import throughput
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir, drawing
from experiments.settings import Settings, define, option, read
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import ConvergenceWarning, EngineWarning, General

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = flags.FLAGS
PASSES, OUTER, FEATURES, STEP_SIZE = 10, 3, 384, 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked(Settings):
    """What is measured."""

    batch_sizes: tuple[int, ...] = option(
        (10, 50, 250, 1000, 4000), "examples of a message", least=1, example="20,2000"
    )
    num_examples: int = option(8000, "n", least=2)
    workers: int = option(2, "K, processes beside the server", least=1)
    rounds: int = option(3, "interleaved repeats", least=1)

    def check(self) -> None:
        """Refuses messages that no worker can make; ranges have been checked."""
        if max(self.batch_sizes) > self.num_examples // self.workers:
            raise ValueError(
                f"batch_sizes is {','.join(map(str, self.batch_sizes))!r}; write at most "
                f"{self.num_examples // self.workers}: a worker has so many of {self.num_examples} examples"
            )


@dataclasses.dataclass(frozen=True)
class Line:
    """A size of messages, and seconds per message, one for each round.

    Attributes:
      batch_size: examples of a message.
      loop: of the loop in one process.
      workers: of local workers together.
    """

    batch_size: int
    loop: list[float]
    workers: list[float]

    @property
    def message(self) -> float:
        """Seconds that a message takes to compute."""
        return statistics.median(self.loop)

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as the loop the workers were, by rounds."""
        return [alone / together for alone, together in zip(self.loop, self.workers, strict=True)]

    def cells(self) -> list[str]:
        """A row of the table."""
        together, ratios = statistics.median(self.workers), self.ratios
        times = [f"{1e3 * seconds:.3g}" for seconds in (self.message, together)]
        spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
        return [str(self.batch_size), *times, f"{statistics.median(ratios):.2f}", spread]


def alone(problem: General, batch_size: int, messages: int) -> float:
    """Seconds per message of the loop; measuring the objective, a pass over the examples, is among them."""
    ends: list[float] = []
    asynchronous.distributed_asysvrg(
        problem,
        workers=1,
        batch_size=batch_size,
        step_size=STEP_SIZE,
        outer_steps=OUTER,
        inner_steps=messages,
        on_record=lambda record, w: ends.append(time.perf_counter()),
    )
    return (ends[-1] - ends[1]) / (messages * (OUTER - 1))


def together(problem: General, batch_size: int, messages: int, workers: int) -> float:
    """Seconds per message of local workers, by the server's clock."""
    seconds = asynchronous.distributed_asysvrg(
        problem,
        workers=workers,
        engine="local",
        batch_size=batch_size,
        step_size=STEP_SIZE,
        outer_steps=OUTER,
        inner_steps=messages,
    ).trace.column("seconds")
    return float(seconds[-1] - seconds[1]) / (messages * (OUTER - 1))


def measured(asked: Asked) -> list[Line]:
    """A line for each size of messages."""
    problem = classified(asked.num_examples, FEATURES)
    lines = []
    for batch_size in asked.batch_sizes:
        messages = max(asked.workers, PASSES * asked.num_examples // batch_size)
        line = Line(batch_size, [], [])
        for _ in range(asked.rounds):
            with throughput.one_core():
                line.loop.append(alone(problem, batch_size, messages))
            line.workers.append(together(problem, batch_size, messages, asked.workers))
            print(f"messages of {batch_size}: {line.ratios[-1]:.2f} times the loop", flush=True)
        lines.append(line)
    return lines


def said(lines: Sequence[Line], workers: int) -> str:
    """Where the border is, in a sentence."""
    gaining = [line for line in lines if statistics.median(line.ratios) > 1]
    if not gaining:
        return f"{workers} workers are slower than the loop, whatever the size of messages."
    least = min(gaining, key=lambda line: line.message)
    milliseconds = f"{1e3 * least.message:.2g} ms"
    return f"{workers} workers are faster than the loop from messages on that take {milliseconds} to compute."


def draw(lines: Sequence[Line], workers: int, picture: Figure) -> None:
    """How many times as fast as the loop the workers are, by the time that a message takes to compute."""
    panel = picture.subplots()
    places = [1e3 * line.message for line in lines]
    ratios = [sorted(line.ratios) for line in lines]
    middles = [statistics.median(each) for each in ratios]
    panel.fill_between(places, [each[0] for each in ratios], [each[-1] for each in ratios], alpha=0.2)
    panel.plot(places, middles, "o-", label=f"{workers} local workers")
    panel.axhline(1, color="grey", linestyle=":", label="the loop on one core")
    panel.set(xscale="log", ylim=(0, None), xlabel="computing a message (ms)", ylabel="speed by that of the loop")
    panel.grid(alpha=0.3, which="both")
    panel.legend(frameon=False)


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(Asked)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing was written"):
        asked = read(Asked)
        output = Workdir(
            command_line.workdir("asynchronous-border"), dataclasses.asdict(asked), overwrite=FLAGS.overwrite
        )
        with warnings.catch_warnings(), devices.precision("float64"):
            for expected in (ConvergenceWarning, EngineWarning):
                warnings.simplefilter("ignore", expected)
            lines = measured(asked)
        heads = ["examples of a message", "loop, ms", f"{asked.workers} workers, ms", "speed by the loop's", "range"]
        text = f"{said(lines, asked.workers)}\n\n{markdown([heads, *(line.cells() for line in lines)])}\n"
        output.write_json(
            "results.json", {"lines": list(map(dataclasses.asdict, lines)), "machine": devices.describe()}
        )
        output.write("table.md", text)
        with drawing():
            from matplotlib.figure import Figure  # --help need not wait for it

            picture = Figure(figsize=(5.6, 4), layout="constrained")
            draw(lines, asked.workers, picture)
            picture.savefig(output.file("border.png"), dpi=110)
        print(f"\n{text}\n(also in {output.path})")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
