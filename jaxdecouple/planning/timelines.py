"""A timeline is when each operation of a run starts and ends, and the speed and idle time that follow from that."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxdecouple.planning.times import Sizes, Times
from jaxdecouple.schedules import FlushSchedule, Kind, RoundSchedule, Schedule, staleness


def period_of(schedule: Schedule) -> int:
    """Batches, and ticks, after which the pattern of operations repeats itself in the steady state."""
    rounds = isinstance(schedule, FlushSchedule | RoundSchedule)
    return schedule.chunks if rounds else getattr(schedule, "period", 1)


class Record(NamedTuple):
    """One operation of a timeline: from ``start`` to ``end``, in seconds, as part of ``dispatch``."""

    kind: Kind
    stage: int
    batch: int
    tick: int
    dispatch: int
    start: float
    end: float


class Steady(NamedTuple):
    """The part of a run that repeats itself: from ``start`` to ``end``, in seconds, ``batches`` were finished."""

    start: float
    end: float
    batches: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """A run's operations in dispatch order, with their times; `planning.timeline` makes one.

    Attributes:
      schedule, times, num_batches, devices, sizes: what was simulated; ``devices[k]`` is the device of stage k.
      kind: [N], "F", "B" or "W"; stage, batch, tick: [N], integers.
      dispatch: [N], which dispatch an operation is part of; joined ones share theirs, and its start and end.
      start, end: [N], seconds from the start of the run.
      arrival: [N], seconds until what an operation needs of a neighbour is there; the start of one that needs nothing.
    """

    schedule: Schedule
    times: Times
    num_batches: int
    devices: tuple[int, ...]
    sizes: Sizes | None
    kind: np.ndarray
    stage: np.ndarray
    batch: np.ndarray
    tick: np.ndarray
    dispatch: np.ndarray
    start: np.ndarray
    end: np.ndarray
    arrival: np.ndarray

    def __iter__(self) -> Iterator[Record]:
        """The operations one by one, in dispatch order."""
        columns = (self.stage, self.batch, self.tick, self.dispatch, self.start, self.end)
        kinds = map(Kind, self.kind.tolist())
        return map(Record._make, zip(kinds, *(column.tolist() for column in columns), strict=True))

    @property
    def num_devices(self) -> int:
        """How many devices the stages are on."""
        return max(self.devices) + 1

    @property
    def makespan(self) -> float:
        """Seconds from the start to the end of the run, filling and flush included."""
        return float(self.end.max())

    @functools.cached_property
    def steady(self) -> Steady | None:
        """The part of the run that the speed is read off; ``None`` where the run is too short to have one.

        It lies between two updates of one stage, in the second half of the run, and so early that no stage has run out
        of batches: in-order queues let nothing that is dispatched later, as the flush, touch it. Updates need not come
        evenly: the two are as many batches apart as it takes for all ends to repeat themselves, or a multiple of it.
        Of all stages the slowest is taken: others may still live on a stock that they share with it.
        """
        stop = self.num_batches - min(self.schedule.drain + 1, self.num_batches // 4)
        found = []
        for stage in range(self.schedule.num_stages):
            kind = self.schedule.updates_in(stage)
            updates = (self.stage == stage) & (self.kind == kind.value) & (self.batch < stop)
            found.append(_steady(self.end[updates][self.num_batches // 2 :], period_of(self.schedule)))
        return max(filter(None, found), key=lambda part: (part.end - part.start) / part.batches, default=None)

    @property
    def seconds_per_batch(self) -> float:
        """Seconds per batch in the steady state.

        Raises:
          ValueError: the run is too short to have a steady state.
        """
        steady = self._known_steady()
        return (steady.end - steady.start) / steady.batches

    @property
    def throughput(self) -> float:
        """Batches per second in the steady state."""
        return 1 / self.seconds_per_batch

    @property
    def speedup(self) -> float:
        """How many times faster, in the steady state, than the whole network on one device.

        Where stages learn locally, that device is taken to have the auxiliary networks to work on as well.
        """
        return self.times.serial / self.seconds_per_batch

    @property
    def busy(self) -> tuple[float, ...]:
        """For each device, the fraction of time in which it works, in the steady state."""
        steady = self._known_steady()
        return tuple((self._work(steady.start, steady.end) / (steady.end - steady.start)).tolist())

    @property
    def idle(self) -> tuple[float, ...]:
        """For each device, seconds per batch in which it does nothing, in the steady state."""
        return tuple((1 - busy) * self.seconds_per_batch for busy in self.busy)

    @property
    def utilisation(self) -> tuple[float, ...]:
        """For each device, the fraction of the whole run in which it works, filling and flush included."""
        return tuple((self._work(0.0, self.makespan) / self.makespan).tolist())

    @property
    def bubble(self) -> float:
        """The fraction of the whole run, mean over the devices, in which they do nothing.

        For a run of one GPipe round, M micro-batches through K equal stages without transfers and replay, it is
        (K-1) / (M+K-1), though the last stage's forwards contain their backwards here: they pass one forward and
        backward apart, and so do the backwards below. Rounds after one another do not overlap: the first stage begins
        a round when it has ended the one before.
        """
        return float(1 - np.mean(self.utilisation))

    def staleness(self, accumulate: int = 1) -> tuple[tuple[int, ...], ...]:
        """Level of staleness of each stage, as `schedules.staleness` finds it."""
        return staleness(self.schedule, accumulate)

    def _known_steady(self) -> Steady:
        if self.steady is None:
            raise ValueError(
                f"a run over {self.num_batches} batches is too short to have a steady state; "
                "give timeline() more, or leave num_batches out"
            )
        return self.steady

    def _work(self, start: float, end: float) -> np.ndarray:
        """Seconds between ``start`` and ``end`` in which each device works."""
        heads = np.flatnonzero(np.diff(self.dispatch, prepend=-1))
        seconds = np.clip(self.end[heads], start, end) - np.clip(self.start[heads], start, end)
        return np.bincount(np.array(self.devices)[self.stage[heads]], seconds, self.num_devices)


def _steady(ends: np.ndarray, period: int) -> Steady | None:
    """What repeats itself in the ends of successive batches: of all of them, or else of the later half."""
    for late in (ends, ends[len(ends) // 2 :]):
        for batches in range(period, min(len(late) // 2, len(late) - 2) + 1, period):
            exact = 1e-9 * late[-1]
            if abs(late[-1] - late[-1 - batches] - late[-2] + late[-2 - batches]) > exact:
                continue  # the same question, asked of two ends only
            if np.ptp(late[batches:] - late[:-batches]) <= exact:
                batches *= (len(late) - 1) // batches
                return Steady(float(late[-1 - batches]), float(late[-1]), batches)
    batches = (len(ends) - 1) // period * period
    return Steady(float(ends[-1 - batches]), float(ends[-1]), batches) if batches > 0 else None
