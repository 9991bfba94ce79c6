"""A report sets the methods of a comparison side by side: a table on screen, the same as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from experiments.report.markdown import markdown
from jaxdecouple import schedules
from jaxdecouple.schedules import DelaySchedule, Schedule


@dataclasses.dataclass(frozen=True)
class Row:
    """One method's results.

    Attributes:
      label: the method and what sets it apart.
      schedule: what it ran.
      accumulate: M.
      test_errors: of the final weights, a fraction for each seed.
      images_per_second: median.
      speedup: against back-propagation, measured in the same run.
    """

    label: str
    schedule: Schedule
    accumulate: int
    test_errors: Sequence[float]
    images_per_second: float
    speedup: float

    def cells(self) -> list[str]:
        """The row's text, in the order of `HEADER`."""
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
            " | ".join(_levels(row) for row in levels),
            f"{100 * mean:.2f} ± {100 * spread:.2f}",
            f"{self.images_per_second:.0f}",
            f"{self.speedup:.2f}",
        ]


HEADER = ["method", "p", "q", "weights", "staleness by stage", "test error, %", "images/s", "speed vs BP"]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return mean, (squares / (len(values) - 1)) ** 0.5 if len(values) > 1 else 0.0


def as_text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    table = [HEADER, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def as_markdown(rows: Sequence[Row]) -> str:
    """The table for a README."""
    return markdown([HEADER, *([cell.replace("|", "/") for cell in row.cells()] for row in rows)])


def _list(values: Sequence[int]) -> str:
    return ",".join(map(str, values)) or "-"


def _levels(levels: Sequence[int]) -> str:
    """One number where all gradients of a group are equally old, else each of them."""
    return str(levels[0]) if len(set(levels)) == 1 else ",".join(map(str, levels))
