"""A plan is the schedule with the least staleness that keeps every device as busy as it can be, for given times.

A stage is described by its turnaround, the time from the start of a batch's forward to the start of its backward. The
least turnaround and the least staleness of each stage are found from the last stage down: docs/planning.md says why
that is the least for all of them.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

from jaxdecouple.planning.simulation import timeline
from jaxdecouple.planning.times import Times, check_times
from jaxdecouple.schedules import (
    BACKWARD,
    FORWARD,
    DelaySchedule,
    Order,
    Weights,
    ddg,
    fdg,
    pipedream,
    staleness,
    validate,
)
from jaxdecouple.schedules.schedule import as_integer

_ROUNDING = 1e-9  # relative: sums of floats that should be equal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A schedule and what it was chosen for.

    Attributes:
      schedule: the choice.
      times: that it was made for.
      accumulate: M, batches to an update.
      orders: within a tick, that were considered.
      jitter: the lateness of every hand-over that costs no speed, in units of the slowest stage's seconds per batch.
      margin: the fraction of the best speed that was given up for less staleness, at most.
      best: seconds per batch that no schedule can beat.
      seconds_per_batch: predicted by `planning.timeline`, hand-overs on time.
    """

    schedule: DelaySchedule
    times: Times
    accumulate: int
    orders: tuple[Order, ...]
    jitter: float
    margin: float
    best: float
    seconds_per_batch: float

    @property
    def speedup(self) -> float:
        """How many times faster than the whole network on one device."""
        return self.times.serial / self.seconds_per_batch

    @property
    def staleness(self) -> tuple[tuple[int, ...], ...]:
        """Level of staleness of each stage and batch of a group, as `schedules.staleness` finds it."""
        return staleness(self.schedule, self.accumulate)

    def explain(self) -> str:
        """Three lines: what limits the speed, what the delays are for, and how known methods compare."""
        return "\n".join([self._limit(), self._reason(), self._comparison()])

    def _repr_html_(self) -> str:
        """What `explain` says, and the schedule's chart, which notebooks show."""
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self.explain().splitlines())
        return lines + self.schedule._repr_html_()

    def _limit(self) -> str:
        times, weights, seconds = self.times, self.schedule.weights, self.best
        stages = range(times.num_stages)
        parts = {f"stage {k}": times.work(k, weights) for k in stages}
        parts |= {f"the link {k} -> {k + 1}": up for k, up in enumerate(times.up)}
        parts |= {f"the link {k + 1} -> {k}": down for k, down in enumerate(times.down)}
        slowest = max(parts, key=parts.__getitem__)
        if parts[slowest] < seconds * (1 - _ROUNDING):
            slowest = "the host" if times.host else "a joined dispatch"
        return (
            f"Limit: {slowest} takes {seconds:.4g} s per batch; this plan takes {self.seconds_per_batch:.4g} s, "
            f"{self.speedup:.3g} times as fast as one device."
        )

    def _reason(self) -> str:
        schedule, total = self.schedule, _total(self.schedule)
        words = f"Delays: p = {_brief(schedule.p)}, q = {_brief(schedule.q)}, {schedule.order.replace('_', ' ')}; "
        words += f"staleness by stage {_levels(schedule)}, in all {total}, is the least"
        words += f" that bears hand-overs late by {self.jitter:g} of a batch" if self.jitter else ""
        if not total:
            return f"{words}: no gradient is stale."
        slower = _slower(self, total)
        over = slower / self.best - 1
        alone = ", if devices did not slow one another down" if self.times.slowdown else ""
        return f"{words}; with less than {total}, a batch would take {slower:.4g} s, {over:.1%} over the limit{alone}."

    def _comparison(self) -> str:
        others = []
        for method in (ddg, fdg, pipedream):
            schedule = method(self.times.num_stages, weights=self.schedule.weights)
            speedup = timeline(schedule, self.times).speedup
            others.append(f"{schedule.name} {speedup:.3g} times with staleness {_levels(schedule)}")
        return f"Compare: {'; '.join(others)}."


class _Partial(NamedTuple):
    """A choice for the stages from the top down to one of them.

    Attributes:
      total: staleness, summed over the stages.
      out: seconds from the start of a batch's forward, here, until its gradient leaves.
      reach: the least lag, in ticks, that the next stage below may have.
      singles: stages below the last that are not joined.
      lags: of the stages, the lowest first; ``joined``: whether they are.
    """

    total: int
    out: float
    reach: int
    singles: int
    lags: tuple[int, ...]
    joined: tuple[bool, ...]


