"""Rows that need no training: what a schedule lets follow from equal stages, and how stale its gradients are."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jaxdecouple as jd
from experiments.papers.table import Column, Emit, Measure, Scale
from experiments.training.config import Config
from jaxdecouple import schedules
from jaxdecouple.schedules import Schedule

BACKWARD = 2.0  # times as long as a forward, as the papers take it
METHOD = ("method", "accumulate", "order", "weights", "p", "m")  # settings that belong to the method alone


def schedule_of(settings: Mapping[str, Any]) -> Schedule:
    """The schedule of a method, from the settings that concern it."""
    return Config(**{name: settings[name] for name in ("num_stages", *METHOD) if name in settings}).schedule()


def equal_stages(schedule: Schedule) -> jd.Times:
    """Times of equal stages with free transfers; a stage's forward is the unit."""
    return jd.Times(forward=[1.0] * schedule.num_stages, backward=[BACKWARD] * schedule.num_stages)


def _unchanged(settings: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    return dict(settings)


def _run_ideal(settings: Mapping[str, Any], seeds: Sequence[int], emit: Emit) -> None:
    schedule = schedule_of(settings)
    for seed in seeds:
        emit(seed, {"speedup": jd.timeline(schedule, equal_stages(schedule)).speedup})


def _run_staleness(settings: Mapping[str, Any], seeds: Sequence[int], emit: Emit) -> None:
    levels = schedules.staleness(schedule_of(settings), settings["accumulate"])[settings["stage"]]
    for seed in seeds:
        emit(seed, {"staleness": statistics.fmean(levels)})


IDEAL_SPEEDUP = Measure(
    kind="ideal",
    settings=_unchanged,
    run=_run_ideal,
    unit="speed-up, as the formula says",
    columns=(Column("speed-up, simulated", lambda result: result["speedup"]),),
    seeded=False,
)
STALENESS = Measure(
    kind="staleness",
    settings=_unchanged,
    run=_run_staleness,
    unit="mean staleness (eq. 17)",
    columns=(Column("mean staleness", lambda result: result["staleness"]),),
    seeded=False,
)
