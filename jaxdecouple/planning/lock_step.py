"""Lock-step: a tick ends for all workers at once, as in the published codes, which join all threads in every iteration.

Two rules are added to those of the simulation:

* nothing of a tick starts before everything of the tick before it has ended and arrived: "The communications among
  modules happen right before the iteration ends" (FDG, Figure 1);
* where a batch is forwarded through several stages within the tick, nothing is backwarded before that pass is through:
  DDG and Features Replay "require a full forward pass before parallelization" (FDG, section V-C; thesis, Algorithm 11).

For K equal stages and free transfers a tick then takes what FDG's Table II and the thesis's Table 3 print.
"""

from __future__ import annotations

import numpy as np

from jaxdecouple.planning.dispatches import Dispatches
from jaxdecouple.planning.times import Times
from jaxdecouple.schedules import Schedule


def in_lock_step(work: Dispatches, times: Times, schedule: Schedule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start and end of each dispatch, and the arrival of each operation's input."""
    heads = np.flatnonzero(np.diff(work.dispatch, prepend=-1))
    ticks = work.tick[heads].tolist()
    crossing = _crossing(work)
    through = _forward_part(times, schedule)
    source, transfer, link = work.source.tolist(), work.transfer.tolist(), work.link.tolist()
    backward, stage, dispatch = work.backward.tolist(), work.stage.tolist(), work.dispatch.tolist()
    consumers: list[list[int]] = [[] for _ in source]  # of each operation's result
    for op, origin in enumerate(source):
        if origin >= 0:
            consumers[origin].append(op)
    start, end, arrival = [0.0] * len(heads), [0.0] * len(heads), [0.0] * len(source)
    device_free, link_free = [0.0] * (int(work.device.max()) + 1), [0.0] * (max(link) + 1)
    begun = joined = played = issued = 0.0  # begun: the tick; joined: all of it so far; played: its forward pass
    lines = zip(work.device.tolist(), work.duration.tolist(), work.members, work.awaited.tolist(), strict=True)
    for index, (device, duration, members, loss) in enumerate(lines):
        if index and ticks[index] != ticks[index - 1]:
            begun = played = joined
        issued = max(issued, end[dispatch[loss]] if loss >= 0 else 0.0) + times.host
        waits = [arrival[op] for op in members if source[op] >= 0]
        if crossing[ticks[index]] and any(backward[op] for op in members):
            waits.append(played)
        start[index] = max(begun, device_free[device], issued, *waits)
        end[index] = device_free[device] = start[index] + duration
        joined = max(joined, end[index])
        for op in members:
            if not backward[op]:
                played = max(played, start[index] + through[stage[op]] * duration)
            for taker in consumers[op]:
                sent = max(end[index], link_free[link[taker]])
                arrival[taker] = link_free[link[taker]] = sent + transfer[taker]
                joined = max(joined, arrival[taker])
    return np.array(start), np.array(end), np.array(arrival)


def _crossing(work: Dispatches) -> np.ndarray:
    """[ticks], whether an activation crosses an edge within the tick."""
    taken = ~work.backward & (work.source >= 0)
    within = taken & (work.tick[work.source] == work.tick)
    found = np.zeros(int(work.tick.max()) + 1, bool)
    found[work.tick[within]] = True
    return found


def _forward_part(times: Times, schedule: Schedule) -> list[float]:
    """The part of each stage's ``FORWARD`` after which its output is known; it may contain the backward as well."""
    whole = [forward + backward for forward, backward in zip(times.forward, times.backward, strict=True)]
    return [
        times.forward[k] / whole[k] if schedule.learns_in_forward(k) and whole[k] else 1.0
        for k in range(schedule.num_stages)
    ]
