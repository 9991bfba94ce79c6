"""A kind of row: what it takes to run one, and which numbers come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.reproduction.rows import DIVERGES

SCALES = ("small", "paper")
Result = Mapping[str, Any]  # JSON-able
Emit = Callable[[int, Result], Any]  # called with each seed and its result, as soon as it is there


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of the paper's setting is run.

    Attributes:
      name: ``paper``, exactly as printed, or ``small``, as `small` maps it.
      dataset: in place of the paper's, or of the digits; empty: no other.
      epochs: of a small run; 0: as `small` has it.
      data_dir: as for `experiments.train`.
    """

    name: str
    dataset: str = ""
    epochs: int = 0
    data_dir: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table of results.

    Attributes:
      header: with the unit.
      value: the number of one result, `DIVERGES`, or ``None`` if it has none.
      digits: after the decimal point.
    """

    header: str
    value: Callable[[Result], float | str | None]
    digits: int = 2


@dataclasses.dataclass(frozen=True)
class Kind:
    """How rows of a kind are run.

    Attributes:
      scaled: the paper's settings and a scale to the settings that are run, which are JSON-able.
      run: runs these settings once for each seed. It raises ValueError if they cannot be run.
      measures: name -> the unit of the paper's number, and the columns to set beside it, the comparable one first.
      seeded: whether results depend on a seed; otherwise there is one, of seed 0.
    """

    scaled: Callable[[Mapping[str, Any], Scale], dict[str, Any]]
    run: Callable[[Mapping[str, Any], Sequence[int], Emit], None]
    measures: Mapping[str, tuple[str, Sequence[Column]]]
    seeded: bool = True


def diverged_or(value: Callable[[Result], float]) -> Callable[[Result], float | str]:
    """``value``, of a result that did not diverge."""
    return lambda result: DIVERGES if result.get("diverged") else value(result)
