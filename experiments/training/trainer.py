"""Training: one run of one config, and the record of what happened."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxdecouple as jd
from experiments.measure.marks import Marks
from experiments.settings import revived
from experiments.training import auto
from experiments.training.auto import Choice
from experiments.training.config import LARGEST_SAMPLE, Config
from experiments.training.methods import AUTO
from experiments.training.progress import Diagnosis, EpochRecord, Progress
from experiments.training.tasks import Inputs, TextInputs, task_of
from jaxdecouple.data import DataError, ImageData, TextData, num_batches
from jaxdecouple.engine.metrics import Evaluation
from jaxdecouple.engine.state import Metrics, State
from jaxdecouple.schedules import DelaySchedule, Schedule

# Settings that a schedule is made of, or a run: pipelines that differ in nothing else share what is compiled.
_SCHEDULING = (
    "method",
    "weights",
    "order",
    "p",
    "m",
    "jitter",
    "boundaries",
    "seed",
    "diagnose_every",
    "direction_batches",
)
_PIPELINES: weakref.WeakValueDictionary[tuple[Any, ...], jd.Pipeline] = weakref.WeakValueDictionary()

VARIABLES, ABOUT = "model.msgpack", "model.json"  # the weights that a finished run leaves, and what they expect


class BrokenData(DataError):
    """An image could not be read in the middle of a run. The run stopped between two ticks: nothing computed is lost.

    Attributes:
      state: after the last whole tick; it can be trained further, flushed, tested and saved.
      progress: what was found until then.
    """

    def __init__(self, cause: DataError, state: State, progress: Progress):
        super().__init__(f"{cause} (training stopped after {state.tick} batches, {len(progress.records)} whole epochs)")
        self.state, self.progress = state, progress


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run goes on: a state between two ticks, and what was found until then (`Progress.frozen`)."""

    state: State
    progress: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the network is cut, and what ``auto`` chose: asked for again, they may come out otherwise.

    Attributes:
      boundaries: layer indices at which a new stage starts.
      schedule: that the method ``auto`` chose; ``None`` for others.
    """

    boundaries: tuple[int, ...]
    schedule: DelaySchedule | None

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Layout:
        """The inverse of `dataclasses.asdict`."""
        schedule = saved["schedule"] and revived(DelaySchedule, saved["schedule"], "the schedule")
        return cls(tuple(saved["boundaries"]), schedule)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished run: its records, its state with nothing in flight, and its diagnostics, if there were any."""

    records: list[EpochRecord]
    final: Evaluation
    state: State
    diagnostics: list[Diagnosis] = dataclasses.field(default_factory=list)

    @property
    def test_error(self) -> float:
        """Fraction of test images, or of tokens of test sequences, that the final weights do not name."""
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
      task: what the network is trained for.
      sample: shape and dtype of a whole batch's inputs.
      choice: for the method ``auto``, what it measured and chose.
      layout: where the network was cut, and what ``auto`` chose.
    """

    def __init__(
        self,
        config: Config,
        dataset: ImageData | TextData,
        devices: Sequence[jax.Device],
        layout: Layout | None = None,
        inputs: Inputs | TextInputs | None = None,
    ):
        """Builds the pipeline and checks that it can train; only ``auto`` computes anything, and nothing is written.

        Args:
          config: the settings.
          dataset: the data.
          devices: one per stage.
          layout: of the run that this one continues.
          inputs: what its network expects of the data; by default, as these are.

        Raises:
          ValueError: the config cannot be trained with these data or devices.
        """
        self.config, self.dataset = config, dataset
        self.batches_per_epoch = num_batches(dataset.num_train, config.batch_size, config.drop_last)
        total = config.epochs * self.batches_per_epoch
        if layout is None and config.steps_per_update > total:
            raise ValueError(
                f"accumulate is {config.steps_per_update}, but the run has {total} batches: no update would be made; "
                "write a smaller --accumulate or --batch_size, or more --epochs"
            )
        if layout is None and config.m and max(config.m) >= total:
            raise ValueError(
                f"m is {','.join(map(str, config.m))}, but the run has {total} batches: gradients would come after the "
                "last one; write a smaller --m or --batch_size, or more --epochs"
            )
        self.task = task_of(config, dataset, inputs)
        size, example = min(config.batch_size, dataset.num_train), self.task.sample
        sample = jax.ShapeDtypeStruct((size, *example.shape[1:]), example.dtype)
        self.choice = None if layout or config.method != AUTO else self._choose(sample, devices)
        if self.choice:
            stages, schedule = self.choice.stages, self.choice.schedule
        else:
            schedule = layout and layout.schedule or config.schedule()
            stages = jd.partition(
                self.task.layers(config),
                config.num_stages,
                sample=sample,
                boundaries=layout.boundaries if layout else config.boundaries or None,
                weights=schedule.weights,
            )
        self.layout = Layout(tuple(stage.first for stage in stages[1:]), schedule if config.method == AUTO else None)
        self.pipeline = self._build(stages, schedule, sample, devices)
        self.pipeline.placement.check_batch(sample)
        every, reference = config.diagnose_every, None if config.direction_batches == 1 else self._reference
        self._diagnostics = jd.Diagnostics(self.pipeline, every=every, reference=reference) if every else None
        self.sample = sample
        self._usual = sample, jax.ShapeDtypeStruct((size, *self.task.targets), np.int32)
        self._imported = _imported(config)

    def _build(
        self,
        stages: Sequence[jd.Stage],
        schedule: Schedule,
        sample: jax.ShapeDtypeStruct,
        devices: Sequence[jax.Device],
    ) -> jd.Pipeline:
        """The pipeline: with the compiled programs of one that differs in its schedule alone, if there is one."""
        config, outputs = self.config, self.task.outputs
        others = [getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in _SCHEDULING]
        decisive = self.batches_per_epoch, config.steps_per_update, sample.shape, outputs, self.layout.boundaries
        kind = schedule.learning, config.missed_updates(), *others, *decisive, *devices
        alike = _PIPELINES.get(kind)
        if alike is not None:
            return alike.with_schedule(schedule)
        pipeline = jd.Pipeline(
            stages,
            schedule,
            optimizer=config.stage_optimizer(self.batches_per_epoch),
            metrics=self.task.metrics,
            auxiliary=config.auxiliary(outputs),
            auxiliary_optimizer=config.auxiliary_optimizer(self.batches_per_epoch),
            devices=devices,
        )
        _PIPELINES[kind] = pipeline
        return pipeline

    def _choose(self, sample: jax.ShapeDtypeStruct, devices: Sequence[jax.Device]) -> Choice:
        config = self.config
        return auto.choose(
            self.task.layers(config),
            config.num_stages,
            sample,
            np.zeros((sample.shape[0], *self.task.targets), np.int32),
            devices,
            weights=config.schedule().weights,
            jitter=config.jitter,
            boundaries=config.boundaries or None,
            optimizer=config.stage_optimizer(self.batches_per_epoch),
        )

    @property
    def _reads_inputs(self) -> bool:
        """Whether the first stage lives in this process."""
        return self.pipeline.placement.owns(0)

    def init(self, seed: int) -> State:
        """The initial state of a run with this seed, and with the weights of ``init_from``, if it is given."""
        state = self.pipeline.init(jax.random.key(seed), *self._usual)
        return jd.import_variables(self.pipeline, state, self._imported) if self._imported else state

    def restore(self, path: str | pathlib.Path) -> State:
        """The state saved at ``path``.

        Raises:
          CheckpointError: there is none, or it does not fit.
        """
        return jd.restore(path, self.pipeline, self.sample)

    def epoch(
        self, epoch: int, seed: int, start: int = 0, device: jax.Device | None = None
    ) -> Iterator[tuple[jax.Array | None, np.ndarray]]:
        """The training batches, images augmented on the first stage's device, or ``device``; elsewhere targets alone.

        They are a function of (epoch, seed); ``start`` skips the first batches and changes nothing of the others.
        """
        config, first = self.config, epoch * self.batches_per_epoch + start
        key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)  # apart from the layers' keys
        batches = self.dataset.train_batches(
            config.batch_size, seed=seed, epoch=epoch, drop_last=config.drop_last, start=start, augment=config.augment
        )
        for n, (inputs, targets) in enumerate(batches, first):
            if device is None and not self._reads_inputs:
                yield None, targets
                continue
            inputs = jax.device_put(inputs, device) if device else self.pipeline.placement.put(inputs, 0)
            yield self.task.train(jax.random.fold_in(key, n), inputs), targets

    def _reference(self) -> Iterator[tuple[jax.Array, np.ndarray]]:
        """The batches of which a probe takes the true gradient: whole ones, shuffled and augmented as in no epoch."""
        size, config = self.sample.shape[0], self.config
        count = config.direction_batches or self.dataset.num_train // size
        epochs = (self.epoch(epoch, config.seed) for epoch in itertools.count(config.epochs))
        whole = (batch for batch in itertools.chain.from_iterable(epochs) if len(batch[1]) == size)
        return itertools.islice(whole, count)

    def step(
        self, state: State, batch: tuple[Any, Any], diagnostics: jd.Diagnostics | Marks | None = None
    ) -> tuple[State, Metrics]:
        """One tick, and before it, where the optimizer needs them, the gradient norms of some of its examples."""
        if self.config.measures_norms(state.tick):
            sample = min(len(batch[1]), self.config.norm_sample or LARGEST_SAMPLE)
            statistics = self.config.norm_statistics
            state = self.pipeline.measure_gradient_norms(state, batch, sample_size=sample, statistics=statistics)
        return (diagnostics or self.pipeline).step(state, batch)

    def evaluate(self, state: State) -> Evaluation:
        """On the test set."""
        return self.pipeline.evaluate(state, self.test_batches())

    def test_batches(self) -> Iterator[tuple[Any, np.ndarray]]:
        """The test set, in order, as inputs of the network."""
        batches = self.dataset.test_batches(min(self.config.eval_batch_size, self.dataset.num_test))
        return ((self.task.test(inputs) if self._reads_inputs else None, targets) for inputs, targets in batches)

    def run(
        self,
        seed: int,
        *,
        start: Start | None = None,
        marks: Marks | None = None,
        on_tick: Callable[[float], Any] = lambda loss: None,
        on_epoch: Callable[[EpochRecord, State], Any] = lambda record, state: None,
        on_diagnosis: Callable[[Diagnosis], Any] = lambda record: None,
        between_ticks: Callable[[State, Progress], Any] = lambda state, progress: None,
    ) -> Finished:
        """Trains for the config's epochs, then flushes and tests.

        Args:
          seed: of this run, in place of the config's.
          start: where to go on; by default, at the beginning.
          marks: of this pipeline, to be made in some ticks; not together with diagnostics.
          on_tick: called once per batch with the newest loss known (NaN before the first).
          on_epoch: called after each epoch's test.
          on_diagnosis: called after each epoch, and after the flush, with each record of the diagnostics.
          between_ticks: called after each tick, and the epoch's test if it was the last of an epoch; what it raises
            ends the run.

        Raises:
          NonFiniteLoss: a loss is NaN or infinite; the message names stage, tick and batch.
          BrokenData: an image could not be read; the message names the file, and the error holds the state.
        """
        diagnostics, state = self._diagnostics, start.state if start else self.init(seed)
        if diagnostics:
            diagnostics.reset(self._usual)
        progress = Progress(
            start and start.progress,
            run_ahead=self.pipeline.run_ahead,
            diagnostics=diagnostics,
            on_diagnosis=on_diagnosis,
        )
        try:
            for epoch in range(len(progress.records), self.config.epochs):  # one that was not tested yet has no record
                begun = time.perf_counter() - progress.seconds
                for images, labels in self.epoch(epoch, seed, start=state.tick - epoch * self.batches_per_epoch):
                    tick = state.tick
                    state, metrics = self.step(state, (images, labels), diagnostics or marks)
                    progress.add(tick, metrics, len(labels), state)
                    on_tick(progress.latest)
                    progress.seconds = time.perf_counter() - begun
                    if state.tick % self.batches_per_epoch:
                        between_ticks(state, progress)
                progress.read_all(state)
                jax.block_until_ready(state)
                seconds = time.perf_counter() - begun
                on_epoch(progress.end_epoch(state, seconds, self.evaluate(state)), state)
                progress.collect()
                between_ticks(state, progress)
            state = (diagnostics or self.pipeline).flush(state)
            progress.collect()
            return Finished(progress.records, self.evaluate(state), state, progress.diagnoses)
        except DataError as cause:  # raised while a batch is fetched: `state` is that of a whole number of ticks
            raise BrokenData(cause, state, progress) from cause
        finally:
            _settle(state)


def _imported(config: Config) -> dict[str, Any] | None:
    if not config.init_from:
        return None
    path = pathlib.Path(config.init_from).expanduser()
    return jd.read_variables(path / VARIABLES if path.is_dir() else path)


def _settle(state: State) -> None:
    """Waits for what is under way: a program that ends must not leave computations running."""
    with contextlib.suppress(Exception):  # arrays that a step was interrupted with are gone
        jax.block_until_ready(state)
