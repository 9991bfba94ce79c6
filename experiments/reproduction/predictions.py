"""Rows that need no training: what a schedule lets follow from equal stages, and how stale its gradients are."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jaxdecouple as jd
from experiments.reproduction.config import row_config
from experiments.reproduction.kind import Column, Emit, Kind, Scale
from jaxdecouple import schedules
from jaxdecouple.schedules import Schedule

BACKWARD = 2.0  # times as long as a forward, as the papers take it


def scaled(settings: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """The same at every scale."""
    return dict(settings)


def schedule_of(settings: Mapping[str, Any]) -> Schedule:
    """The schedule of a method, from the settings of a config that concern it."""
    names = ("method", "num_stages", "accumulate", "order", "weights", "p", "m")
    given = {name: settings[name] for name in names if name in settings}
    return row_config({name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}).schedule()


def ideal_speedup(schedule: Schedule) -> float:
    """Of K equal stages with free transfers, over the whole network on one device."""
    stages = schedule.num_stages
    times = jd.Times(forward=[1 / stages] * stages, backward=[BACKWARD / stages] * stages)
    return jd.timeline(schedule, times).speedup


def _run_ideal(settings: Mapping[str, Any], seeds: Sequence[int], emit: Emit) -> None:
    for seed in seeds:
        emit(seed, {"speedup": ideal_speedup(schedule_of(settings))})


def _run_staleness(settings: Mapping[str, Any], seeds: Sequence[int], emit: Emit) -> None:
    levels = schedules.staleness(schedule_of(settings), settings["accumulate"])[settings["stage"]]
    for seed in seeds:
        emit(seed, {"staleness": statistics.fmean(levels)})


IDEAL = Kind(
    scaled,
    _run_ideal,
    {"speedup": ("speed-up, as the formula says", (Column("speed-up, simulated", lambda result: result["speedup"]),))},
    seeded=False,
)
STALENESS = Kind(
    scaled,
    _run_staleness,
    {"staleness": ("mean staleness (eq. 17)", (Column("mean staleness", lambda result: result["staleness"]),))},
    seeded=False,
)
