"""What checkpoints cost: the time of a tick with a save in every 200 against that without, and the time of a restore.

    python -m experiments.measure.checkpoint_cost
    python -m experiments.measure.checkpoint_cost --model=resnet110 --num_stages=4 --notraining

trains one model with random images, in turn with and without saving, after all is compiled; ratios are taken within a
round. Then the last checkpoint is restored, several times, each into a new pipeline, which traces the model anew. The
workdir gets results.json.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import lazy_loader
from absl import flags

import jaxdecouple as jd
from experiments import cli as command_line
from experiments import devices
from experiments.measure import throughput
from experiments.measure.workload import Workload
from experiments.report.workdir import Workdir
from experiments.settings import Settings, define, option, read
from experiments.training.methods import METHODS

if TYPE_CHECKING:
    import jax

    from jaxdecouple.engine.state import State
else:  # when it is needed: --help need not wait for JAX
    jax = lazy_loader.load("jax")

FLAGS = flags.FLAGS
SHAPE = ("model", "num_stages", "image_size", "batch_size", "repeats")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one method and model.

    Attributes:
      method, model, num_stages, batch_size: what was trained.
      every: ticks between two saves.
      megabytes: of a checkpoint.
      blocking: seconds, of each save, after which the training loop went on.
      writing: seconds from its beginning until it was on the disk, of a save that nothing ran beside.
      plain, saving: seconds of ``every`` ticks, one for each round.
      ratios: of the time of a tick, with saves to without, within each round.
      restoring: seconds, of each restore.
    """

    method: str
    model: str
    num_stages: int
    batch_size: int
    every: int
    megabytes: float
    blocking: list[float]
    writing: float
    plain: list[float]
    saving: list[float]
    ratios: list[float]
    restoring: list[float]

    def line(self) -> str:
        """For a terminal."""
        words = [
            f"{self.method}, {self.model}, K = {self.num_stages}, batch {self.batch_size}: {self.megabytes:.0f} MB"
        ]
        if self.ratios:
            words.append(
                f"a save in {self.every} ticks: {statistics.median(self.ratios):.3f} times the time per tick "
                f"({min(self.ratios):.3f}..{max(self.ratios):.3f}), of which the loop waits "
                f"{1e3 * statistics.median(self.blocking):.0f} ms per save"
            )
        words.append(f"written in {self.writing:.2f} s, restored in {statistics.median(self.restoring):.2f} s")
        return "; ".join(words)


class Training:
    """A pipeline in its steady state, with everything compiled.

    Attributes:
      state: after all that was trained so far.
    """

    def __init__(self, pipeline: jd.Pipeline, workload: Workload):
        self._pipeline = pipeline
        self._batches = itertools.cycle(workload.distinct(workload.batch_size))
        self.state = pipeline.init(jax.random.key(0), workload.sample())
        self.seconds(2 * pipeline.schedule.drain + 8)

    def seconds(self, ticks: int, save: Callable[[State], None] | None = None) -> float:
        """That ``ticks`` take, with ``save`` called in their middle; nothing is under way before or after."""
        begun = time.perf_counter()
        for n, batch in enumerate(itertools.islice(self._batches, ticks)):
            if save is not None and n == ticks // 2:
                save(self.state)
            self.state, _ = self._pipeline.step(self.state, batch)
        jax.block_until_ready(self.state)
        return time.perf_counter() - begun


def measure(workload: Workload, method: str, every: int, with_training: bool) -> Cost:
    """The cost of checkpoints under one method, on the first devices."""
    from experiments.measure.entrants import pipeline_of  # --help need not wait for JAX

    def build() -> jd.Pipeline:
        return pipeline_of(method, workload, devices.of_stages(workload.num_stages, share=True))

    training = Training(build(), workload)
    with tempfile.TemporaryDirectory(prefix="jaxdecouple-") as scratch:
        path = pathlib.Path(scratch, "by hand")
        jd.save(path, training.state)  # compiles the copying
        begun = time.perf_counter()
        jd.save(path, training.state, overwrite=True)
        writing = time.perf_counter() - begun
        megabytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        times = _with_and_without(training, pathlib.Path(scratch, "run"), every, workload.repeats * with_training)
        del training  # its memory: a large state is there only once
        restoring = [_restore(path, build(), workload) for _ in range(workload.repeats)]
    return Cost(
        method=method,
        model=workload.model,
        num_stages=workload.num_stages,
        batch_size=workload.batch_size,
        every=every,
        megabytes=megabytes,
        writing=writing,
        **times,
        ratios=throughput.ratios(times["saving"], times["plain"]),
        restoring=restoring,
    )


def _with_and_without(training: Training, path: pathlib.Path, every: int, repeats: int) -> dict[str, list[float]]:
    blocking: list[float] = []
    with jd.Checkpoints(path, keep=1) as checkpoints:

        def save(state: State) -> None:
            begun = time.perf_counter()
            checkpoints.save(state)
            blocking.append(time.perf_counter() - begun)

        times = throughput.in_turn(
            {"plain": lambda: training.seconds(every), "saving": lambda: training.seconds(every, save)}, repeats
        )
    return {**times, "blocking": blocking}


def _restore(path: pathlib.Path, pipeline: jd.Pipeline, workload: Workload) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(jd.restore(path, pipeline, workload.sample()))
    return time.perf_counter() - begun


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked(Settings):
    """What is measured."""

    methods: tuple[str, ...] = option(("fdg",), "training methods to measure", choices=METHODS)
    num_stages: int = option(2, "K", least=1)
    every: int = option(200, "ticks between two saves", least=2)
    model: str = option("resnet20", "as of experiments.train")
    image_size: int = option(32, "height and width of the images, in pixels", least=4)
    batch_size: int = option(128, "images per tick", least=1)
    repeats: int = option(5, "interleaved rounds", least=1)
    training: bool = option(True, "measure what saving costs the training loop, and not a save and restore alone")


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(Asked)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing was written"):
        devices.request(FLAGS.num_stages)
        asked = read(Asked)
        workload = Workload(**{name: getattr(asked, name) for name in SHAPE})
        output = Workdir(command_line.workdir("checkpoint-cost"), dataclasses.asdict(asked), overwrite=FLAGS.overwrite)
        costs = (measure(workload, method, asked.every, asked.training) for method in asked.methods)
        throughput.report(costs, output)


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
