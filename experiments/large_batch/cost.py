"""What layer-wise rates cost: time and memory of an update by mNAG, LARS and CLARS.

    python -m experiments.large_batch.cost

measures updates with a batch of B = 8192 images, accumulated in chunks of 512, for CLARS with the gradient norms of 512
of them (thesis, section 4.4.4), on one device. Images are random, float32. Rounds over all optimizers are interleaved,
ratios taken within a round. Memory is counted, as `experiments.measure.memory` says.

The directory gets results.json and table.md.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import lazy_loader
import numpy as np
from absl import flags

from experiments import cli as command_line
from experiments import devices
from experiments.measure import throughput
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir
from experiments.settings import Settings, define, option, read
from experiments.training.config import Config
from jaxdecouple.data import Dataset

if TYPE_CHECKING:
    import jax

    from jaxdecouple.engine.state import State
else:  # when it is needed: --help need not wait for JAX
    jax = lazy_loader.load("jax")

FLAGS = flags.FLAGS
OPTIMIZERS = {"mNAG": "sgd", "LARS": "lars", "CLARS": "clars"}
BASELINE = "LARS"
NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked(Settings):
    """What is measured."""

    model: str = option("resnet20", "as for experiments.train")
    image_size: int = option(32, "height and width of the images, in pixels", least=1)
    batch_size: int = option(8192, "B, images of an update", least=1)
    chunk_size: int = option(512, "images of one forward and backward", least=1)
    norm_sample: int = option(512, "examples whose gradient norms CLARS takes", least=0)
    repeats: int = option(5, "rounds over all optimizers", least=1)

    def check(self) -> None:
        if self.batch_size % self.chunk_size:
            raise ValueError(
                f"batch_size is {self.batch_size} and chunk_size {self.chunk_size}; write a multiple of the chunk"
            )
        for label in OPTIMIZERS:
            self.config(label)

    def config(self, label: str) -> Config:
        """Of the runs with an optimizer."""
        return Config(
            method="backprop",
            num_stages=1,
            model=self.model,
            dataset="random",
            epochs=1,
            batch_size=self.chunk_size,
            accumulate=self.batch_size // self.chunk_size,
            learning_rate=1e-3,
            nesterov=True,
            optimizer=OPTIMIZERS[label],
            norm_sample=self.norm_sample if label == "CLARS" else 0,
        )


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one optimizer.

    Attributes:
      seconds: of an update, one for each round.
      ratios: to LARS, within each round.
      peak_bytes: the most that the device held at once, state included; images not yet fed are on the host.
    """

    seconds: list[float]
    ratios: list[float]
    peak_bytes: int


class Updates:
    """A trainer that makes one update at a time, of the same random images."""

    def __init__(self, config: Config, batches: Sequence[tuple[np.ndarray, np.ndarray]]):
        from experiments.training.trainer import Trainer  # --help need not wait for JAX

        images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        dataset = Dataset("random", images, labels, images[:1], labels[:1], tuple(map(str, range(NUM_CLASSES))))
        self.trainer = Trainer(config, dataset, devices.of_stages(1))
        self._batches = batches
        self._state = self.run(self.trainer.init(0))  # compiles

    def seconds(self) -> float:
        """How long one update takes."""
        start = time.perf_counter()
        self._state = self.run(self._state)
        return time.perf_counter() - start

    def run(self, state: State) -> State:
        """One update, waited for."""
        for batch in self._batches:
            state, _ = self.trainer.step(state, batch)
        return jax.block_until_ready(state)

    def peak_bytes(self) -> int:
        """The most bytes on the device in an update; the trainer is of no other use afterwards."""
        from experiments.measure.memory import peak_bytes

        state, self._state = self.trainer.init(0), None
        return peak_bytes(self.trainer.pipeline, state, self._batches, self.trainer.step)[0]


def measure(asked: Asked, say: Callable[[str], None] = print) -> dict[str, Cost]:
    """The cost of each optimizer, calling ``say`` with each line on the progress."""
    random, size, images = np.random.default_rng(0), asked.chunk_size, asked.image_size
    batches = [
        (
            random.standard_normal((size, images, images, 3), np.float32),
            random.integers(NUM_CLASSES, size=size, dtype="i4"),
        )
        for _ in range(asked.batch_size // size)
    ]
    built = {}
    for label in OPTIMIZERS:
        start = time.perf_counter()
        built[label] = Updates(asked.config(label), batches)
        say(f"{label}: compiled, and made a first update, in {time.perf_counter() - start:.1f} s")
    seconds = throughput.in_turn({label: updates.seconds for label, updates in built.items()}, asked.repeats)
    costs = {}
    for label, updates in built.items():
        ratios = throughput.ratios(seconds[label], seconds[BASELINE])
        costs[label] = Cost(seconds[label], ratios, updates.peak_bytes())
    return costs


def as_markdown(costs: dict[str, Cost]) -> str:
    """A row per optimizer."""
    rows = [["optimizer", "seconds per update", "range", "ratio to LARS", "peak MB", "ratio to LARS"]]
    for label, cost in costs.items():
        rows.append(
            [
                label,
                f"{statistics.median(cost.seconds):.2f}",
                f"{min(cost.seconds):.2f}..{max(cost.seconds):.2f}",
                f"{statistics.median(cost.ratios):.3f}",
                f"{cost.peak_bytes / 1e6:.0f}",
                f"{cost.peak_bytes / costs[BASELINE].peak_bytes:.3f}",
            ]
        )
    return markdown(rows)


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(Asked)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing was written"):
        asked = read(Asked)
        output = Workdir(command_line.workdir("cost"), dataclasses.asdict(asked), overwrite=FLAGS.overwrite)
        devices.request(1)
        devices.compile_once()
        costs = measure(asked)
        results = {label: dataclasses.asdict(cost) for label, cost in costs.items()}
        output.write_json("results.json", {"machine": devices.describe(), "optimizers": results})
        output.write("table.md", as_markdown(costs) + "\n")
        print(f"\n{as_markdown(costs)}\n\nnumbers are in {output.path}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
