"""Rows that need no training: what a schedule lets follow from equal stages, and how stale its gradients are."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jaxdecouple as jd
from experiments.papers import scales
from experiments.papers.scales import Scale
from experiments.papers.table import Column, Emit, Measure
from experiments.training.config import Config
from jaxdecouple import schedules
from jaxdecouple.schedules import Schedule

BACKWARD = 2.0  # times as long as a forward, as the papers take it
OPTIONS: dict[str, type] = {
    **{"method": str, "num_stages": int, "accumulate": int, "order": str, "weights": str, "p": tuple, "m": tuple},
    **{"stage": int, "auxiliary": float},
}
METHOD = ("method", "accumulate", "order", "weights", "p", "m")  # settings that belong to the method alone


def schedule_of(settings: Mapping[str, Any]) -> Schedule:
    """The schedule of a method, from the settings that concern it."""
    return Config(**{name: settings[name] for name in ("num_stages", *METHOD) if name in settings}).schedule()


def equal_stages(schedule: Schedule, auxiliary: float = 0.0) -> jd.Times:
    """Times of equal stages with free transfers; a stage's forward is the unit.

    Args:
      schedule: of the stages.
      auxiliary: what each stage below the last needs for its auxiliary network.
    """
    inner = schedule.num_stages - 1
    return jd.Times(forward=[1.0] * (inner + 1), backward=[BACKWARD + auxiliary] * inner + [BACKWARD])


def changed(settings: Mapping[str, Any], scale: Scale, known: Mapping[str, type]) -> dict[str, Any]:
    """The settings with the scale's changes.

    Raises:
      ValueError: rows of this kind, or the method, have no such setting.
    """
    found = {**settings, **scales.changed_values(scale.changes, known)}
    if scale.changes:
        schedule_of(found)
    return found


def _settings_of(settings: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    return changed(settings, scale, OPTIONS)


def _run_ideal(settings: Mapping[str, Any], seeds: Sequence[int], emit: Emit) -> None:
    schedule = schedule_of(settings)
    whole = equal_stages(schedule).serial  # back-propagation's, T_f + T_b
    times = equal_stages(schedule, settings.get("auxiliary", 0.0) * whole)
    free, joined = (whole / jd.timeline(schedule, times, lock_step=lock).seconds_per_batch for lock in (False, True))
    for seed in seeds:
        emit(seed, {"speedup": free, "lock_step_speedup": joined})


def _run_staleness(settings: Mapping[str, Any], seeds: Sequence[int], emit: Emit) -> None:
    levels = schedules.staleness(schedule_of(settings), settings["accumulate"])[settings["stage"]]
    for seed in seeds:
        emit(seed, {"staleness": statistics.fmean(levels)})


IDEAL_SPEEDUP = Measure(
    kind="ideal",
    settings=_settings_of,
    run=_run_ideal,
    unit="speed-up, as the formula says",
    columns=(
        Column("in lock-step, as the papers count", lambda result: result["lock_step_speedup"]),
        Column("waiting for data alone, as here", lambda result: result["speedup"]),
    ),
    seeded=False,
)
STALENESS = Measure(
    kind="staleness",
    settings=_settings_of,
    run=_run_staleness,
    unit="mean staleness (eq. 17)",
    columns=(Column("mean staleness", lambda result: result["staleness"]),),
    seeded=False,
)
