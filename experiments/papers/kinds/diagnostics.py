"""Rows that are training runs watched from within: the sufficient-direction constant, the gradients' difference."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from experiments.papers.kinds import training
from experiments.papers.table import DIVERGES, Column, Measure, Result, Scale
from experiments.report import plots
from experiments.training.config import Config
from experiments.training.progress import Diagnosis, diagnosis_of
from jaxdecouple.diagnostics import DirectionRecord, GradientRecord

EVERY = {"small": 3, "paper": 390}  # ticks between two probes of a kind; the paper's: about an epoch


def config_of(settings: Mapping[str, Any], scale: Scale) -> Config:
    """That of a training run, with how often it is looked at."""
    return dataclasses.replace(training.config_of(settings, scale), diagnose_every=EVERY[scale.name])


def records(result: Result) -> list[Diagnosis]:
    """What the probes of a run found."""
    return [diagnosis_of(record) for record in result["diagnostics"]]


def _column(header: str, value: Callable[[Result], float]) -> Column:
    return Column(header, lambda result: DIVERGES if result["diverged"] else value(result))


def _mean(header: str, probe: type, field: str, stage: int, half: int) -> Column:
    """Of a field, at a stage, over the first (0) or second (1) half of a run."""

    def mean(result: Result) -> float:
        values = [getattr(record, field)[stage] for record in records(result) if isinstance(record, probe)]
        values = [value for value in values if value is not None]
        middle = len(values) // 2
        return statistics.fmean(values[middle:] if half else values[:middle] or values)

    return _column(header, mean)


def _least_sigma(result: Result) -> float:
    found = [record.sigma_all for record in records(result) if isinstance(record, DirectionRecord)]
    return min(sigma for sigma in found if sigma is not None)


def _draw(result: Result, path: pathlib.Path, title: str) -> None:
    plots.diagnostics(records(result), path, title)


def _measure(unit: str, *columns: Column) -> Measure:
    return Measure(kind="diagnostics", settings=config_of, run=training.run, unit=unit, columns=columns, draw=_draw)


SIGMA = _measure(
    "sigma",
    _column("sigma, least", _least_sigma),
    _mean("lowest stage, first half", DirectionRecord, "sigma", 0, 0),
    _mean("lowest stage, second half", DirectionRecord, "sigma", 0, 1),
)
GRADIENT_DIFFERENCE = _measure(
    "difference",
    _mean("difference over the norm: lowest stage, first half", GradientRecord, "difference", 0, 0),
    _mean("lowest, second half", GradientRecord, "difference", 0, 1),
    _mean("last but one, first half", GradientRecord, "difference", -2, 0),
    _mean("last but one, second half", GradientRecord, "difference", -2, 1),
)
