"""A row is one line, or one number, of a paper's table or figure: its settings, and what the paper reports for it."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DIVERGES = "diverges"  # the papers print a crossed circle, or say that it does not converge


@dataclasses.dataclass(frozen=True)
class Row:
    """One run, or one measurement, of a table.

    Attributes:
      name: within its table, such as ``resnet56/fdg_beta0.5``.
      settings: what sets it apart from the other rows of its table: fields of `RowConfig`, or of the table's kind.
      paper: the paper's number, in the table's unit; `DIVERGES`; ``None`` where it prints none.
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
      title: what it shows, and where.
      kind: how its rows are run, a key of `kinds.KINDS`.
      measure: which number of a run stands beside the paper's, one of the kind's measures.
      settings: what all rows have in common.
      rows: in the paper's order.
      statistic: how the paper sums up its runs.
      plot: whether learning curves belong to it.
    """

    title: str
    measure: str
    rows: Sequence[Row]
    kind: str = "training"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    statistic: str = "one run, as far as the paper says"
    plot: bool = False

    def settings_of(self, row: Row) -> dict[str, Any]:
        """All settings of a row, as the paper has them."""
        return {**self.settings, **row.settings}


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper's tables, by the names of their folders.

    Attributes:
      name: of the program's package below ``experiments``.
      title: of the paper.
      tables: name -> table, in the paper's order.
    """

    name: str
    title: str
    tables: Mapping[str, Table]

    def __post_init__(self) -> None:
        for name, table in self.tables.items():
            names = [row.name for row in table.rows]
            twice = sorted({row for row in names if names.count(row) > 1})
            if twice:
                raise ValueError(f"{self.name} {name} has rows of the same name: {', '.join(twice)}; rename them")

    def names(self) -> list[str]:
        """Every row as ``table/row``."""
        return [f"{name}/{row.name}" for name, table in self.tables.items() for row in table.rows]

    def choose(self, wanted: str) -> dict[str, list[Row]]:
        """The rows that ``wanted`` names: one row, or all below a table or a part of a name; empty: everything.

        Raises:
          ValueError: there is none; the message names the nearest.
        """
        chosen = {}
        for name, table in self.tables.items():
            rows = [row for row in table.rows if _is_below(f"{name}/{row.name}", wanted)]
            if rows:
                chosen[name] = rows
        if chosen:
            return chosen
        known = list(dict.fromkeys(path for row in self.names() for path in _paths(row)))
        near = difflib.get_close_matches(wanted.lower(), known, n=3, cutoff=0.4) or list(self.tables)
        raise ValueError(
            f"{self.name} has no row {wanted!r}; nearest: {', '.join(near)}; --list shows all rows, and an empty --row "
            "runs them"
        )


def load(name: str, title: str, tables: Iterable[str]) -> Paper:
    """The paper whose tables are ``TABLE`` of ``experiments.NAME.TABLE_NAME.rows``."""
    modules = {table: importlib.import_module(f"experiments.{name}.{table}.rows") for table in tables}
    return Paper(name, title, {table: module.TABLE for table, module in modules.items()})


def _is_below(path: str, wanted: str) -> bool:
    return not wanted or path == wanted or path.startswith(f"{wanted.rstrip('/')}/")


def _paths(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
