"""Run-ahead is how many ticks a host may dispatch beyond the last finished loss."""

from __future__ import annotations

import functools

from jaxdecouple.planning.simulation import timeline
from jaxdecouple.planning.times import Times
from jaxdecouple.schedules import Schedule


@functools.cache
def least_run_ahead(schedule: Schedule) -> int:
    """The least run-ahead, at least 2, that does not slow ``schedule`` down; each tick of it costs memory.

    Where activations cross several stages within a tick (DDG, Features Replay, GPipe), a loss takes long to appear, and
    a host that waits for it too soon lets the first stages run dry. Judged by equal stages whose backward takes twice
    as long as their forward, with free transfers.
    """
    num_stages = schedule.num_stages
    times = Times(forward=[1.0] * num_stages, backward=[2.0] * num_stages)
    unlimited = timeline(schedule, times).seconds_per_batch
    run_ahead = 2
    while timeline(schedule, times, run_ahead=run_ahead).seconds_per_batch > 1.001 * unlimited:
        run_ahead += 1
    return run_ahead
