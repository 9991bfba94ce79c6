"""A sweep trains one model several times with large batches, and sets the runs side by side."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import cli as command_line
from experiments import devices
from experiments.report.workdir import Workdir
from experiments.settings import Settings, option
from experiments.training.config import Config
from experiments.training.stopping import NonFiniteLoss
from jaxdecouple import data
from jaxdecouple.data import Dataset

if TYPE_CHECKING:
    from experiments.training.progress import EpochRecord


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run went.

    Attributes:
      config: of the run.
      records: of the epochs that it finished.
      finite: whether the loss stayed finite.
      seconds: it took, compilation included.
    """

    config: Config
    records: list[EpochRecord]
    finite: bool
    seconds: float

    @property
    def final_loss(self) -> float:
        """The mean training loss of the last epoch, in nats; infinite, if it did not stay finite."""
        return self.records[-1].train_loss if self.finite else math.inf

    @property
    def test_error(self) -> float:
        """After the last epoch, a fraction."""
        return self.records[-1].test_error if self.finite else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(Settings):
    """What all runs of a sweep have in common."""

    model: str = option("resnet8", "as for experiments.train (thesis: resnet56, vgg11)")
    dataset: str = option("digits", "as for experiments.train (thesis: cifar10)")
    data_dir: str = option("", "as for experiments.train")
    num_examples: int = option(0, "train on the first so many images; 0: all", least=0)
    num_tests: int = option(0, "test on the first so many images; 0: all", least=0)
    shrink: int = option(1, "side of the squares of pixels whose mean becomes one pixel", least=1)
    epochs: int = option(20, "passes over the training images", least=1)
    chunk_size: int = option(
        512, "images of one forward and backward; their gradients are accumulated to a batch", least=1
    )
    base_rate: float = option(
        0.1, "gamma_base: the learning rate at a batch of base_batch images (thesis, eq. 4.3)", above=0
    )
    base_batch: int = option(128, "B_base, in images", least=1)
    momentum: float = option(0.9, "beta of Nesterov's momentum (thesis, eqs. 4.2 and 4.6)", least=0, below=1)
    weight_decay: float = option(1e-4, "added to the gradient; the thesis leaves it open", least=0)
    norm_sample: int = option(
        0, "CLARS: examples whose gradient norms are measured; 0: at most 512 (thesis: 512)", least=0
    )
    augment: bool = option(True, "random crops, and flips where the images allow it")
    seed: int = option(0, "of the initial network, the order of the data and augmentation", least=0)

    def rate(self, batch_size: int) -> float:
        """gamma_scale = gamma_base B / B_base: the learning rate grows with the batch (thesis, eq. 4.3)."""
        return self.base_rate * batch_size / self.base_batch

    def describe(self, dataset: Dataset) -> dict[str, Any]:
        """For a report: the data set by its name, not by where its file lies."""
        return dataclasses.asdict(dataclasses.replace(self, dataset=dataset.name, data_dir=""))

    def title(self, dataset: Dataset) -> str:
        """What was trained on what, for a picture."""
        height, width, _ = dataset.image_shape
        return f"{self.model} on {dataset.name} ({len(dataset.y_train)} images of {height}x{width})"

    def load(self) -> Dataset:
        """The data set, cut down as the settings say.

        Raises:
          ValueError: it cannot be had, or has fewer images.
        """
        whole = data.load(self.dataset, data_dir=self.data_dir or None)
        parts = {}
        for part, count, name in (("train", self.num_examples, "num_examples"), ("test", self.num_tests, "num_tests")):
            images, labels = getattr(whole, f"x_{part}"), getattr(whole, f"y_{part}")
            if count > len(labels):
                raise ValueError(f"{name} is {count}, but {whole.name} has {len(labels)}; write at most that, or 0")
            count = count or len(labels)
            parts[f"x_{part}"], parts[f"y_{part}"] = _shrunk(images[:count], self.shrink), labels[:count]
        return Dataset(whole.name, **parts, class_names=whole.class_names)

    def config(self, dataset: Dataset, batch_size: int, **settings: Any) -> Config:
        """The config of a run with batches of ``batch_size`` images and the learning rate that goes with them.

        Raises:
          ValueError: the batch is no multiple of the chunk, or larger than the data set.
        """
        chunk = min(self.chunk_size, batch_size)
        if batch_size % chunk:
            raise ValueError(f"batch_size is {batch_size}; write a multiple of chunk_size, {self.chunk_size}")
        if batch_size > len(dataset.y_train):
            raise ValueError(
                f"batch_size is {batch_size}, but there are {len(dataset.y_train)} training images; write at most that"
            )
        return Config(
            method="backprop",
            num_stages=1,
            model=self.model,
            dataset=dataset.name,
            epochs=self.epochs,
            batch_size=chunk,
            accumulate=batch_size // chunk,
            learning_rate=self.rate(batch_size),
            momentum=self.momentum,
            nesterov=True,
            weight_decay=self.weight_decay,
            norm_sample=self.norm_sample if settings.get("optimizer") == "clars" else 0,
            augment=self.augment,
            drop_last=True,
            seed=self.seed,
            **settings,
        )