def plan(
    times: Times,
    *,
    jitter: float = 0.0,
    weights: Weights = "stash",
    accumulate: int = 1,
    margin: float = 0.01,
    order: Order | None = None,
) -> Plan:
    """The delay schedule with the least staleness whose speed is within ``margin`` of the best possible.

    ``times.slowdown`` is left out of the search (not of the prediction): each stage is taken to have its own device.
    Between schedules of equal staleness the faster is taken, then that with fewer ticks of lag, then forward first.

    Args:
      times: of the stages; with ``times.joined``, joined dispatches are considered as `schedules.join` makes them.
      jitter: every hand-over may come later by this many times the slowest stage's seconds per batch.
      weights: which weights a backward uses.
      accumulate: M, batches to an update.
      margin: fraction of the best speed, >= 0 and < 1.
      order: within a tick; by default whichever is better.

    Raises:
      ValueError: an argument is out of its range.
    """
    check_times(times)
    _check(jitter, weights, accumulate, margin, order)
    # Without joining, the two orders differ in ticks only, and forward first has fewer.
    orders = get_args(Order) if order is None else (order,)
    bests = {choice: _best(times, weights, choice) for choice in orders}
    best = min(bests.values())
    late = jitter * max(times.work(stage, weights) for stage in range(times.num_stages))
    found = []
    for choice in orders:
        least = _least(times, weights, choice, best / (1 - margin), late)
        if least is not None:
            name = f"plan(jitter={jitter:g})"
            schedule = _schedule(least, choice, weights, name)
            validate(schedule)
            seconds = timeline(schedule, times).seconds_per_batch
            rank = (least.total, round(seconds / best, 9) if best else 0.0, sum(least.lags), choice != "forward_first")
            found.append((rank, schedule, seconds))
    _, schedule, seconds = min(found, key=lambda entry: entry[0])
    return Plan(
        schedule=schedule,
        times=times,
        accumulate=accumulate,
        orders=orders,
        jitter=jitter,
        margin=margin,
        best=best,
        seconds_per_batch=seconds,
    )


def _check(jitter: float, weights: Weights, accumulate: int, margin: float, order: Order | None) -> None:
    if not (math.isfinite(jitter) and jitter >= 0):
        raise ValueError(f"jitter is {jitter}; write at least 0, in units of the slowest stage's seconds per batch")
    if weights not in get_args(Weights):
        raise ValueError(f"weights is {weights!r}; write one of {', '.join(get_args(Weights))}")
    if not isinstance(as_integer(accumulate), int) or accumulate < 1:
        raise ValueError(f"accumulate is {accumulate!r}; write how many batches an update takes, at least 1")
    if not 0 <= margin < 1:
        raise ValueError(f"margin is {margin}; write a fraction of the speed, as 0.01")
    if order is not None and order not in get_args(Order):
        raise ValueError(f"order is {order!r}; write one of {', '.join(get_args(Order))}, or None")


def _choices(times: Times, order: Order, stage: int) -> tuple[bool, ...]:
    """Whether a stage's backward and forward may be joined; stage 0, which has no neighbour below, always is."""
    if times.joined is None or order == "forward_first":
        return (False,)
    return (True,) if stage == 0 else (True, False)


def _seconds(times: Times, weights: Weights, stage: int, joined: bool) -> tuple[float, float, float]:
    """(until the activation exists, until the gradient exists, per batch) for a stage below the last."""
    if joined and times.joined is not None:
        seconds = times.joined[stage]
        return seconds, seconds, seconds
    forward, backward = times.forward[stage], times.duration(BACKWARD, stage, weights)
    return forward, backward, forward + backward


def _best(times: Times, weights: Weights, order: Order) -> float:
    """Seconds per batch with any number of delays."""
    last = times.num_stages - 1
    options = [[_seconds(times, weights, k, joined)[2] for joined in _choices(times, order, k)] for k in range(last)]
    bound = max(times.duration(FORWARD, last, weights), *map(min, options), *times.up, *times.down, 0.0)
    # What the host saves by joining may be worth a slower stage: the period is one of few values.
    joined = times.joined if order == "backward_first" and times.joined is not None else ()
    periods = {bound, *(seconds for pair in options for seconds in pair)}
    periods |= {times.host * (last + 1 + singles) for singles in range(last + 1)}

    def serves(period: float) -> bool:
        joinable = sum(seconds <= period for seconds in joined)
        return period >= bound and times.host * (2 * last + 1 - joinable) <= period

    return min(filter(serves, periods))


