"""Training: one run of one config, and the record of what happened."""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdecouple as jd
from experiments import auto
from experiments.auto import Choice
from experiments.config import LARGEST_SAMPLE, Config
from experiments.methods import AUTO
from jaxdecouple.data import DataError, ImageData, Preprocess, num_batches
from jaxdecouple.diagnostics import DirectionRecord, GradientRecord
from jaxdecouple.pipeline import Evaluation
from jaxdecouple.state import Metrics, State

Diagnosis = GradientRecord | DirectionRecord


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite."""


class BrokenData(DataError):
    """An image could not be read in the middle of a run. The run stopped between two ticks: nothing computed is lost.

    Attributes:
      state: after the last whole tick; it can be trained further, flushed, tested and saved.
      records: of the epochs finished.
    """

    def __init__(self, cause: DataError, state: State, records: list[EpochRecord]):
        super().__init__(f"{cause} (training stopped after {state.tick} batches, {len(records)} whole epochs)")
        self.state, self.records = state, records


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """What one epoch did.

    Attributes:
      epoch: 1 for the first.
      ticks: batches fed so far.
      train_loss: mean over the batches that reached the loss in this epoch.
      test_loss, test_error: after it, with the weights of that moment; the error is a fraction.
      seconds: of training alone; in the first epoch compilation is part of it.
      images_per_second: of training.
    """

    epoch: int
    ticks: int
    train_loss: float
    test_loss: float
    test_error: float
    seconds: float
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its records, its state with nothing in flight, and its diagnostics, if there were any."""

    records: list[EpochRecord]
    final: Evaluation
    state: State
    diagnostics: list[Diagnosis] = dataclasses.field(default_factory=list)

    @property
    def test_error(self) -> float:
        """Fraction of test images misclassified by the final weights."""
        return 1 - (self.final.accuracy or 0.0)

    @property
    def images_per_second(self) -> float:
        """Median over the epochs; the first, which compiles, counts only when alone."""
        return float(np.median([record.images_per_second for record in self.records[1:] or self.records]))


