"""A sweep trains one model several times with large batches, and sets the runs side by side."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import devices
from experiments.large_batch.outcomes import Outcome
from experiments.training.config import Config
from experiments.training.progress import EpochRecord, NonFiniteLoss
from experiments.training.trainer import Trainer
from jaxdecouple import data
from jaxdecouple.data import Dataset


def _flag(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs of a sweep have in common; each field is a command-line flag."""

    model: str = _flag("resnet8", "as for experiments.train (thesis: resnet56, vgg11)")
    dataset: str = _flag("digits", "as for experiments.train (thesis: cifar10)")
    data_dir: str = _flag("", "as for experiments.train")
    num_examples: int = _flag(0, "train on the first so many images; 0: all")
    num_tests: int = _flag(0, "test on the first so many images; 0: all")
    shrink: int = _flag(1, "side of the squares of pixels whose mean becomes one pixel")
    epochs: int = _flag(20, "passes over the training images")
    chunk_size: int = _flag(512, "images of one forward and backward; their gradients are accumulated to a batch")
    base_rate: float = _flag(0.1, "gamma_base: the learning rate at a batch of base_batch images (thesis, eq. 4.3)")
    base_batch: int = _flag(128, "B_base, in images")
    momentum: float = _flag(0.9, "beta of Nesterov's momentum (thesis, eqs. 4.2 and 4.6)")
    weight_decay: float = _flag(1e-4, "added to the gradient; the thesis leaves it open")
    norm_sample: int = _flag(0, "CLARS: examples whose gradient norms are measured; 0: at most 512 (thesis: 512)")
    augment: bool = _flag(True, "random crops, and flips where the images allow it")
    seed: int = _flag(0, "of the initial network, the order of the data and augmentation")

    def check(self) -> None:
        """Refuses what cannot be trained.

        Raises:
          ValueError: says what was given, what was expected, and what to write.
        """
        least = {
            "num_examples": 0,
            "num_tests": 0,
            "shrink": 1,
            "epochs": 1,
            "chunk_size": 1,
            "base_batch": 1,
            "norm_sample": 0,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; write at least {bound}")
        if not 0 < self.base_rate < math.inf:
            raise ValueError(f"base_rate is {self.base_rate}; write a number above 0")

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
        """The data set, cut down as the setting says.

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
            norm_sample=self.norm_sample,
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
    outcomes = {}
    for key, config in configs.items():
        trainer = Trainer(config, dataset, devices.of_stages(1))
        records: list[EpochRecord] = []
        finite, start = True, time.perf_counter()
        with tqdm(total=config.epochs * trainer.batches_per_epoch, unit="batch", disable=None, leave=False) as bar:
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


def define_flags(defaults: Setting) -> None:
    """One flag per field of `Setting`."""
    define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_bool}
    for field in dataclasses.fields(Setting):
        default = getattr(defaults, field.name)
        define[type(default)](field.name, default, field.metadata["help"])


def read_flags() -> Setting:
    """The setting that the command line gives."""
    return Setting(**{field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Setting)})


def numbers(name: str, given: Sequence[str], kind: type[int] | type[float], *, zero: bool = False) -> list[Any]:
    """The numbers of a list flag, above 0, or, with ``zero``, at least 0.

    Raises:
      ValueError: one is no such number, or there are none.
    """
    try:
        values = [kind(text) for text in given]
    except ValueError:
        values = []
    if not values or not all(0 <= value < math.inf and (value or zero) for value in values):
        example = "128,512" if kind is int else "5,10" if zero else "0.001,0.01"
        raise ValueError(f"{name} is {','.join(given)!r}; write numbers above 0 with commas between, such as {example}")
    return values


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
