"""A store keeps the result of each run in a file of its own, named by what was run: nothing is run twice."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.papers.scales import Scale
from experiments.papers.table import Measure, Result, Row, Table
from experiments.report.workdir import Files, Workdir

PURPOSE = {"holds": "results of reproductions"}


class Places(NamedTuple):
    """Directories of one run: ``running``, gone when it is finished, and that of its weights, if they are to stay."""

    running: pathlib.Path
    weights: pathlib.Path | None


@dataclasses.dataclass(frozen=True)
class Job:
    """What a row runs: all that its results depend on, their seed apart.

    Attributes:
      measure: of the row's table.
      settings: as its measure makes them. Rows with the same ones share their results.
    """

    measure: Measure
    settings: Any

    def as_json(self) -> dict[str, Any]:
        """The settings, without a seed."""
        settings = dataclasses.asdict(self.settings) if dataclasses.is_dataclass(self.settings) else self.settings
        return {name: value for name, value in settings.items() if name != "seed"}

    @property
    def key(self) -> str:
        """The same for the same kind and settings, in every process."""
        text = json.dumps([self.measure.kind, self.as_json()], sort_keys=True)
        return f"{self.measure.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def job_of(table: Table, row: Row, scale: Scale) -> Job:
    """What a row runs at a scale.

    Raises:
      ValueError: at this scale nothing can stand for its settings.
    """
    return Job(table.measure, table.measure.settings(table.settings_of(row), scale))


def first_with(tables: Mapping[str, Table], scale: Scale) -> dict[str, str]:
    """For each job's key, the first row of a paper that runs it, as ``table/row``."""
    first: dict[str, str] = {}
    for name, table in tables.items():
        for row in table.rows:
            try:
                first.setdefault(job_of(table, row, scale).key, f"{name}/{row.name}")
            except ValueError:
                continue
    return first


class Store:
    """Results below a directory, of as many papers and scales as one likes.

    Attributes:
      path: the directory.
    """

    def __init__(self, path: pathlib.Path, *, overwrite: bool = False):
        """Opens the directory, or makes it.

        Raises:
          ValueError: it holds something else, or cannot be written.
        """
        self.path = path.expanduser()
        if overwrite and self._is_store():
            shutil.rmtree(self.path)
        if not self._is_store():
            Workdir(self.path, PURPOSE).claim()
        self._jobs = self.path / "jobs"
        self._jobs.mkdir(exist_ok=True)

    def results(self, job: Job, seeds: Sequence[int]) -> dict[int, Result]:
        """The results that are known, by seed."""
        files = {seed: self._file(job, seed) for seed in job.measure.seeds(seeds)}
        return {seed: json.loads(file.read_text())["result"] for seed, file in files.items() if file.exists()}

    def missing(self, job: Job, seeds: Sequence[int], *, keep_weights: bool = False) -> list[int]:
        """Seeds without a result, or without the weights that are wanted."""

        def there(seed: int) -> bool:
            weights = self.places(job, seed, keep_weights=keep_weights and job.measure.resumes).weights
            return self._file(job, seed).exists() and (weights is None or weights.exists())

        return [seed for seed in job.measure.seeds(seeds) if not there(seed)]

    def put(self, job: Job, seed: int, result: Result, row: str) -> None:
        """Writes a result, and the row that it was run for, as a whole or not at all."""
        content = {"kind": job.measure.kind, "row": row, "settings": job.as_json(), "seed": seed, "result": result}
        Files(self._jobs).write_json(self._file(job, seed).name, content)

    def places(self, job: Job, seed: int, *, keep_weights: bool = False) -> Places:
        """Where a run keeps what it needs to be gone on with, and leaves its weights."""
        name = f"{job.key}-seed{seed}"
        return Places(self.path / "running" / name, self.path / "weights" / name if keep_weights else None)

    def _file(self, job: Job, seed: int) -> pathlib.Path:
        return self._jobs / f"{job.key}-seed{seed}.json"

    def _is_store(self) -> bool:
        file = self.path / "config.json"
        with contextlib.suppress(ValueError):  # a config.json that is none belongs to somebody else
            return file.is_file() and json.loads(file.read_text()) == PURPOSE
        return False
