"""A store keeps each job's result in a file of its own, named by what the job was: what is there is not run again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from experiments.report.workdir import Workdir

PURPOSE = {"holds": "results of reproductions"}


@dataclasses.dataclass(frozen=True)
class Job:
    """What a result depends on, its seed apart.

    Attributes:
      kind: a key of `kinds.KINDS`.
      settings: JSON-able; jobs with the same ones share their results, whatever rows they belong to.
    """

    kind: str
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The same for the same contents, in every process."""
        text = json.dumps([self.kind, self.settings], sort_keys=True)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Store:
    """Results below a directory, of as many programs as one likes."""

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

    def get(self, job: Job, seed: int) -> dict[str, Any] | None:
        """The result, or ``None`` if there is none yet."""
        file = self._file(job, seed)
        return json.loads(file.read_text())["result"] if file.exists() else None

    def put(self, job: Job, seed: int, result: Mapping[str, Any]) -> None:
        """Writes the result, as a whole or not at all."""
        file = self._file(job, seed)
        partial = file.with_suffix(".partial")
        content = {"kind": job.kind, "settings": job.settings, "seed": seed, "result": result}
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(file)

    def _file(self, job: Job, seed: int) -> pathlib.Path:
        return self._jobs / f"{job.key}-seed{seed}.json"

    def _is_store(self) -> bool:
        file = self.path / "config.json"
        return file.is_file() and json.loads(file.read_text()) == PURPOSE
