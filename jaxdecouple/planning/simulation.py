"""A simulation lets devices, links and the host work through a run's dispatches, each in order, as soon as it can.

Three rules make the times:

* a device works through its queue strictly in dispatch order, and starts a dispatch when the device is free, all its
  inputs have arrived and the host has issued it;
* each direction of each edge is a link that carries one transfer at a time, in order: it is latency and occupied link
  in one, ``arrival = max(end of the operation, link free) + time``;
* the host issues dispatches in order, ``times.host`` seconds each, and waits when it gets too far ahead.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
from collections.abc import Sequence

import numpy as np

from jaxdecouple.planning.dispatches import Dispatches, flatten
from jaxdecouple.planning.lock_step import in_lock_step
from jaxdecouple.planning.timelines import Timeline, period_of
from jaxdecouple.planning.times import Sizes, Times, check_times
from jaxdecouple.schedules import FlushSchedule, RoundSchedule, Schedule, validate


def timeline(
    schedule: Schedule,
    times: Times,
    *,
    num_batches: int | None = None,
    sizes: Sizes | None = None,
    devices: Sequence[int] | None = None,
    run_ahead: int | None = None,
    slowness: np.ndarray | None = None,
    lock_step: bool = False,
) -> Timeline:
    """When each operation of a run starts and ends, flush included.

    Args:
      schedule: what is dispatched.
      times: how long it takes.
      num_batches: how many batches are fed; by default enough to read a steady state off.
      sizes: bytes, for `peak_bytes`.
      devices: the device of each stage, K integers of 0, 1, ...; by default each stage has its own. Stages of one
        device hand over at once.
      run_ahead: before a tick the host waits until fewer than so many dispatched losses are unfinished, as
        `Pipeline` does; ``None``: it never waits.
      slowness: [ticks, K], how many times longer what a stage does in a tick takes; for devices that are slow now and
        then. Such a run need not have a steady state: read its ``end``. Ticks of the flush count.
      lock_step: a tick ends for all stages at once, transfers included, as in the codes that the papers measured
        (`planning.lock_step`). By default, as in this library, a device waits for its data alone.

    Raises:
      ScheduleError: the schedule cannot be executed.
      ValueError: ``times``, ``sizes``, ``devices`` or ``slowness`` is for another number of stages; or ``lock_step``
        is asked of rounds of micro-batches, or of devices that slow one another down.
    """
    _check_asked(schedule, times, num_batches, sizes, run_ahead, lock_step)
    stages = schedule.num_stages
    devices = _checked(devices, stages)
    validate(schedule)
    num_batches = _enough(schedule) if num_batches is None else num_batches
    work = flatten(schedule, times, num_batches, devices, run_ahead)
    if slowness is not None:
        work = _slowed(work, np.asarray(slowness, float), stages)
    if lock_step:
        start, end, arrival = in_lock_step(work, times, schedule)
    else:
        start, end, arrival = _shared(work, times) if times.slowdown else _in_order(work, times)
    return Timeline(
        schedule=schedule,
        times=times,
        num_batches=num_batches,
        devices=devices,
        sizes=sizes,
        kind=work.letters,
        stage=work.stage,
        batch=work.batch,
        tick=work.tick,
        dispatch=work.dispatch,
        start=start[work.dispatch],
        end=end[work.dispatch],
        arrival=np.where(work.source < 0, start[work.dispatch], arrival),
    )


def _check_asked(
    schedule: Schedule,
    times: Times,
    num_batches: int | None,
    sizes: Sizes | None,
    run_ahead: int | None,
    lock_step: bool,
) -> None:
    stages = schedule.num_stages
    check_times(times)
    if num_batches is not None and num_batches < 1:
        raise ValueError(f"num_batches is {num_batches}; write at least 1")
    if times.num_stages != stages:
        raise ValueError(f"times has {times.num_stages} stages, but schedule {schedule.name!r} has {stages}")
    if sizes is not None and len(sizes.inputs) != stages:
        raise ValueError(f"sizes has {len(sizes.inputs)} stages, but schedule {schedule.name!r} has {stages}")
    if run_ahead is not None and run_ahead < 1:
        raise ValueError(f"run_ahead is {run_ahead}; write at least 1, or None for a host that never waits")
    if lock_step and isinstance(schedule, FlushSchedule | RoundSchedule):
        raise ValueError(
            f"lock_step is for schedules whose tick is an iteration; a round of {schedule.name!r} takes "
            f"{schedule.chunks} of them, leave it out"
        )
    if lock_step and times.slowdown:
        raise ValueError("lock_step knows of no devices that share cores; leave it out, or leave out times.slowdown")


@functools.cache
def least_run_ahead(schedule: Schedule) -> int:
    """How many ticks a host must at least dispatch beyond the last finished loss, so as not to slow ``schedule`` down.

    It is at least 2; each tick of it costs memory. Where activations cross several stages within a tick (DDG, Features
    Replay, GPipe), a loss takes long to appear. A host that waits for it too soon lets the first stages run dry. The
    number holds for equal stages whose backward takes twice as long as their forward, with free transfers.
    """
    num_stages = schedule.num_stages
    times = Times(forward=[1.0] * num_stages, backward=[2.0] * num_stages)
    unlimited = timeline(schedule, times).seconds_per_batch
    run_ahead = 2
    while timeline(schedule, times, run_ahead=run_ahead).seconds_per_batch > 1.001 * unlimited:
        run_ahead += 1
    return run_ahead


def _checked(devices: Sequence[int] | None, stages: int) -> tuple[int, ...]:
    found = tuple(range(stages)) if devices is None else tuple(map(int, devices))
    if len(found) != stages:
        raise ValueError(f"devices = {found} has {len(found)} entries; write one for each of the {stages} stages")
    if set(found) != set(range(max(found) + 1)):
        raise ValueError(f"devices = {found} must number the devices 0, 1, ... without a gap")
    return found


def _slowed(work: Dispatches, slowness: np.ndarray, stages: int) -> Dispatches:
    ticks = int(work.tick.max()) + 1
    if slowness.ndim != 2 or slowness.shape[1] != stages or len(slowness) < ticks:
        raise ValueError(f"slowness has shape {slowness.shape}; write [ticks, {stages}] for at least {ticks} ticks")
    if not (np.isfinite(slowness) & (slowness > 0)).all():
        raise ValueError("slowness must hold finite numbers above 0; write 1 where a device is not slow")
    heads = np.flatnonzero(np.diff(work.dispatch, prepend=-1))
    return dataclasses.replace(work, duration=work.duration * slowness[work.tick[heads], work.stage[heads]])


def _enough(schedule: Schedule) -> int:
    """Batches after which filling and accelerating are long over, in whole periods."""
    period = period_of(schedule)
    return -(-(8 * (schedule.drain + schedule.num_stages) + 64) // period) * period


def _in_order(work: Dispatches, times: Times) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One pass in dispatch order, (max, +): nothing depends on what is dispatched later."""
    count = len(work.dispatch)
    source, link, transfer = work.source.tolist(), work.link.tolist(), work.transfer.tolist()
    start, end = [0.0] * len(work.device), [0.0] * len(work.device)
    arrival = [0.0] * count
    device_free, link_free = [0.0] * (int(work.device.max()) + 1), [0.0] * (max(link) + 1)
    issued, awaited, dispatch = 0.0, work.awaited.tolist(), work.dispatch.tolist()
    lines = zip(work.device.tolist(), work.duration.tolist(), work.members, awaited, strict=True)
    for index, (device, duration, members, loss) in enumerate(lines):
        if loss >= 0:
            issued = max(issued, end[dispatch[loss]])
        issued += times.host
        begin = max(device_free[device], issued)
        for op in members:
            if source[op] >= 0:  # batches cross an edge in order, so the link has carried all that was sent before
                sent = max(end[dispatch[source[op]]], link_free[link[op]])
                arrival[op] = link_free[link[op]] = sent + transfer[op]
                begin = max(begin, arrival[op])
        start[index] = begin
        end[index] = device_free[device] = begin + duration
    return np.array(start), np.array(end), np.array(arrival)