class Trainer:
    """A config's pipeline on a data set; `run` trains it from a seed. Compiled functions serve all seeds.

    Attributes:
      config: the settings.
      dataset: the data, in memory or streamed.
      pipeline: the compiled pipeline.
      preprocess: from stored images to inputs.
      choice: for the method ``auto``, what it measured and chose.
    """

    def __init__(self, config: Config, dataset: ImageData, devices: Sequence[jax.Device]):
        """Builds the pipeline and checks that it can train; only ``auto`` computes anything, and nothing is written.

        Raises:
          ValueError: the config, or its combination with the data or the devices, cannot be trained.
        """
        config.check()
        self.config, self.dataset = config, dataset
        self.batches_per_epoch = num_batches(dataset.num_train, config.batch_size, config.drop_last)
        if config.steps_per_update > config.epochs * self.batches_per_epoch:
            raise ValueError(
                f"accumulate is {config.steps_per_update}, but the run has {config.epochs * self.batches_per_epoch} "
                "batches: no update would be made; write a smaller --accumulate or --batch_size, or more --epochs"
            )
        self.preprocess = Preprocess.for_dataset(dataset, augment=config.augment, normalise=config.normalise)
        self._sample = self.preprocess.eval(np.zeros((1, *dataset.image_shape), np.uint8))
        size = min(config.batch_size, dataset.num_train)
        sample = jax.ShapeDtypeStruct((size, *self._sample.shape[1:]), self._sample.dtype)
        layers = config.layers(dataset.num_classes, sample.shape[1])
        optimizer = config.stage_optimizer(self.batches_per_epoch)
        boundaries, schedule = config.boundaries or None, config.schedule()
        self.choice: Choice | None = None
        if config.method == AUTO:
            targets = np.zeros(size, np.int32)
            self.choice = auto.choose(
                layers,
                config.num_stages,
                sample,
                targets,
                devices,
                weights=schedule.weights,
                jitter=config.jitter,
                boundaries=boundaries,
                optimizer=optimizer,
            )
            stages, schedule = self.choice.stages, self.choice.schedule
        else:
            stages = jd.partition(
                layers, config.num_stages, sample=sample, boundaries=boundaries, weights=schedule.weights
            )
        self.pipeline = jd.Pipeline(
            stages,
            schedule,
            optimizer=optimizer,
            auxiliary=config.auxiliary(dataset.num_classes),
            auxiliary_optimizer=config.auxiliary_optimizer(self.batches_per_epoch),
            devices=devices,
        )

        every = config.diagnose_every
        self._diagnostics = jd.Diagnostics(self.pipeline, every=every) if every else None

    def init(self, seed: int) -> State:
        """The initial state of a run with this seed."""
        return self.pipeline.init(jax.random.key(seed), self._sample)

    def epoch(self, epoch: int, seed: int, start: int = 0) -> Iterator[tuple[jax.Array, np.ndarray]]:
        """The training batches of epoch 0, 1, ..., augmented on the first stage's device.

        They are a function of (epoch, seed); ``start`` skips the first batches and changes nothing of the others.
        """
        config, first = self.config, epoch * self.batches_per_epoch + start
        key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)  # apart from the layers' keys
        batches = self.dataset.train_batches(
            config.batch_size, seed=seed, epoch=epoch, drop_last=config.drop_last, start=start, augment=config.augment
        )
        for n, (images, labels) in enumerate(batches, first):
            images = self.pipeline.placement.put(images, 0)
            yield self.preprocess.train(jax.random.fold_in(key, n), images), labels

    def step(
        self, state: State, batch: tuple[Any, Any], diagnostics: jd.Diagnostics | None = None
    ) -> tuple[State, Metrics]:
        """One tick, and before it, where the optimizer needs them, the gradient norms of some of its examples."""
        if self.config.measures_norms(state.tick):
            sample = min(len(batch[1]), self.config.norm_sample or LARGEST_SAMPLE)
            state = self.pipeline.measure_gradient_norms(state, batch, sample_size=sample)
        return (diagnostics or self.pipeline).step(state, batch)

    def evaluate(self, state: State) -> Evaluation:
        """On the test set."""
        batches = self.dataset.test_batches(min(self.config.eval_batch_size, self.dataset.num_test))
        inputs = ((self.preprocess.eval(images), labels) for images, labels in batches)
        return self.pipeline.evaluate(state, inputs)

    def run(
        self,
        seed: int,
        *,
        on_tick: Callable[[float], Any] = lambda loss: None,
        on_epoch: Callable[[EpochRecord, State], Any] = lambda record, state: None,
        on_diagnosis: Callable[[Diagnosis], Any] = lambda record: None,
    ) -> Run:
        """Trains for the config's epochs, then flushes and tests.

        Args:
          seed: of this run, in place of the config's.
          on_tick: called once per batch with the newest loss known (NaN before the first).
          on_epoch: called after each epoch's test.
          on_diagnosis: called after each epoch, and after the flush, with each record of the diagnostics.

        Raises:
          NonFiniteLoss: a loss is NaN or infinite; the message names stage, tick and batch.
          BrokenData: an image could not be read; the message names the file, and the error holds the state.
        """
        state, records, reader = self.init(seed), [], _LossReader(self.pipeline)
        diagnostics, found = self._diagnostics, []
        if diagnostics:
            diagnostics.reset()

        def collect() -> None:
            for record in diagnostics.records() if diagnostics else ():
                found.append(record)
                on_diagnosis(record)

        try:
            for epoch in range(self.config.epochs):
                start, seen = time.perf_counter(), 0
                for images, labels in self.epoch(epoch, seed):
                    tick = state.tick
                    state, metrics = self.step(state, (images, labels), diagnostics)
                    reader.add(tick, metrics, state)
                    seen += len(labels)
                    on_tick(reader.latest)
                train_loss = reader.finish(state)
                jax.block_until_ready(state)
                seconds = time.perf_counter() - start
                test = self.evaluate(state)
                error = 1 - (test.accuracy or 0.0)
                records.append(
                    EpochRecord(epoch + 1, state.tick, train_loss, test.loss, error, seconds, seen / seconds)
                )
                on_epoch(records[-1], state)
                collect()
            state = (diagnostics or self.pipeline).flush(state)
            collect()
            return Run(records, self.evaluate(state), state, found)
        except DataError as cause:  # raised while a batch is fetched: `state` is that of a whole number of ticks
            jax.block_until_ready(state)  # a program that ends here must not leave computations running
            raise BrokenData(cause, state, records) from cause


class _LossReader:
    """Reads losses a few ticks after they were dispatched, when reading waits for nothing."""

    def __init__(self, pipeline: jd.Pipeline):
        self._pipeline = pipeline
        self._waiting: collections.deque[tuple[int, Metrics]] = collections.deque()
        self._losses: list[float] = []
        self.latest = math.nan

    def add(self, tick: int, metrics: Metrics, state: State) -> None:
        if metrics.loss is not None:
            self._waiting.append((tick, metrics))
        while len(self._waiting) > self._pipeline.run_ahead:
            self._read(state)

    def finish(self, state: State) -> float:
        """The mean of the losses since the last call."""
        while self._waiting:
            self._read(state)
        losses, self._losses = self._losses, []
        return float(np.mean(losses)) if losses else math.nan

    def _read(self, state: State) -> None:
        tick, metrics = self._waiting.popleft()
        self.latest = float(metrics.loss)
        self._losses.append(self.latest)
        if not math.isfinite(self.latest):
            raise NonFiniteLoss(_explain(tick, metrics.batch, self.latest, state))


def _explain(tick: int, batch: int, loss: float, state: State) -> str:
    last = len(state.stages) - 1

    def finite(tree: Any) -> bool:
        return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))

    broken = [k for k, stage in enumerate(state.stages) if not finite((stage.params, stage.model_state))]
    where = f"weights not finite at stages {', '.join(map(str, broken))}" if broken else "all weights finite"
    return (
        f"the loss of batch {batch}, computed by stage {last} in tick {tick}, is {loss} ({where}); "
        "write a lower --learning_rate, --warmup_epochs, or a method with less staleness"
    )
