"""A timeline is when each operation of a run starts and ends, and the speed and idle time that follow from that."""

from __future__ import annotations

import dataclasses
import functools
import html
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxdecouple import charts
from jaxdecouple.planning.times import Sizes, Times
from jaxdecouple.schedules import FlushSchedule, Kind, RoundSchedule, Schedule, staleness

_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))


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


class DeviceBox(NamedTuple):
    """A dispatch as it is drawn: ``look`` is one of `Schedule.looks`, ``label`` its batch, or both of joined ones."""

    device: int
    stage: int
    look: str
    label: str
    start: float
    end: float


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

    @property
    def shares_devices(self) -> bool:
        """Whether several stages are on one device."""
        return self.num_devices < self.schedule.num_stages

    @property
    def rows(self) -> list[str]:
        """Of a drawing: the devices, by what is on them."""
        return [self._row(device) for device in range(self.num_devices)]

    @property
    def title(self) -> str:
        """Of a drawing: what runs, how fast, and how busy the devices are."""
        words = [f"{self.schedule.name}, K = {self.schedule.num_stages}, {self.schedule.weights}"]
        if self.steady is None:
            words.append(f"utilisation {1 - self.bubble:.0%} over {self.num_batches} batches")
        else:
            words.append(f"{self.speedup:.2f} times as fast as one device")
            words.append(f"utilisation {np.mean(self.busy):.0%} in the steady state")
        return "; ".join(words)

    def window(
        self, start: float | None = None, stop: float | None = None, most: int = 6000
    ) -> tuple[list[DeviceBox], float, float]:
        """What is drawn: boxes in order of time, and the seconds at which the drawing starts and stops.

        Args:
          start, stop: as of `save_gantt`.
          most: how many boxes to draw; the part that is drawn is cut short so as to have no more.

        Raises:
          ValueError: there is nothing between ``start`` and ``stop``.
        """
        begin = 0.0 if start is None else float(start)
        if stop is None:
            # The end of the first batch's last operation is when the pipeline has filled.
            filled = float(self.end[self.batch == 0].max())
            batch = self.makespan / self.num_batches
            shown = max(2 * filled, filled + 6 * batch, 16 * batch)
            stop = self.makespan if self.makespan <= begin + 1.3 * shown else begin + shown
        boxes = sorted(self._boxes(begin, stop), key=lambda box: box.start)
        if not boxes or stop <= begin:
            raise ValueError(
                f"there is nothing from {begin:g} s to {stop:g} s; write a part of 0 to {self.makespan:g} s"
            )
        if len(boxes) > most:
            stop = boxes[most].start
        return boxes[:most], begin, stop

    def _boxes(self, start: float, stop: float) -> Iterator[DeviceBox]:
        """The dispatches that overlap the time between ``start`` and ``stop``, in dispatch order."""
        chosen = np.flatnonzero((self.end > start) & (self.start < stop))
        dispatch, kind, stage, batch = (
            column[chosen].tolist() for column in (self.dispatch, self.kind, self.stage, self.batch)
        )
        starts, ends = self.start[chosen].tolist(), self.end[chosen].tolist()
        at = 0
        while at < len(chosen):
            joined = at + 1 < len(chosen) and dispatch[at + 1] == dispatch[at]
            look = "joined" if joined else self.schedule.look(Kind(kind[at]), stage[at])
            label = f"{batch[at]},{batch[at + 1]}" if joined else str(batch[at])
            yield DeviceBox(self.devices[stage[at]], stage[at], look, label, starts[at], ends[at])
            at += 1 + joined

    def _row(self, device: int) -> str:
        stages = [str(stage) for stage, place in enumerate(self.devices) if place == device]
        if self.num_devices == self.schedule.num_stages and stages == [str(device)]:
            return f"stage {device}"
        return f"device {device}: stage{'s' if len(stages) > 1 else ''} {', '.join(stages)}"

    def _repr_html_(self) -> str:
        """The chart of its first part, which notebooks show."""
        boxes, _, stop = self.window(most=1000)
        unit, scale = unit_of(stop)
        shown = [charts.Box(b.device, b.start / scale, b.end / scale, b.look, f"{b.look} {b.label}") for b in boxes]
        chart = charts.gantt(shown, self.rows, x=f"time ({unit})", looks=self.schedule.looks)
        return f"<p>{html.escape(self.title)}</p>{chart}"

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


def unit_of(seconds: float) -> tuple[str, float]:
    """The largest unit in which ``seconds`` is at least 1."""
    return next(((name, scale) for name, scale in _UNITS if seconds >= scale), _UNITS[-1])


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