def _least(times: Times, weights: Weights, order: Order, period: float, late: float) -> _Partial | None:
    """The least staleness that allows for ``period`` with each hand-over ``late`` seconds late, if any does."""
    last, limit = times.num_stages - 1, period * (1 + _ROUNDING)
    top = times.duration(FORWARD, last, weights)
    if top > limit:
        return None
    # Backward first, the last stage's gradient can be used in the next tick at the earliest.
    parts = [_Partial(0, top, int(order == "backward_first"), 0, (0,), (False,))]
    singles = math.inf if times.host == 0 else limit / times.host - times.num_stages
    for stage in reversed(range(last)):
        grown = []
        for joined in _choices(times, order, stage):
            forward, backward, work = _seconds(times, weights, stage, joined)
            if work <= limit:
                transfers = times.up[stage] + times.down[stage] + 2 * late
                grown += [_grow(part, forward, backward, transfers, joined, order, period) for part in parts]
        parts = _undominated([part for part in grown if part.singles <= singles], counting=times.host > 0)
    return min(parts, key=lambda part: (part.total, sum(part.lags), part.singles), default=None)


def _grow(
    part: _Partial, forward: float, backward: float, transfers: float, joined: bool, order: Order, period: float
) -> _Partial:
    """The least lag for one more stage below."""
    early = int(order == "backward_first")
    turnaround = forward + transfers + part.out
    if joined:
        lag = max(_ceil(turnaround, period), part.reach)
        turnaround = max(turnaround, period * lag)
    else:
        lag = max(_ceil(turnaround + backward, period) - 1 + early, early, part.reach)
        turnaround = max(turnaround, period * (lag - early) + forward)
    return _Partial(
        part.total + lag - early,
        turnaround + backward,
        lag + 2 * joined,  # it is joined only where both its edges below have a delay
        part.singles + (not joined),
        (lag, *part.lags),
        (joined, *part.joined),
    )


def _ceil(seconds: float, period: float) -> int:
    return math.ceil(seconds / period * (1 - _ROUNDING)) if period else 0


def _undominated(parts: list[_Partial], counting: bool) -> list[_Partial]:
    """Those that are not behind another in everything that matters below."""
    kept: list[_Partial] = []
    for part in sorted(parts, key=lambda part: part[:4]):
        if not any(
            one.out <= part.out and one.reach <= part.reach and (one.singles <= part.singles or not counting)
            for one in kept
        ):
            kept.append(part)
    return kept


def _schedule(part: _Partial, order: Order, weights: Weights, name: str) -> DelaySchedule:
    """Splits the lag of each edge evenly: a delay on the way up lets a host that waits for losses feed ahead."""
    p, q, last = [], [], len(part.lags) - 1
    for edge in range(last):
        lag = part.lags[edge] - part.lags[edge + 1]
        if order == "forward_first":
            down = lag // 2
        elif part.joined[edge + 1] or edge + 1 == last:
            down = (lag + 1) // 2  # at least 1, as the last stage's gradient must wait and joining asks for
        else:
            down = 0  # keeps the stage above from being joined
        p.append(lag - down)
        q.append(down)
    return DelaySchedule(name=name, num_stages=last + 1, p=tuple(p), q=tuple(q), order=order, weights=weights)


def _brief(values: Sequence[object]) -> str:
    if len(set(values)) == 1 and len(values) > 1:
        return f"{values[0]} everywhere"
    if len(values) <= 8:
        return " / ".join(map(str, values)) or "-"
    return f"{values[0]} / {values[1]} / ... / {values[-2]} / {values[-1]}"


def _levels(schedule: DelaySchedule) -> str:
    return _brief([level for (level,) in staleness(schedule)])


def _total(schedule: DelaySchedule) -> int:
    return sum(levels[0] for levels in staleness(schedule))


def _slower(found: Plan, total: int) -> float:
    """The least seconds per batch with less staleness than ``total``."""
    times, weights = found.times, found.schedule.weights
    late = found.jitter * max(times.work(stage, weights) for stage in range(times.num_stages))

    def serves(period: float) -> bool:
        choices = (_least(times, weights, order, period, late) for order in found.orders)
        return any(part is not None and part.total < total for part in choices)

    fast, slow = found.best, times.serial * 2 + sum(times.up) + sum(times.down) + 2 * late * times.num_stages
    slow += 2 * times.num_stages * times.host
    while slow - fast > 1e-6 * slow:
        middle = (fast + slow) / 2
        fast, slow = (fast, middle) if serves(middle) else (middle, slow)
    return slow
