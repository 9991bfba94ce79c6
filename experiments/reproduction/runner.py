"""A runner takes rows one after the other, runs what the store does not hold yet, and hands out lines for tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence

from experiments.reproduction.kind import Result, Scale
from experiments.reproduction.kinds import KINDS
from experiments.reproduction.rows import Row, Table
from experiments.reproduction.store import Job, Store
from experiments.reproduction.tables import Line, cell


def job_of(table: Table, row: Row, scale: Scale) -> Job:
    """What is run for a row.

    Raises:
      ValueError: its settings make no sense, or there is nothing that could run them.
    """
    return Job(table.kind, KINDS[table.kind].scaled(table.settings_of(row), scale))


def run_rows(
    table: Table,
    rows: Sequence[Row],
    *,
    scale: Scale,
    seeds: Sequence[int],
    store: Store,
    strict: bool = False,
    only_known: bool = False,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
) -> list[Line]:
    """Runs what is missing. A row that cannot be run is reported in its line, and the others go on.

    Args:
      table: of the rows.
      rows: to run.
      scale: of the settings.
      seeds: of the runs.
      store: holds what was run before, by any row of any table.
      strict: raise for a row that cannot be run: it was asked for alone.
      only_known: run nothing.
      say: called with a text on each result.
    """
    lines = []
    for row in rows:
        job, reason = None, ""
        try:
            job = job_of(table, row, scale)
            if not only_known:
                _run_missing(job, table, row, seeds=_seeds(table, seeds), store=store, say=say)
        except ValueError as error:
            if strict:
                raise
            reason = f"not run: {error}"
            say(f"{row.name:36s} {reason}")
        lines.append(line_of(table, row, job, seeds, store, reason))
    return lines


def line_of(table: Table, row: Row, job: Job | None, seeds: Sequence[int], store: Store, reason: str = "") -> Line:
    """What the store holds for a row."""
    found = {seed: store.get(job, seed) for seed in _seeds(table, seeds)} if job else {}
    return Line(row, job, {seed: result for seed, result in found.items() if result is not None}, reason)


def missing(job: Job, seeds: Iterable[int], store: Store) -> list[int]:
    """Seeds without a result."""
    return [seed for seed in seeds if store.get(job, seed) is None]


def _seeds(table: Table, seeds: Sequence[int]) -> Sequence[int]:
    return seeds if KINDS[table.kind].seeded else (0,)


def _run_missing(
    job: Job, table: Table, row: Row, *, seeds: Sequence[int], store: Store, say: Callable[[str], None]
) -> None:
    todo = missing(job, seeds, store)
    if not todo:
        return
    kind, start = KINDS[job.kind], time.perf_counter()
    _, columns = kind.measures[table.measure]

    def emit(seed: int, result: Result) -> None:
        nonlocal start
        store.put(job, seed, result)
        numbers = ", ".join(f"{column.header} {cell(column, {seed: result})}" for column in columns)
        say(f"{row.name:36s} seed {seed}: {numbers}; {time.perf_counter() - start:.1f} s")
        start = time.perf_counter()
        sys.stdout.flush()

    kind.run(job.settings, todo, emit)
