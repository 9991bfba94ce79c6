"""Rows that are training runs watched from within: the sufficient-direction constant, the gradients' difference."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from experiments.papers.kinds import training
from experiments.papers.scales import Scale
from experiments.papers.table import DIVERGES, Column, Measure, Result
from experiments.report import plots
from experiments.training.config import Config
from experiments.training.progress import Diagnosis, diagnosis_of
from jaxdecouple.diagnostics import DirectionRecord, GradientRecord

EVERY = {"small": 20, "medium": 100, "paper": 390}  # ticks between two probes of a kind; the paper's: about an epoch
# Batches of the true gradient: the training set, or enough of it for a small standard error.
DIRECTION_BATCHES = {"small": 0, "medium": 50, "paper": 50}
PARTS = 10  # of a run, over which its least sigma is looked for: that of one probe is mostly noise


def config_of(settings: Mapping[str, Any], scale: Scale) -> Config:
    """That of a training run, with how often it is looked at."""
    return training.config_of({**settings, "diagnose_every": EVERY[scale.name]}, scale)


def direction_config_of(settings: Mapping[str, Any], scale: Scale) -> Config:
    """The same, its direction taken against the gradient of many batches (thesis, eq. 6.10)."""
    return config_of({**settings, "direction_batches": DIRECTION_BATCHES[scale.name]}, scale)


def records(result: Result) -> list[Diagnosis]:
    """What the probes of a run found."""
    return [diagnosis_of(record) for record in result["diagnostics"]]


def _column(header: str, value: Callable[[Result], float | None], digits: int = 2) -> Column:
    return Column(header, lambda result: DIVERGES if training.diverged(result) else value(result), digits)


def _values(result: Result, probe: type, field: str, stage: int) -> list[float]:
    found = [getattr(record, field)[stage] for record in records(result) if isinstance(record, probe)]
    return [value for value in found if value is not None]


def _mean(header: str, probe: type, field: str, stage: int, half: int, unit: float = 1.0) -> Column:
    """Of a field, at a stage, over the first (0) or second (1) half of a run."""

    def mean(result: Result) -> float:
        values = _values(result, probe, field, stage)
        middle = len(values) // 2
        return statistics.fmean(values[middle:] if half else values[:middle] or values) / unit

    return _column(header, mean)


def _least_sigma(result: Result) -> float:
    """Of all stages below the last and all parts of the run, the least mean."""
    stages = len(next(record.sigma for record in records(result) if isinstance(record, DirectionRecord)))
    means = []
    for stage in range(stages - 1):
        values = _values(result, DirectionRecord, "sigma", stage)
        size = -(-len(values) // PARTS)
        means += [statistics.fmean(values[start : start + size]) for start in range(0, len(values), size)]
    return min(means)


def _error(result: Result) -> float | None:
    values = _values(result, DirectionRecord, "sigma_error", 0)
    return statistics.fmean(values) if values else None


def _draw(result: Result, path: pathlib.Path, title: str) -> None:
    plots.diagnostics(records(result), path, title)


def _measure(unit: str, settings: Callable[[Mapping[str, Any], Scale], Config], *columns: Column) -> Measure:
    kind: dict[str, Any] = {"kind": "diagnostics", "run": training.run, "resumes": True, "draw": _draw}
    return Measure(**kind, settings=settings, unit=unit, columns=columns)


SIGMA = _measure(
    "sigma",
    direction_config_of,
    _column("sigma below the last stage, least tenth", _least_sigma),
    _mean("lowest stage, first half", DirectionRecord, "sigma", 0, 0),
    _mean("lowest stage, second half", DirectionRecord, "sigma", 0, 1),
    _column("its standard error, one probe", _error),
    _mean("last stage, never late: first half", DirectionRecord, "sigma", -1, 0),
    _mean("last stage, second half", DirectionRecord, "sigma", -1, 1),
)


def _difference(name: str, stage: int) -> list[Column]:
    halves = ("first half", "second half")
    return [
        *(
            _mean(f"{name}, {half}: mean of abs(difference), 1e-6", GradientRecord, "mean_absolute", stage, index, 1e-6)
            for index, half in enumerate(halves)
        ),
        *(
            _mean(f"{name}, {half}: norm over norm", GradientRecord, "difference", stage, index)
            for index, half in enumerate(halves)
        ),
    ]


# The first is what the caption of DSP's Figure 4 says: an average over the parameters.
GRADIENT_DIFFERENCE = _measure(
    "difference", config_of, *_difference("lowest stage", 0), *_difference("last but one", -2)
)