def _shared(work: Dispatches, times: Times) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Event by event, for devices that slow one another down.

    All running dispatches progress alike, at 1 / slowdown: a virtual clock, which runs at that rate, tells their ends
    beforehand, and the true clock follows.
    """
    state = _Events(work, times)
    state.issue()
    while state.running or state.coming:
        rate = state.rate()
        finish = state.now + (state.running[0][0] - state.virtual) * rate if state.running else np.inf
        if state.coming and state.coming[0][0] <= finish:
            moment, op = heapq.heappop(state.coming)
            state.virtual += (moment - state.now) / rate
            state.now = moment
            state.issue(done=True) if op < 0 else state.arrive(op)
        else:
            state.virtual, index = heapq.heappop(state.running)
            state.now = finish
            state.finish(index)
    return np.array(state.start), np.array(state.end), np.array(state.arrival)


class _Events:
    """What is running, what is coming, and what waits, at the time ``now``."""

    def __init__(self, work: Dispatches, times: Times):
        dispatches, count = len(work.device), len(work.dispatch)
        self.now = self.virtual = 0.0
        self.running: list[tuple[float, int]] = []  # (virtual end, dispatch)
        self.coming: list[tuple[float, int]] = []  # (time, operation whose input arrives, or -1: a dispatch is issued)
        self.start, self.end, self.arrival = [0.0] * dispatches, [np.nan] * dispatches, [0.0] * count
        self._slowdown, self._host = times.slowdown, times.host
        self._members, self._duration, self._device = work.members, work.duration.tolist(), work.device.tolist()
        self._link, self._transfer = work.link.tolist(), work.transfer.tolist()
        self._link_free = [0.0] * (max(self._link) + 1)
        self._dispatch, self._awaited = work.dispatch.tolist(), work.awaited.tolist()
        self._consumers: list[list[int]] = [[] for _ in range(count)]  # of each operation's result
        for op, source in enumerate(work.source.tolist()):
            if source >= 0:
                self._consumers[source].append(op)
        # A dispatch starts when nothing is missing: its inputs, and that it is issued.
        self._missing = (1 + np.bincount(work.dispatch, work.source >= 0, dispatches).astype(int)).tolist()
        self._queues = [np.flatnonzero(work.device == device)[::-1].tolist() for device in range(max(self._device) + 1)]
        self._busy = [False] * len(self._queues)
        self._next = 0  # the dispatch that the host issues next
        self._waiting = -1  # the dispatch whose end the host waits for

    def rate(self) -> float:
        """Seconds for one second of work."""
        return self._slowdown[max(0, min(len(self.running), len(self._slowdown)) - 1)]

    def issue(self, done: bool = False) -> None:
        """The host goes on issuing, having ``done`` the one it was busy with, until that takes time or it must wait."""
        while self._next < len(self._device):
            if done:
                self._provide(self._next)
                self._next += 1
                done = False
                continue
            loss = self._awaited[self._next]
            if loss >= 0 and np.isnan(self.end[self._dispatch[loss]]):
                self._waiting = self._dispatch[loss]
                return
            if self._host:
                heapq.heappush(self.coming, (self.now + self._host, -1))
                return
            done = True

    def arrive(self, op: int) -> None:
        """What ``op`` needs from its neighbour is there."""
        self._provide(self._dispatch[op])

    def finish(self, index: int) -> None:
        """Dispatch ``index`` is done."""
        self.end[index] = self.now
        self._busy[self._device[index]] = False
        for op in itertools.chain.from_iterable(self._consumers[op] for op in self._members[index]):
            link = self._link[op]
            self.arrival[op] = self._link_free[link] = max(self.now, self._link_free[link]) + self._transfer[op]
            heapq.heappush(self.coming, (self.arrival[op], op))
        self._start_next(self._device[index])
        if index == self._waiting:
            self._waiting = -1
            self.issue()

    def _provide(self, index: int) -> None:
        self._missing[index] -= 1
        self._start_next(self._device[index])

    def _start_next(self, device: int) -> None:
        queue = self._queues[device]
        if not self._busy[device] and queue and self._missing[queue[-1]] == 0:
            index = queue.pop()
            self._busy[device] = True
            self.start[index] = self.now
            heapq.heappush(self.running, (self.virtual + self._duration[index], index))
