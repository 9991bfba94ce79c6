"""Throughput: images per second of several trainers, measured in turn so that a noisy machine is noisy for all."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import statistics
import time
from collections.abc import Collection, Iterator, Mapping

import jax

from experiments.training import Trainer
from jaxdecouple.state import State


def measure(
    trainers: Mapping[str, Trainer],
    states: Mapping[str, State],
    *,
    repeats: int = 5,
    seconds: float = 0.5,
    on_one_core: Collection[str] = (),
) -> dict[str, list[float]]:
    """Images per second of each trainer in each repeat, in the steady state and without compilation.

    Every repeat measures every trainer once, one after the other; ratios between trainers should be taken within a
    repeat. The input pipeline is part of what is measured: batches are gathered and augmented as in training.

    Args:
      trainers: label -> trainer.
      states: label -> a state of it, which is used up.
      repeats: rounds.
      seconds: about how long one measurement takes.
      on_one_core: labels measured with the whole process confined to one processor core, where the system can do that.
    """
    loops = {label: _Loop(trainer, states[label]) for label, trainer in trainers.items()}
    ticks = {label: max(8, round(seconds / loop.seconds_per_tick())) for label, loop in loops.items()}
    rates: dict[str, list[float]] = {label: [] for label in trainers}
    for _ in range(repeats):
        for label, loop in loops.items():
            with _one_core() if label in on_one_core else contextlib.nullcontext():
                rates[label].append(loop.images_per_second(ticks[label]))
    return rates


def can_confine() -> bool:
    """Whether this system can confine the process to one core, and the devices are its cores."""
    return (
        hasattr(os, "sched_setaffinity")
        and pathlib.Path("/proc/self/task").is_dir()
        and (jax.devices()[0].platform == "cpu")
    )


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Confines every thread of this process to one core: XLA's as well, which spread over all of them otherwise."""
    cores = os.sched_getaffinity(0)
    _confine({min(cores)})
    try:
        yield
    finally:
        _confine(cores)


def _confine(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # threads may end meanwhile
            os.sched_setaffinity(int(thread), cores)


def ratio(rates: list[float], baseline: list[float]) -> float:
    """Median of the ratios within each repeat."""
    return statistics.median(a / b for a, b in zip(rates, baseline, strict=True))


class _Loop:
    """A training loop that can be run for some ticks at a time."""

    def __init__(self, trainer: Trainer, state: State):
        self._trainer, self._state = trainer, state
        epochs = (trainer.epoch(epoch, seed=0) for epoch in itertools.count())
        self._batches = itertools.chain.from_iterable(epochs)
        self._run(2 * trainer.pipeline.schedule.drain + 2 * trainer.config.steps_per_update + 2)  # compile and fill

    def seconds_per_tick(self, ticks: int = 16) -> float:
        start = time.perf_counter()
        self._run(ticks)
        return (time.perf_counter() - start) / ticks

    def images_per_second(self, ticks: int) -> float:
        start = time.perf_counter()
        images = self._run(ticks)
        return images / (time.perf_counter() - start)

    def _run(self, ticks: int) -> int:
        """Feeds ``ticks`` batches and waits until all that was dispatched is done."""
        images = 0
        for inputs, labels in itertools.islice(self._batches, ticks):
            self._state, _ = self._trainer.pipeline.step(self._state, (inputs, labels))
            images += len(labels)
        jax.block_until_ready(self._state)
        return images
