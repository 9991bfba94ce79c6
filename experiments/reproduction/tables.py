"""A table of results: a line per row, the paper's number beside ours; as Markdown, as JSON, and learning curves."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import devices
from experiments.report import plots
from experiments.report.tables import markdown, mean_and_spread
from experiments.report.workdir import Files
from experiments.reproduction import diagnostics
from experiments.reproduction.kind import Column, Result
from experiments.reproduction.kinds import KINDS
from experiments.reproduction.rows import DIVERGES, Row, Table
from experiments.reproduction.store import Job
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
    """

    row: Row
    job: Job | None
    results: Mapping[int, Result]
    reason: str = ""


def as_markdown(table: Table, lines: Sequence[Line]) -> str:
    """The paper's number, then ours: mean and standard deviation over the seeds, and how many there are."""
    unit, columns = KINDS[table.kind].measures[table.measure]
    seeded = KINDS[table.kind].seeded
    rows = [
        ["row", f"paper: {unit}", *(column.header for column in columns), *(["seeds"] if seeded else []), "remarks"]
    ]
    for line in lines:
        remarks = [line.row.also, line.reason, *_middle(table, columns[0], line)]
        rows.append(
            [
                line.row.name,
                paper_number(line.row.paper),
                *(cell(column, line.results) for column in columns),
                *([str(len(line.results))] if seeded else []),
                "; ".join(filter(None, remarks)),
            ]
        )
    return markdown(rows)


def paper_number(value: float | str | None) -> str:
    """As printed; - where the paper prints none."""
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def cell(column: Column, results: Mapping[int, Result]) -> str:
    """Mean ± standard deviation of the runs that did not diverge, and how many did."""
    values = [column.value(result) for result in results.values()]
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


def write(
    directory: pathlib.Path, table: Table, lines: Sequence[Line], *, scale: str, command: str, rows_in_table: int
) -> None:
    """Writes table.md, results.json and, where the paper shows them, curves.png; for diagnostics a picture per row."""
    output = _Directory(directory)
    counted = "" if len(lines) == rows_in_table else f", {len(lines)} of {rows_in_table} rows"
    text = f"# {table.title}\n\nScale: {scale}{counted}. The paper: {table.statistic}. `{command}`\n\n"
    (output.path / "table.md").write_text(text + as_markdown(table, lines) + "\n")
    content = {
        "title": table.title,
        "scale": scale,
        "command": command,
        "machine": devices.describe(),
        "rows": [_as_json(table, line) for line in lines],
    }
    output.write_json("results.json", content)
    curves = {line.row.name: _records(line) for line in lines}
    curves = {name: runs for name, runs in curves.items() if runs}
    if table.plot and curves:
        plots.curves(curves, output.path / "curves.png", f"{table.title} ({scale} scale)")
    if table.kind == "diagnostics":
        _draw_diagnostics(output.path, lines)


def _draw_diagnostics(directory: pathlib.Path, lines: Sequence[Line]) -> None:
    """A picture of the first run of each row."""
    for line in lines:
        found = [records for result in line.results.values() if (records := diagnostics.records(result))]
        if found:
            name = line.row.name.replace("/", "-")
            plots.diagnostics(found[0], directory / f"{name}.png", line.row.name)


class _Directory(Files):
    """Files that are written anew each time: what they hold comes from the store."""

    def __init__(self, path: pathlib.Path):
        self.path = path.expanduser()
        self.path.mkdir(parents=True, exist_ok=True)


def _as_json(table: Table, line: Line) -> dict[str, Any]:
    return {
        "row": line.row.name,
        "paper": line.row.paper,
        "also": line.row.also,
        "settings_run": dict(line.job.settings) if line.job else None,
        "reason": line.reason,
        "results": {str(seed): _shortened(table, result) for seed, result in line.results.items()},
    }


def _shortened(table: Table, result: Result) -> dict[str, Any]:
    """Without the probes, which are many, and the epochs where the table does not show them; the store has all."""
    unseen = {"diagnostics"} if table.plot else {"diagnostics", "records"}
    return {name: value for name, value in result.items() if name not in unseen}


def _middle(table: Table, column: Column, line: Line) -> list[str]:
    values = [column.value(result) for result in line.results.values()]
    numbers = [value for value in values if isinstance(value, int | float)]
    if not table.statistic.startswith("median") or len(numbers) < 2:
        return []
    return [f"median {statistics.median(numbers):.{column.digits}f}"]


def _records(line: Line) -> list[list[EpochRecord]]:
    """Of the runs that did not diverge, which have all epochs."""
    finished = [result for result in line.results.values() if "records" in result and not result["diverged"]]
    return [[EpochRecord(**record) for record in result["records"]] for result in finished]
