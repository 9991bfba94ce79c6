"""Rows that are training runs watched from within: the sufficient-direction constant, the gradients' difference."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from experiments.reproduction import training
from experiments.reproduction.kind import Column, Kind, Result, Scale, diverged_or
from jaxdecouple.diagnostics import DirectionRecord, GradientRecord

EVERY = {"small": 3, "paper": 390}  # ticks between two probes of a kind; the paper's: about an epoch
_PROBES = {probe.__name__: probe for probe in (GradientRecord, DirectionRecord)}


def scaled(settings: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """As of a training run, with how often it is looked at."""
    return training.scaled({**settings, "diagnose_every": EVERY[scale.name]}, scale)


def records(result: Result) -> list[GradientRecord | DirectionRecord]:
    """What the probes of a run found."""
    return [
        _PROBES[record["probe"]](**{name: value for name, value in record.items() if name != "probe"})
        for record in result["diagnostics"]
    ]


def _mean(probe: type, field: str, stage: int, half: int) -> Callable[[Result], float | str]:
    """Of a field, at a stage, over the first (0) or second (1) half of a run."""

    def mean(result: Result) -> float:
        values = [getattr(record, field)[stage] for record in records(result) if isinstance(record, probe)]
        values = [value for value in values if value is not None]
        middle = len(values) // 2
        return statistics.fmean(values[middle:] if half else values[:middle] or values)

    return diverged_or(mean)


def _least_sigma(result: Result) -> float:
    found = [record.sigma_all for record in records(result) if isinstance(record, DirectionRecord)]
    return min(sigma for sigma in found if sigma is not None)


MEASURES = {
    "sigma": (
        "sigma",
        (
            Column("sigma, least", diverged_or(_least_sigma)),
            Column("lowest stage, first half", _mean(DirectionRecord, "sigma", 0, 0)),
            Column("lowest stage, second half", _mean(DirectionRecord, "sigma", 0, 1)),
        ),
    ),
    "gradient_difference": (
        "difference",
        (
            Column("difference over the norm: lowest stage, first half", _mean(GradientRecord, "difference", 0, 0)),
            Column("lowest, second half", _mean(GradientRecord, "difference", 0, 1)),
            Column("last but one, first half", _mean(GradientRecord, "difference", -2, 0)),
            Column("last but one, second half", _mean(GradientRecord, "difference", -2, 1)),
        ),
    ),
}
KIND = Kind(scaled, training.run, MEASURES)
