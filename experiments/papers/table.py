"""A table of a paper is its rows: what each row trains or measures, and the number that the paper prints for it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.papers.scales import Scale
from jaxdecouple.errors import did_you_mean

DIVERGES = "diverges"  # the papers print a crossed circle, or say that it does not converge
Result = Mapping[str, Any]  # JSON-able
Emit = Callable[[int, Result], Any]  # called with each seed and its result, as soon as it is there


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table of results.

    Attributes:
      header: with the unit.
      value: the number of one result, or a text; `DIVERGES`, or ``None`` if it has none.
      digits: after the decimal point.
    """

    header: str
    value: Callable[[Result], float | str | None]
    digits: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """How a row is run, and which number of the run stands beside the paper's.

    Attributes:
      kind: the kind of run. Measures of one kind share their runs.
      settings: from the paper's settings and a scale to the settings that are run: a dataclass or a mapping, JSON-able.
      run: runs these settings once for each seed. It raises ValueError if they cannot be run.
      resumes: whether a run that was stopped can be gone on with; then ``run`` also takes, for each seed, where to keep
        what that needs, and where to leave the weights, if they are wanted.
      unit: of the paper's number.
      columns: what to set beside that number, the comparable one first.
      seeded: whether results depend on a seed; otherwise there is one, of seed 0.
      draw: writes a picture of one result, with a title, if there is anything to draw.
    """

    kind: str
    settings: Callable[[Mapping[str, Any], Scale], Any]
    run: Callable[..., None]
    unit: str
    columns: Sequence[Column]
    seeded: bool = True
    resumes: bool = False
    draw: Callable[[Result, pathlib.Path, str], None] | None = None

    def seeds(self, wanted: Sequence[int]) -> Sequence[int]:
        """The seeds to run, of those that are wanted."""
        return wanted if self.seeded else (0,)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line, or one number, of a table or figure.

    Attributes:
      name: within its table, such as ``resnet56/fdg_beta0.5``.
      settings: what sets it apart from the other rows: fields of `experiments.training.config.Config`, or what the
        table's measure takes.
      paper: the paper's number, in the measure's unit; `DIVERGES`; ``None`` where it prints none.
      also: what else the paper says of it, such as a number of the original authors.
    """

    name: str
    settings: Mapping[str, Any]
    paper: float | str | None = None
    also: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table or figure of a paper.

    Attributes:
      title: where it is and what it shows.
      claim: what the paper finds in it: what to expect.
      measure: how its rows are run, and their number.
      rows: in the paper's order.
      settings: what all rows have in common.
      statistic: how the paper sums up its runs.
      plot: whether learning curves belong to it.

    Raises:
      ValueError: two rows have the same name.
    """

    title: str
    claim: str
    measure: Measure
    rows: Sequence[Row]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    statistic: str = "one run, as far as the paper says"
    plot: bool = False

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{self.title} has rows of the same name: {', '.join(twice)}; rename them")

    def settings_of(self, row: Row) -> dict[str, Any]:
        """All settings of a row, as the paper has them."""
        return {**self.settings, **row.settings}


def stages(count: int) -> dict[str, Any]:
    """K."""
    return {"num_stages": count}


def row_each(
    prefix: str, settings: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]], numbers: Sequence[Any]
) -> list[Row]:
    """A row for each method: named ``prefix`` and its name, with these settings and its own, and the paper's number."""
    return [
        Row(f"{prefix}{name}", {**settings, **method}, number)
        for (name, method), number in zip(methods.items(), numbers, strict=True)
    ]


def shown(table: Table, also: str, prefix: str = "") -> tuple[Row, ...]:
    """The rows of a table whose curves a figure shows, under names without ``prefix``, and with the remark ``also``."""
    return tuple(
        Row(row.name.removeprefix(prefix), row.settings, row.paper, also)
        for row in table.rows
        if row.name.startswith(prefix)
    )


def choose(tables: Mapping[str, Table], wanted: str) -> dict[str, list[Row]]:
    """The rows that ``wanted`` names: one row, or all below a table or a part of a name; empty: everything.

    Raises:
      ValueError: there is none; the message names the nearest.
    """
    below = f"{wanted.rstrip('/')}/" if wanted else ""
    chosen = {
        name: [row for row in table.rows if f"{name}/{row.name}/".startswith(below)] for name, table in tables.items()
    }
    chosen = {name: rows for name, rows in chosen.items() if rows}
    if not chosen:
        paths = [f"{name}/{row.name}".split("/") for name, table in tables.items() for row in table.rows]
        known = dict.fromkeys("/".join(path[:count]) for path in paths for count in range(1, len(path) + 1))
        hint = did_you_mean(wanted, known, most=3, cutoff=0.4)
        raise ValueError(f"there is no row {wanted!r}; {hint}--list shows all rows, and an empty --row runs them")
    return chosen
