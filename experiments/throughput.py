"""Throughput: images per second of several trainers, measured in turn so that a noisy machine is noisy for all."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from experiments.training import Trainer
from jaxdecouple.state import State


class Throughput(NamedTuple):
    """Images per second: median, lowest and highest of the repeats."""

    median: float
    low: float
    high: float


def measure(
    trainers: Mapping[str, Trainer],
    states: Mapping[str, State],
    *,
    repeats: int = 5,
    seconds: float = 0.5,
    on_repeat: Callable[[str], Any] = lambda label: None,
) -> dict[str, list[float]]:
    """Images per second of each trainer in each repeat, in the steady state and without compilation.

    Every repeat measures every trainer once, one after the other; ratios between trainers should be taken within a
    repeat. The input pipeline is part of what is measured: batches are gathered and augmented as in training.

    Args:
      trainers: label -> trainer.
      states: label -> a state of it, which is used up.
      repeats: rounds.
      seconds: about how long one measurement takes.
      on_repeat: called before each measurement with the label.
    """
    loops = {label: _Loop(trainer, states[label]) for label, trainer in trainers.items()}
    ticks = {label: max(8, round(seconds / loop.seconds_per_tick())) for label, loop in loops.items()}
    rates: dict[str, list[float]] = {label: [] for label in trainers}
    for _ in range(repeats):
        for label, loop in loops.items():
            on_repeat(label)
            rates[label].append(loop.images_per_second(ticks[label]))
    return rates


def summarise(rates: list[float]) -> Throughput:
    """Median and range of a list of repeats."""
    return Throughput(statistics.median(rates), min(rates), max(rates))


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
