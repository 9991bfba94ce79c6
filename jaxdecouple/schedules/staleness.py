"""Staleness counts the updates a stage made between a batch's forward and the update that consumes its gradient.

It is found by walking a schedule's operations, not by a formula; the papers' formulas are what the tests compare with.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from jaxdecouple.schedules.schedule import FORWARD, Schedule


class GradientAge(NamedTuple):
    """Where one gradient comes from and where it goes, at one stage. Versions count the stage's updates before.

    Attributes:
      stage: the stage.
      batch: the batch.
      lag: ticks between the batch's forward and its backward (where that is split, its ``WEIGHT``).
      forward_version: the weights that the forward used.
      backward_version: the weights at hand when that was dispatched.
      update_version: the weights that the update which consumes the gradient replaces.
    """

    stage: int
    batch: int
    lag: int
    forward_version: int
    backward_version: int
    update_version: int

    @property
    def staleness(self) -> int:
        """Level of staleness (ADL, eqs. 14 and 17)."""
        return self.update_version - self.forward_version


def ends_group(batch: int, accumulate: int) -> bool:
    """Whether ``batch`` is the last of its accumulation group; groups are batches 0..M-1, M..2M-1, ... everywhere."""
    return (batch + 1) % accumulate == 0


def gradient_ages(schedule: Schedule, num_batches: int, accumulate: int = 1) -> list[GradientAge]:
    """The age of every gradient that a run over ``num_batches`` batches, flush included, consumes.

    Stages that learn locally consume a gradient in the forward that made it. What their auxiliary networks learn from
    later is not counted.

    Args:
      schedule: a valid schedule.
      num_batches: batches fed.
      accumulate: M. Gradients of a last, incomplete group are consumed by no update and are left out.
    """
    version = [0] * schedule.num_stages
    forwarded: dict[tuple[int, int], tuple[int, int]] = {}  # (stage, batch) -> (version, tick)
    group: dict[int, list[GradientAge]] = defaultdict(list)
    ages: list[GradientAge] = []
    for tick, ops in schedule.run(num_batches):
        for kind, stage, batch in ops:
            if kind is FORWARD:
                forwarded[stage, batch] = version[stage], tick
            if kind is not schedule.updates_in(stage):
                continue
            seen, since = forwarded.pop((stage, batch))
            age = GradientAge(stage, batch, tick - since, seen, version[stage], -1)
            group[stage].append(age)
            if ends_group(batch, accumulate):
                ages += [age._replace(update_version=version[stage]) for age in group.pop(stage)]
                version[stage] += 1
    return ages


def is_synchronous(schedule: Schedule, accumulate: int = 1) -> bool:
    """Whether all stages update as one network would: in one tick, by the gradients of the weights at hand."""
    if any(map(any, staleness(schedule, accumulate))):
        return False
    ticks: dict[int, set[int]] = defaultdict(set)  # by batch that ends a group
    for tick, ops in schedule.run(2 * accumulate * schedule.repeats):
        for kind, stage, batch in ops:
            if kind is schedule.updates_in(stage) and ends_group(batch, accumulate):
                ticks[batch].add(tick)
    return all(len(found) == 1 for found in ticks.values())


def staleness(schedule: Schedule, accumulate: int = 1) -> tuple[tuple[int, ...], ...]:
    """Level of staleness in the steady state: ``staleness(...)[stage][j]`` for the j-th batch of a group of M.

    For delays with lag d it is max(0, ceil((d - j) / M)) forward first and max(0, ceil((d - 1 - j) / M)) backward
    first. Where groups differ from one another, as with rounds of another length than M, it is the largest.
    """
    warmup = schedule.repeats + accumulate
    ages = gradient_ages(schedule, 2 * warmup + accumulate * schedule.repeats, accumulate)
    levels = [[0] * accumulate for _ in range(schedule.num_stages)]
    for age in ages:
        if age.batch >= warmup:
            row, j = levels[age.stage], age.batch % accumulate
            row[j] = max(row[j], age.staleness)
    return tuple(map(tuple, levels))


def missed_updates(schedule: Schedule, accumulate: int = 1) -> tuple[int, ...]:
    """For each stage, the updates that it misses while the pipeline fills: its first comes so much later than at once.

    In thesis, Algorithms 9 to 11, stage k has no gradient before iteration t = K - 1 - k. With accumulation M a tick
    counts as an M-th of an update.
    """
    first: dict[int, int] = {}
    for tick, ops in schedule.run(accumulate):
        for kind, stage, batch in ops:
            if batch == accumulate - 1 and kind is schedule.updates_in(stage):
                first.setdefault(stage, tick)
    return tuple(first[stage] // accumulate for stage in range(schedule.num_stages))