def train_all(
    configs: Mapping[Any, Config],
    dataset: Dataset,
    on_outcome: Callable[[Any, Outcome], Any] = lambda key, outcome: None,
) -> dict[Any, Outcome]:
    """Trains every config, one after the other, on the first device.

    Args:
      configs: by whatever tells them apart.
      dataset: of all of them.
      on_outcome: called after each run.
    """
    import jax  # --help need not wait for it

    from experiments.training.trainer import Trainer

    outcomes = {}
    for key, config in configs.items():
        trainer = Trainer(config, dataset, devices.of_stages(1))
        records: list[EpochRecord] = []
        finite, start = True, time.perf_counter()
        with command_line.bar(config.epochs * trainer.batches_per_epoch, "batch") as bar:
            try:
                trainer.run(
                    config.seed,
                    on_tick=lambda loss: bar.update(),  # noqa: B023
                    on_epoch=lambda record, state: records.append(record),  # noqa: B023
                )
            except NonFiniteLoss:
                finite = False
        outcomes[key] = Outcome(config, records, finite, time.perf_counter() - start)
        on_outcome(key, outcomes[key])
        jax.clear_caches()
    return outcomes


def run(
    sweep: Sweep,
    name: str,
    configs: Callable[[Dataset], Mapping[tuple[str, Any], Config]],
    what: Callable[[Any], str],
    report: Callable[[Dataset, dict[Any, Outcome], Workdir], str],
) -> None:
    """The program of a sweep: loads, trains all configs, writes what came out, and prints a table.

    Args:
      sweep: the settings.
      name: of a new workdir.
      configs: makes them for the data; the first part of a key is the method.
      what: says of a key what it is besides.
      report: draws, and makes the table.

    Raises:
      ValueError: settings, data or workdir cannot be used.
    """
    workdir = command_line.workdir(name)
    devices.request(1)
    devices.compile_once()
    dataset = sweep.load()
    chosen = configs(dataset)
    output = Workdir(workdir, dataclasses.asdict(sweep), overwrite=flags.FLAGS.overwrite)
    outcomes = train_all(chosen, dataset, lambda key, outcome: announce(output, key[0], what(key), outcome))
    runs = [{"method": key[0], **as_json(outcome)} for key, outcome in outcomes.items()]
    described = sweep.describe(dataset)
    output.write_json("results.json", {"machine": devices.describe(), "setting": described, "runs": runs})
    table = report(dataset, outcomes, output)
    output.write("table.md", table + "\n")
    print(f"\n{table}\n\ntraining loss of the last epoch and test error; picture and numbers are in {output.path}")


def announce(output: Workdir, method: str, what: str, outcome: Outcome) -> None:
    """Prints how a run went, on one line, and adds it to metrics.jsonl."""
    output.append("metrics.jsonl", {"method": method, **as_json(outcome)})
    if outcome.finite:
        result = f"training loss {outcome.final_loss:.4g}, test error {100 * outcome.test_error:.2f} %"
    else:
        result = f"diverged after {len(outcome.records)} epochs"
    tqdm.write(f"{f'{method}, {what}':42s} {result}, {outcome.seconds:.0f} s", file=sys.stdout)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """What a report keeps of a run."""
    config = outcome.config
    return {
        "optimizer": config.optimizer,
        "eta": config.eta,
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size * config.accumulate,
        "warmup_epochs": config.warmup_epochs,
        "finite": outcome.finite,
        "train_loss": [float(f"{record.train_loss:.5g}") for record in outcome.records],
        "test_error": [round(record.test_error, 5) for record in outcome.records],
        "seconds": round(outcome.seconds, 1),
    }


def cell(outcome: Outcome) -> str:
    """Training loss of the last epoch and test error after it, for a table."""
    if not outcome.finite:
        return f"diverged in epoch {len(outcome.records) + 1}"
    loss = outcome.final_loss
    return f"{loss:.3f}, {100 * outcome.test_error:.1f} %" if loss < 100 else f"{loss:.1e}"


def _shrunk(images: np.ndarray, side: int) -> np.ndarray:
    """[N, H, W, C] -> [N, H // side, W // side, C], the means of squares; of the images' own type."""
    count, height, width, channels = images.shape
    rows, columns = height // side, width // side
    if side == 1:
        return images
    if not rows or not columns:
        raise ValueError(f"shrink is {side}, but images have {height} x {width} pixels; write a smaller number")
    squares = images[:, : rows * side, : columns * side].reshape(count, rows, side, columns, side, channels)
    means = squares.mean(axis=(2, 4), dtype=np.float32)
    return (np.rint(means) if images.dtype == np.uint8 else means).astype(images.dtype)
