"""A curve is what was measured in one run, row after row; curves are compared by when they reach a target."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxdecouple.asynchronous import Record

Row = dict[str, Any]

_FOLDER = re.compile(r"\b(npz|libsvm):[^,]*/")
_FLOOR = 1e-15  # below it, differences are rounding


@dataclasses.dataclass(frozen=True)
class Curve:
    """A run.

    Attributes:
      about: what tells it from others: its method, data, workers and so on.
      rows: of numbers, one for each outer iteration; see `Record` for their names.
    """

    about: Mapping[str, Any]
    rows: Sequence[Row]

    def column(self, name: str) -> np.ndarray:
        """One number of all rows, NaN where it is missing."""
        values = [row.get(name) for row in self.rows]
        return np.array([math.nan if value is None else value for value in values], float)

    def reaches(self, target: float, of: str, within: str) -> float:
        """When the column ``of`` first is at most ``target``, in terms of the column ``within``; infinite, if never.

        Between two rows its logarithm is taken to go straight.
        """
        values, places = self.column(of), self.column(within)
        there = np.flatnonzero(values <= target)
        if not len(there):
            return math.inf
        at = there[0]
        if at == 0 or not values[at - 1] > target:
            return float(places[at])
        above, below = math.log(values[at - 1]), math.log(max(values[at], _FLOOR))
        share = (above - math.log(target)) / (above - below) if above > below else 1.0
        return float(places[at - 1] + min(share, 1.0) * (places[at] - places[at - 1]))

    def last(self, name: str) -> float:
        """The last number of a column."""
        return float(self.column(name)[-1])


def rows_of(records: Iterable[Record]) -> list[Row]:
    """The rows of a trace, with six significant digits."""
    return [rounded(record.as_json()) for record in records]


def rounded(row: Row) -> Row:
    """Six significant digits, and None in place of what is not finite."""
    return {name: _short(value) if isinstance(value, float) else value for name, value in row.items()}


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def draw(axes: Axes, curve: Curve, x: str, y: str, label: str | None = None, **style: Any) -> None:
    """Draws a column against another; what is not above 0 is left out where an axis is logarithmic."""
    xs, ys = curve.column(x), curve.column(y)
    if axes.get_xscale() == "log":
        xs = np.where(xs > 0, xs, np.nan)
    if axes.get_yscale() == "log":
        ys = np.where(ys > _FLOOR, ys, np.nan)
    axes.plot(xs, ys, label=label, **{"linewidth": 1.4, "marker": ".", "markersize": 4, **style})


def label_logarithms(axes: Axes) -> None:
    """Plain numbers at 1, 2, 3, 5 and 7 times the powers of ten, for axes that span few of them."""
    from matplotlib import ticker  # --help need not wait for it

    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 3, 5, 7)))


def colour(index: int) -> Any:
    """The colour of this number."""
    from matplotlib import colormaps  # --help need not wait for it

    return colormaps["tab10"](index % 10)


def shown(value: float) -> str:
    """A number for a table: three significant digits, or a dash where there is none."""
    return f"{value:.3g}" if math.isfinite(value) else "-"


def described(setting: Any) -> dict[str, Any]:
    """A setting for a report: files by their names, not by where they lie."""
    values = dataclasses.asdict(setting).items()
    return {name: [*map(named, value)] if isinstance(value, tuple) else named(value) for name, value in values}


def named(value: Any) -> Any:
    """A source's name without the folder of its file."""
    return _FOLDER.sub(r"\1:", value) if isinstance(value, str) else value


def by(curves: Iterable[Curve], *names: str) -> dict[Any, list[Curve]]:
    """The curves in groups that agree in what they are about by these names, in order; one name is its own key."""
    groups: dict[Any, list[Curve]] = {}
    for curve in curves:
        key = tuple(curve.about[name] for name in names)
        groups.setdefault(key if len(names) > 1 else key[0], []).append(curve)
    return groups
