"""What diagnostics cost: the time of a tick with probes against that without.

    python -m experiments.measure.diagnostics_cost

trains one model with random images, in turn with and without diagnostics, after all is compiled. Ratios are taken
within a round. The workdir gets results.json.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics

import numpy as np
from absl import flags

import jaxdecouple as jd
from experiments import cli as command_line
from experiments import devices
from experiments.measure import throughput
from experiments.measure.workload import Workload
from experiments.report.workdir import Workdir
from experiments.settings import Settings, define, option, read
from experiments.training.methods import METHODS

FLAGS = flags.FLAGS
SHAPE = ("model", "image_size", "batch_size", "repeats", "seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one method.

    Attributes:
      method: its name; num_stages: K; every: ticks between two probes of a kind.
      plain, watched: images per second, one for each round.
      ratios: of the time of a tick, with diagnostics to without, within each round.
    """

    method: str
    num_stages: int
    every: int
    plain: list[float]
    watched: list[float]
    ratios: list[float]

    def line(self) -> str:
        """For a terminal."""
        return (
            f"{self.method}, K = {self.num_stages}, a probe in {self.every} ticks: "
            f"{statistics.median(self.ratios):.3f} times the time per tick "
            f"({min(self.ratios):.3f}..{max(self.ratios):.3f})"
        )


def measure(workload: Workload, method: str, every: int) -> Cost:
    """The cost of diagnostics under one method, on the first devices."""
    import jax  # --help need not wait for it

    from experiments.measure.entrants import pipeline_of

    accumulate = METHODS[method].accumulate

    def loop(watched: bool) -> throughput.Loop:
        pipeline = pipeline_of(method, workload, devices.of_stages(workload.num_stages, share=True))
        step = jd.Diagnostics(pipeline, every=every).step if watched else pipeline.step
        state = pipeline.init(jax.random.key(0), workload.sample())
        batches = itertools.cycle(workload.distinct(workload.batch_size))
        # Whole rounds of probes, so that each measurement has its share of them.
        unit = every * accumulate // np.gcd(every, accumulate)
        return throughput.Loop(step, state, batches, fill=2 * pipeline.schedule.drain + 2 * unit + 2, unit=unit)

    loops = {"plain": loop(False), "watched": loop(True)}
    rates = throughput.measure(loops, repeats=workload.repeats, seconds=workload.seconds)
    return Cost(
        method=method,
        num_stages=workload.num_stages,
        every=every,
        **rates,
        ratios=throughput.ratios(rates["plain"], rates["watched"]),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked(Settings):
    """What is measured."""

    methods: tuple[str, ...] = option(
        ("fdg", "features_replay", "adl", "dgl"), "training methods to measure", choices=METHODS
    )
    num_stages: tuple[int, ...] = option((2,), "K, one or more", least=1, example="2,4")
    every: int = option(10, "ticks between two probes of a kind", least=1)
    model: str = option("resnet20", "as of experiments.train")
    image_size: int = option(32, "height and width of the images, in pixels", least=4)
    batch_size: int = option(128, "images per tick", least=1)
    repeats: int = option(5, "interleaved rounds", least=1)
    seconds: float = option(8.0, "about how long one measurement takes", above=0)


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(Asked)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing was written"):
        asked = read(Asked)
        devices.request(max(asked.num_stages))
        shape = {name: getattr(asked, name) for name in SHAPE}
        workloads = [Workload(**shape, num_stages=k) for k in asked.num_stages]
        output = Workdir(command_line.workdir("diagnostics-cost"), dataclasses.asdict(asked), overwrite=FLAGS.overwrite)
        pairs = itertools.product(workloads, asked.methods)
        throughput.report((measure(workload, method, asked.every) for workload, method in pairs), output)


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
