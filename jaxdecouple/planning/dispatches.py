"""Dispatches are what the host hands to devices: single operations, or a backward joined with the forward after it.

A run is flattened here into arrays over its operations, in dispatch order, with what each has to wait for.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Sequence

import numpy as np

from jaxdecouple.planning.times import Times
from jaxdecouple.schedules import BACKWARD, FORWARD, Kind, Op, Schedule, ScheduleError, join

_KINDS = tuple(Kind)
_PLACES = {kind: place for place, kind in enumerate(_KINDS)}


@dataclasses.dataclass(frozen=True, eq=False)
class Dispatches:
    """A run's operations in dispatch order, N of them, in D dispatches.

    Attributes:
      kind: [N], which of `schedules.Kind`, by its place there; ``stage``, ``batch``, ``tick``: [N], where it belongs.
      dispatch: [N], the dispatch that the operation is part of: 0..D-1, not descending.
      source: [N], the operation whose result this one needs from a neighbour, or -1.
      transfer: [N], seconds from the end of that operation until its result is here.
      link: [N], the in-order link on which it travels: 0..2K-3, or 2K-2 for an operation that needs none.
      device: [D], where the dispatch runs; ``duration``: [D], its seconds.
      awaited: [D], the loss, as an operation, that must exist before the host issues the dispatch, or -1.
    """

    kind: np.ndarray
    stage: np.ndarray
    batch: np.ndarray
    tick: np.ndarray
    dispatch: np.ndarray
    source: np.ndarray
    transfer: np.ndarray
    link: np.ndarray
    device: np.ndarray
    duration: np.ndarray
    awaited: np.ndarray

    @property
    def backward(self) -> np.ndarray:
        """[N], whether the operation is a ``BACKWARD``."""
        return self.kind == _PLACES[BACKWARD]

    @property
    def letters(self) -> np.ndarray:
        """[N], "F", "B" or "W"."""
        return np.array([kind.value for kind in _KINDS])[self.kind]

    @property
    def members(self) -> list[tuple[int, ...]]:
        """The one or two operations of each dispatch."""
        first = np.searchsorted(self.dispatch, np.arange(len(self.device))).tolist()
        return [tuple(range(*ends)) for ends in itertools.pairwise([*first, len(self.dispatch)])]


def flatten(
    schedule: Schedule, times: Times, num_batches: int, devices: Sequence[int], run_ahead: int | None
) -> Dispatches:
    """The dispatches of a run over ``num_batches`` batches, flush included.

    Raises:
      ScheduleError: an operation is listed twice or before its input.
    """
    joining = times.joined is not None and not schedule.splits_backward
    kind, stage, batch, tick, dispatch = _operations(schedule, num_batches, joining)
    backward = kind == _PLACES[BACKWARD]
    source = _sources(schedule, kind, stage, batch, tick)
    edges = schedule.num_stages - 1
    losses = np.flatnonzero((stage == edges) & (kind == _PLACES[FORWARD]))
    # Links 0..K-2 carry activations to the stage above, K-1..2K-3 gradients to the stage below.
    link = np.where(source < 0, 2 * edges, np.where(backward, edges + stage, stage - 1))
    place = np.asarray(devices)
    near = place[1:] == place[:-1]  # neighbours on one device hand over at once
    seconds = np.concatenate([np.where(near, 0.0, times.up), np.where(near, 0.0, times.down), [0.0]])
    heads = np.flatnonzero(np.diff(dispatch, prepend=-1))
    paired = np.diff(heads, append=len(dispatch)) == 2
    policy = schedule.weights, schedule.learning, schedule.splits_backward
    single = np.array([[times.duration(each, k, *policy) for k in range(edges + 1)] for each in _KINDS])
    together = np.array([*(times.joined or (0.0,) * edges), 0.0])
    duration = np.where(paired, together[stage[heads]], single[kind[heads], stage[heads]])
    return Dispatches(
        kind=kind,
        stage=stage,
        batch=batch,
        tick=tick,
        dispatch=dispatch,
        source=source,
        transfer=seconds[link],
        link=link,
        device=place[stage[heads]],
        duration=duration,
        awaited=_awaited(tick, losses, num_batches, run_ahead)[heads],
    )


def _operations(schedule: Schedule, num_batches: int, joining: bool) -> tuple[np.ndarray, ...]:
    flat: list[Op] = []
    ticks, counts, order, heads = [], [], [], []
    patterns: dict[object, tuple[np.ndarray, np.ndarray]] = {}  # joining is slow, and most ticks are alike
    for tick, ops in schedule.run(num_batches):
        if joining and ops:
            kinds, stages, batches = zip(*ops, strict=True)
            pattern = (kinds, stages, tuple(map(operator.sub, batches, itertools.repeat(tick))))
            if pattern not in patterns:
                patterns[pattern] = _joined(ops)
            places, head = patterns[pattern]
            order.append(places + len(flat))
            heads.append(head)
        flat.extend(ops)
        ticks.append(tick)
        counts.append(len(ops))
    if not flat:
        raise ScheduleError(f"schedule {schedule.name!r} has no operation in a run over {num_batches} batches")
    kinds, stages, batches = zip(*flat, strict=True)
    columns = [np.array([_PLACES[kind] for kind in kinds]), np.array(stages), np.array(batches)]
    columns.append(np.repeat(ticks, counts))
    if not joining:
        return *columns, np.arange(len(flat))
    return *(column[np.concatenate(order)] for column in columns), np.cumsum(np.concatenate(heads)) - 1


def _joined(ops: Sequence[Op]) -> tuple[np.ndarray, np.ndarray]:
    """For the tick's operations in the order of their dispatches: their places in ``ops``, and which begin one."""
    places = {op: place for place, op in enumerate(ops)}
    dispatches = join(ops)
    heads = [op is dispatch[0] for dispatch in dispatches for op in dispatch]
    return np.array([places[op] for dispatch in dispatches for op in dispatch]), np.array(heads, int)


