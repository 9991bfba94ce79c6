"""The settings that the programs on single layers share; each field is a command-line flag."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from absl import flags

from experiments.large_batch.network import MODELS, Examples, Network
from experiments.training.methods import choose
from jaxdecouple import data


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, and on what; the help texts of `define_flags` say units and sources."""

    model: str = "fcn"
    dataset: str = "digits"
    data_dir: str = ""
    num_examples: int = 0
    epochs: int = 10
    batch_size: int = 128
    momentum: float = 0.9
    seed: int = 0

    def check(self) -> None:
        """Refuses what cannot be trained.

        Raises:
          ValueError: says what was given, what was expected, and what to write.
        """
        choose("model", self.model, list(MODELS))
        for name, least in {"num_examples": 0, "epochs": 1, "batch_size": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; write at least {least}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; write a number of at least 0 and below 1")

    def load(self) -> tuple[data.Dataset, Examples]:
        """The data set, and its first ``num_examples`` training images, normalised, with their labels.

        Raises:
          ValueError: the data cannot be had, or there are too few of them.
        """
        dataset = data.load(self.dataset, data_dir=self.data_dir or None)
        images, labels = dataset.x_train, dataset.y_train
        if self.num_examples > len(labels):
            raise ValueError(
                f"num_examples is {self.num_examples}, but {dataset.name} has {len(labels)} training images; write "
                f"{len(labels)} or less, or 0 for all"
            )
        count = self.num_examples or len(labels)
        if self.batch_size > count:
            raise ValueError(f"batch_size is {self.batch_size}, but there are {count} training images; write {count}")
        preprocess = data.Preprocess.for_dataset(dataset, augment=False)
        chunks = [preprocess.eval(images[i : min(i + 5000, count)]) for i in range(0, count, 5000)]
        return dataset, (jnp.concatenate(chunks), jnp.asarray(labels[:count]))

    def network(self, num_classes: int) -> Network:
        """The model."""
        return Network(MODELS[self.model](num_classes), self.momentum)

    def described(self, dataset: data.Dataset) -> dict[str, Any]:
        """The settings for a report: the data set by its name, not by where its file lies."""
        return dataclasses.asdict(dataclasses.replace(self, dataset=dataset.name, data_dir=""))


def define_flags(defaults: Settings) -> None:
    """The flags of `Settings`, with the values of ``defaults``."""
    flags.DEFINE_string("model", defaults.model, f"one of {', '.join(MODELS)}: thesis section 4.4.1")
    flags.DEFINE_string("dataset", defaults.dataset, "as for experiments.train")
    flags.DEFINE_string("data_dir", defaults.data_dir, "as for experiments.train")
    flags.DEFINE_integer("num_examples", defaults.num_examples, "train on the first so many images; 0: all")
    flags.DEFINE_integer("epochs", defaults.epochs, "passes over the training set, at most")
    flags.DEFINE_integer("batch_size", defaults.batch_size, "B, images of a batch (thesis: 128)")
    flags.DEFINE_float("momentum", defaults.momentum, "beta of Nesterov's momentum (eq. 4.6)")
    flags.DEFINE_integer("seed", defaults.seed, "of the initial network and of the order of the data")


def given(kind: type[Settings]) -> dict[str, Any]:
    """The values of the flags that are fields of ``kind``; lists as strings."""
    return {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(kind)}
