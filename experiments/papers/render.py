"""A page of results: a section per table, a line per row, the paper's number beside ours, and learning curves."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from experiments.papers.store import Job
from experiments.papers.table import DIVERGES, Column, Result, Row, Table
from experiments.report import plots
from experiments.report.tables import markdown, mean_and_spread
from experiments.training.progress import EpochRecord

MISSING = "not run"


@dataclasses.dataclass(frozen=True)
class Line:
    """A row with what came out.

    Attributes:
      row: the row.
      job: what was run for it; ``None`` if that cannot be said, and ``reason`` says why.
      results: by seed.
      reason: why it was not run, or not wholly.
      same_as: the first row of the paper that is the same run, as ``table/row``: this row itself, if none is before it.
    """

    row: Row
    job: Job | None
    results: Mapping[int, Result]
    reason: str = ""
    same_as: str = ""


def section(name: str, table: Table, lines: Sequence[Line], pictures: Mapping[str, pathlib.Path]) -> str:
    """A table's section of the page: what the paper says, the results, and the pictures, by their captions."""
    counted = "" if len(lines) == len(table.rows) else f" {len(lines)} of {len(table.rows)} rows."
    text = f"## {name}: {table.title}\n\nThe claim: {table.claim}\n\n"
    text += f"The paper's numbers: {table.statistic}.{counted}\n\n"
    shown = "".join(f"\n\n![{caption}]({path.name})" for caption, path in pictures.items())
    return f"{text}{as_markdown(name, table, lines)}{shown}\n"


def as_markdown(name: str, table: Table, lines: Sequence[Line]) -> str:
    """The paper's number, then ours: mean and standard deviation over the seeds, and how many there are.

    Rows of one table that are the same run have one number, at the first of them.
    """
    measure = table.measure
    seeds = ["seeds"] if measure.seeded else []
    rows = [["row", f"paper: {measure.unit}", *(column.header for column in measure.columns), *seeds, "remarks"]]
    for line, twin in zip(lines, _twins(lines), strict=True):
        remarks = [line.row.also, line.reason]
        if twin:
            ours = [f"as {twin.row.name}", *[""] * (len(measure.columns) - 1 + len(seeds))]
        else:
            ours = [cell(column, line.results) for column in measure.columns] + [str(len(line.results))] * len(seeds)
            elsewhere = line.same_as and not line.same_as.startswith(f"{name}/")
            remarks += [_summed_up(table, line), f"same run as {line.same_as}" if elsewhere else ""]
        rows.append([line.row.name, paper_number(line.row.paper), *ours, "; ".join(filter(None, remarks))])
    return markdown(rows)


def paper_number(value: float | str | None) -> str:
    """As printed; - where the paper prints none."""
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def cell(column: Column, results: Mapping[int, Result]) -> str:
    """Mean ± standard deviation of the runs that did not diverge, and how many did; of texts, the first."""
    values = [column.value(result) for result in results.values()]
    if texts := [value for value in values if isinstance(value, str) and value != DIVERGES]:
        return texts[0]
    numbers = [value for value in values if isinstance(value, int | float)]
    lost = values.count(DIVERGES)
    if not values:
        return MISSING
    if not numbers:
        return DIVERGES if lost else "-"
    mean, spread = mean_and_spread(numbers)
    text = f"{mean:.{column.digits}f}"
    if len(numbers) > 1:
        text += f" ± {spread:.{column.digits}f}"
    return f"{text} ({lost} of {len(values)} diverge)" if lost else text


def draw(base: pathlib.Path, table: Table, lines: Sequence[Line], scale: str) -> dict[str, pathlib.Path]:
    """Writes a table's pictures, each run once: learning curves, and what its measure draws of the first seed.

    Args:
      base: of the files' paths, to which more and ``.png`` are added.
      table: whose results they are.
      lines: its rows.
      scale: of the runs.

    Returns:
      Caption -> path.
    """
    pictures = {}
    once = [line for line, twin in zip(lines, _twins(lines), strict=True) if not twin]
    curves = {line.row.name: runs for line in once if (runs := _curves(line))}
    if table.plot and curves:
        pictures["learning curves"] = base.with_name(f"{base.name}.png")
        plots.curves(curves, pictures["learning curves"], f"{table.title} ({scale} scale)")
    for line in once if table.measure.draw else []:
        finished = [result for result in line.results.values() if not result["diverged"]]
        if finished:
            path = base.with_name(f"{base.name}-{line.row.name.replace('/', '-')}.png")
            table.measure.draw(finished[0], path, line.row.name)
            pictures[line.row.name] = path
    return pictures


def _twins(lines: Sequence[Line]) -> list[Line | None]:
    """For each line, the one before it that is the same run."""
    first: dict[str, Line] = {}
    keys = [line.job.key if line.job else line.row.name for line in lines]
    twins = [first.setdefault(key, line) for key, line in zip(keys, lines, strict=True)]
    return [None if twin is line else twin for twin, line in zip(twins, lines, strict=True)]


def _summed_up(table: Table, line: Line) -> str:
    """As the paper sums up several runs, where that is not their mean."""
    column = table.measure.columns[0]
    values = [column.value(result) for result in line.results.values()]
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < 2:
        return ""
    if table.statistic.startswith("median"):
        return f"median {statistics.median(numbers):.{column.digits}f}"
    if table.statistic.startswith("best"):
        best = max(numbers) if "accuracy" in table.measure.unit else min(numbers)
        return f"best run {best:.{column.digits}f}"
    return ""


def _curves(line: Line) -> list[list[EpochRecord]]:
    """Of the runs that did not diverge, which have all epochs."""
    finished = [result for result in line.results.values() if "records" in result and not result["diverged"]]
    return [[EpochRecord(**record) for record in result["records"]] for result in finished]
