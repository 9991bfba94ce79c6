"""Tables: rows of text as Markdown or for a terminal; those of a comparison and of a benchmark."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any, ClassVar

from experiments.measure import throughput
from jaxdecouple import schedules
from jaxdecouple.schedules import DelaySchedule, Schedule


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(rows: Sequence[Sequence[str]]) -> str:
    """The same for a terminal; long headings in two lines."""
    heads = [_halves(name) for name in rows[0]]
    table = [[a for a, _ in heads], [b for _, b in heads], *rows[1:]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*lines[:2], "-" * max(map(len, lines)), *lines[2:]])


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def as_table(results: Sequence[Comparison | Measured]) -> list[list[str]]:
    """For `markdown` and `text`."""
    return [list(results[0].HEADER), *(result.cells() for result in results)]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One method's results in a comparison.

    Attributes:
      label: the method and what sets it apart.
      schedule: what it ran.
      accumulate: M.
      test_errors: of the final weights, a fraction for each seed.
      images_per_second: median.
      speedup: against back-propagation, measured in the same run.
    """

    HEADER: ClassVar = ("method", "p", "q", "weights", "staleness by stage", "test error, %", "images/s", "speed vs BP")

    label: str
    schedule: Schedule
    accumulate: int
    test_errors: Sequence[float]
    images_per_second: float
    speedup: float

    def cells(self) -> list[str]:
        """The row's text, in the order of ``HEADER``."""
        mean, spread = mean_and_spread(self.test_errors)
        levels = schedules.staleness(self.schedule, self.accumulate)
        late = any(any(row) for row in levels)
        delays = isinstance(self.schedule, DelaySchedule)
        return [
            self.label,
            _list(self.schedule.p) if delays else "flush",
            (_list(self.schedule.q) if self.schedule.has_backward(0) else "-") if delays else "flush",
            # Without staleness, and without a second forward, the policies are one and the same.
            self.schedule.weights if late or schedules.redoes_forward(self.schedule.weights) else "-",
            " / ".join(map(_levels, levels)),
            f"{100 * mean:.2f} ± {100 * spread:.2f}",
            f"{self.images_per_second:.0f}",
            f"{self.speedup:.2f}",
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What a benchmark measured of one trainer. Fields that only a pipeline has are empty for other trainers.

    Attributes:
      label: of the row.
      batch_size: images per tick; ``accumulate``: ticks per update.
      images_per_second: one measurement per repeat.
      ratios: of these to the one worker's, within each repeat.
      predicted_images_per_second: what the timeline makes of the times of single operations.
      predicted_ratio: the same against the one worker's median.
      rounds: the times of single operations (`operation_times.Round`), one measurement per repeat.
      host_seconds: of each measured tick, spent in `Pipeline.step`, all stages together.
      host_processor_seconds: those of them that the host's thread was on a processor.
      compile_seconds, compilations: from the first batch until the pipeline was filled.
      peak_bytes: for each device; empty where not measured.
      staleness: for each stage the staleness of each gradient of a group.
      weights: the policy of a backward pass; ``schedule``: what was dispatched.
      layers_per_stage: the cut.
    """

    HEADER: ClassVar = (
        *("trainer", "images/s", "range", "ratio to one worker", "predicted", "host, ms per stage and tick"),
        *("compilation, s", "compilations", "peak MB per device", "staleness by stage", "layers by stage"),
    )

    label: str
    batch_size: int
    accumulate: int
    images_per_second: list[float]
    ratios: list[float]
    predicted_images_per_second: float | None = None
    predicted_ratio: float | None = None
    rounds: list[Any] = dataclasses.field(default_factory=list)
    host_seconds: list[float] = dataclasses.field(default_factory=list)
    host_processor_seconds: list[float] = dataclasses.field(default_factory=list)
    compile_seconds: float
    compilations: int
    peak_bytes: list[int]
    staleness: list[list[int]] = dataclasses.field(default_factory=list)
    weights: str = ""
    schedule: str = ""
    layers_per_stage: list[int]

    @property
    def ratio(self) -> float:
        """Images per second against the one worker: the median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def host_ms(self) -> float | None:
        """Milliseconds per stage and tick that the host spends in `Pipeline.step`, median."""
        if not self.host_seconds:
            return None
        return 1e3 * statistics.median(self.host_seconds) / len(self.layers_per_stage)

    def cells(self) -> list[str]:
        """The row's text, in the order of ``HEADER``."""
        rates = self.images_per_second
        return [
            self.label,
            _rate(statistics.median(rates)),
            f"{_rate(min(rates))}..{_rate(max(rates))}",
            f"{self.ratio:.2f}",
            "-" if self.predicted_ratio is None else f"{self.predicted_ratio:.2f}",
            "-" if self.host_ms is None else f"{self.host_ms:.2f}",
            f"{self.compile_seconds:.1f}",
            str(self.compilations),
            " / ".join(f"{peak / 1e6:.0f}" for peak in self.peak_bytes) or "-",
            " / ".join(map(_levels, self.staleness)) or "-",
            " + ".join(map(str, self.layers_per_stage)),
        ]


def against(results: Sequence[Measured], label: str) -> str:
    """A line: how fast the others are against that row."""
    base = next(result for result in results if result.label == label)
    ratios = {r.label: throughput.ratio(r.images_per_second, base.images_per_second) for r in results if r is not base}
    return f"against {label}: {', '.join(f'{other} {ratio:.2f}' for other, ratio in ratios.items())}"


def _list(values: Sequence[int]) -> str:
    return ",".join(map(str, values)) or "-"


def _levels(levels: Sequence[int]) -> str:
    """One number where all gradients of a group are equally old, else each of them."""
    return str(levels[0]) if len(set(levels)) == 1 else ",".join(map(str, levels))


def _rate(value: float) -> str:
    """Without decimals where there are three digits anyway."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _halves(name: str) -> tuple[str, str]:
    """A long heading in two lines, cut at the space nearest to its middle."""
    spaces = [index for index, character in enumerate(name) if character == " "]
    if len(name) < 10 or not spaces:
        return "", name
    middle = min(spaces, key=lambda index: abs(index - len(name) // 2))
    return name[:middle], name[middle + 1 :]
