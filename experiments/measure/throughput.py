"""Throughput: images per second of training loops, measured in turn so that a noisy machine is noisy for all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import lazy_loader

from experiments import devices
from experiments.report.workdir import Workdir

if TYPE_CHECKING:
    import jax
else:  # when it is needed: --help need not wait for JAX
    jax = lazy_loader.load("jax")

LEAST_TICKS = 8  # in one measurement: its ends, where not all devices work, should not weigh
T = TypeVar("T")


class Loop:
    """A training loop that can be run for some ticks at a time, in its steady state and without compilation.

    Attributes:
      state: after all that was run so far.
      batches: still to be fed.
      step: what is run in each tick; may be replaced by one that does the same in another way.
      one_core: whether it is measured with the whole process confined to one processor core.
    """

    def __init__(
        self,
        step: Callable[[Any, tuple[Any, Any]], tuple[Any, Any]],
        state: Any,
        batches: Iterable[tuple[Any, Any]],
        *,
        fill: int,
        unit: int = 1,
        one_core: bool = False,
    ):
        """Compiles and fills.

        Args:
          step: ``(state, (inputs, labels)) -> (state, anything)``, one tick; it need not wait.
          state: to begin with; used up.
          batches: without end.
          fill: ticks until all is compiled and the steady state is reached.
          unit: ticks after which the work repeats itself; only multiples of it are run.
          one_core: see above.
        """
        self.state, self.one_core = state, one_core
        self.batches = iter(batches)
        self.step, self._unit = step, unit
        self.run(-(-fill // unit) * unit)

    def ticks_in(self, seconds: float) -> int:
        """About how many ticks take ``seconds``: a whole number of units, and not too few to measure."""
        with self._confined():
            trial = -(-2 // self._unit) * self._unit
            start = time.perf_counter()
            self.run(trial)
            ticks = max(LEAST_TICKS, round(seconds * trial / (time.perf_counter() - start)))
        return -(-ticks // self._unit) * self._unit

    def images_per_second(self, ticks: int) -> float:
        """While ``ticks`` batches are fed; nothing is under way before or after."""
        with self._confined():
            start = time.perf_counter()
            images = self.run(ticks)
            return images / (time.perf_counter() - start)

    def run(self, ticks: int) -> int:
        """Feeds ``ticks`` batches and waits until all that was dispatched is done. Returns the number of images."""
        images = 0
        for inputs, labels in itertools.islice(self.batches, ticks):
            self.state, _ = self.step(self.state, (inputs, labels))
            images += len(labels)
        jax.block_until_ready(self.state)
        return images

    def _confined(self) -> contextlib.AbstractContextManager:
        return one_core() if self.one_core else contextlib.nullcontext()


def idle() -> Loop:
    """For a process that does nothing while another is measured."""
    return Loop(lambda state, batch: (state, None), (), itertools.repeat(((), ())), fill=0)


def measure(loops: Mapping[str, Loop], *, repeats: int = 5, seconds: float = 0.5) -> dict[str, list[float]]:
    """Images per second of each loop in each repeat. Whatever makes the batches is part of what is measured.

    Where several processes train, all measure the same labels at the same time, as long as the last of them says.

    Args:
      loops: label -> loop.
      repeats: rounds over all loops.
      seconds: about how long one measurement takes.
    """
    from jaxdecouple.engine.processes import told

    ticks = told({label: loop.ticks_in(seconds) for label, loop in loops.items()}, jax.process_count() - 1)
    return in_turn(
        {label: functools.partial(loop.images_per_second, ticks[label]) for label, loop in loops.items()}, repeats
    )


def in_turn(measurements: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """The results of measurements that are made one after the other, all of them once in every repeat.

    Ratios between them should be taken within a repeat.
    """
    from jaxdecouple.engine.processes import told_by_all

    results: dict[str, list[T]] = {label: [] for label in measurements}
    for _ in range(repeats):
        for label, measurement in measurements.items():
            told_by_all(label)  # nothing of the one before is under way in another process
            results[label].append(measurement())
    return results


def ratio(rates: list[float], baseline: list[float]) -> float:
    """Median of the ratios within each repeat."""
    return statistics.median(ratios(rates, baseline))


def ratios(rates: list[float], baseline: list[float]) -> list[float]:
    """The ratio within each repeat."""
    return [a / b for a, b in zip(rates, baseline, strict=True)]


def report(costs: Iterable[Any], output: Workdir) -> None:
    """Prints each cost's ``line()`` as soon as it is known, and writes all of them."""
    found = []
    for cost in costs:
        found.append(dataclasses.asdict(cost))
        print(cost.line())
    output.write_json("results.json", {"costs": found, **devices.describe()})


def can_confine() -> bool:
    """Whether this system can confine the process to one core, and the devices are its cores."""
    return (
        hasattr(os, "sched_setaffinity")
        and pathlib.Path("/proc/self/task").is_dir()
        and (jax.devices()[0].platform == "cpu")
    )


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Confines all threads of this process to one core, where that can be done: XLA's would spread over all of them."""
    if not can_confine():
        yield
        return
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