def _sources(
    schedule: Schedule, kind: np.ndarray, stage: np.ndarray, batch: np.ndarray, tick: np.ndarray
) -> np.ndarray:
    """Where each operation's input comes from."""
    last, count = schedule.num_stages - 1, len(stage)
    index = np.arange(count)
    place = np.full((len(_KINDS), schedule.num_stages, int(batch.max()) + 1), -1)
    place[kind, stage, batch] = index
    forward, backward, weight = (kind == _PLACES[each] for each in _KINDS)
    learning = np.array([schedule.learns_in_forward(k) for k in range(last + 1)])
    higher = np.minimum(stage + 1, last)
    above = place[(~learning[higher]).astype(int), higher, batch]
    below = np.where(stage > 0, place[0, np.maximum(stage - 1, 0), batch], -1)
    source = np.select([forward, backward], [below, above], -1)
    needs = backward | (forward & (stage > 0))
    twice = place[kind, stage, batch] != index
    early = needs & ((source < 0) | (source >= index))
    early |= ~forward & (place[0, stage, batch] > index)
    early |= weight & (place[1, stage, batch] > index)
    for wrong, what in ((twice, "is listed twice; write it once"), (early, "its input does not exist yet")):
        if wrong.any():
            at = int(np.argmax(wrong))
            op = Op(_KINDS[kind[at]], int(stage[at]), int(batch[at]))
            raise ScheduleError(f"schedule {schedule.name!r}, tick {tick[at]}: {op}: {what}")
    return source


def _awaited(tick: np.ndarray, losses: np.ndarray, num_batches: int, run_ahead: int | None) -> np.ndarray:
    if run_ahead is None or not len(losses):
        return np.full(len(tick), -1)
    # The host waits only before ticks that feed a batch; a flush is dispatched as it comes.
    before = np.searchsorted(tick[losses], np.minimum(tick, num_batches - 1)) - run_ahead
    return np.where(before >= 0, losses[np.maximum(before, 0)], -1)
