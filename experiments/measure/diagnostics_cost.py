"""What diagnostics cost: the time of a tick with probes against that without.

    python -m experiments.measure.diagnostics_cost

trains one model with random images, in turn with and without diagnostics, after all is compiled. Ratios are taken
within a round. The workdir gets results.json.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import statistics
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

import jaxdecouple as jd
from experiments import cli as command_line
from experiments import devices
from experiments.measure import throughput
from experiments.measure.entrants import Settings, pipeline_of
from experiments.report.workdir import Workdir
from experiments.training.methods import METHODS, choose

FLAGS = flags.FLAGS


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


def measure(settings: Settings, method: str, every: int) -> Cost:
    """The cost of diagnostics under one method, on the first devices."""
    accumulate = METHODS[method].accumulate

    def loop(watched: bool) -> throughput.Loop:
        pipeline = pipeline_of(method, settings, devices.of_stages(settings.num_stages, share=True))
        step = jd.Diagnostics(pipeline, every=every).step if watched else pipeline.step
        state = pipeline.init(jax.random.key(0), settings.sample())
        batches = itertools.cycle(settings.distinct(settings.batch_size))
        # Whole rounds of probes, so that each measurement has its share of them.
        unit = every * accumulate // np.gcd(every, accumulate)
        return throughput.Loop(step, state, batches, fill=2 * pipeline.schedule.drain + 2 * unit + 2, unit=unit)

    loops = {"plain": loop(False), "watched": loop(True)}
    rates = throughput.measure(loops, repeats=settings.repeats, seconds=settings.seconds)
    return Cost(
        method=method,
        num_stages=settings.num_stages,
        every=every,
        **rates,
        ratios=throughput.ratios(rates["plain"], rates["watched"]),
    )


def define_flags() -> None:
    """The flags of this program."""
    command_line.define_workdir()
    flags.DEFINE_list("methods", ["fdg", "features_replay", "adl", "dgl"], "training methods to measure")
    flags.DEFINE_list("num_stages", ["2"], "K, one or more")
    flags.DEFINE_integer("every", 10, "ticks between two probes of a kind", lower_bound=1)
    flags.DEFINE_string("model", "resnet20", "as of experiments.train")
    flags.DEFINE_integer("image_size", 32, "height and width of the images, in pixels", lower_bound=4)
    flags.DEFINE_integer("batch_size", 128, "images per tick", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "interleaved rounds", lower_bound=1)
    flags.DEFINE_float("seconds", 8.0, "about how long one measurement takes")


def run(methods: Sequence[str], stages: Sequence[int], workdir: pathlib.Path, overwrite: bool) -> list[Cost]:
    """Measures all, prints a line for each, and writes them."""
    shape = {name: getattr(FLAGS, name) for name in ("model", "image_size", "batch_size", "repeats", "seconds")}
    settings = [Settings(**shape, num_stages=k) for k in stages]
    for each in settings:
        each.check()
    output = Workdir(workdir, {**shape, "methods": list(methods), "num_stages": list(stages)}, overwrite=overwrite)
    found = []
    for each, method in itertools.product(settings, methods):
        found.append(measure(each, method, FLAGS.every))
        print(found[-1].line(), flush=True)
    output.write_json("results.json", {"costs": [dataclasses.asdict(cost) for cost in found], **devices.describe()})
    return found


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing was written"):
        methods = [choose("method", method, METHODS) for method in FLAGS.methods]
        stages = [int(k) for k in FLAGS.num_stages]
        workdir = pathlib.Path(FLAGS.workdir) if FLAGS.workdir else Workdir.unused("runs/diagnostics-cost")
        devices.request(max(stages))
        run(methods, stages, workdir, FLAGS.overwrite)


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
