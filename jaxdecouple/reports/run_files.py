"""The files of a run's directory, read as far as they are there: the run may be under way, or of another version."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from jaxdecouple.errors import JaxdecoupleError
from jaxdecouple.schedules import DelaySchedule, FlushSchedule, RoundSchedule, Schedule

CONFIG, SETUP, METRICS, SPEED, SUMMARY = "config.json", "setup.json", "metrics.jsonl", "speed.json", "summary.json"
DIAGNOSTICS, MARKS = "diagnostics.jsonl", "marks.json"


class ReportError(JaxdecoupleError):
    """A directory that holds no run."""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What a run's directory holds.

    Attributes:
      path: the directory.
      config: every setting, by name.
      setup: the schedule, its staleness, the cut and the machine, known when the run begins.
      metrics: a record for each epoch.
      speed: seconds and examples per second of each epoch.
      summary: what the finished run came to; empty before.
      diagnostics: the records of probes.
      marks: when operations really started and ended, where that was measured.
      remarks: what could not be read, a sentence each.
    """

    path: pathlib.Path
    config: dict[str, Any]
    setup: dict[str, Any]
    metrics: list[dict[str, Any]]
    speed: list[dict[str, Any]]
    summary: dict[str, Any]
    diagnostics: list[dict[str, Any]]
    marks: list[dict[str, Any]]
    remarks: list[str]

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> RunFiles:
        """Reads what is there.

        Raises:
          ReportError: the directory does not exist, is of another program, or its ``config.json`` cannot be read.
        """
        path, remarks = pathlib.Path(directory).expanduser(), []
        if not (path / CONFIG).is_file():
            what = "there is no such directory" if not path.is_dir() else f"it has no {CONFIG}"
            raise ReportError(f"{path} is no run: {what}; write the directory of a run, such as runs/...")
        config = _json(path / CONFIG, dict, remarks)
        if not config:
            raise ReportError(f"{path} is no run that can be read: {remarks[0] if remarks else f'{CONFIG} is empty'}")
        if "method" not in config:
            raise ReportError(f"{path} is of another program; write the directory of a run of experiments.train")
        summary = _json(path / SUMMARY, dict, remarks)
        return cls(
            path=path,
            config=config,
            setup=_json(path / SETUP, dict, remarks) or summary,
            metrics=_lines(path / METRICS, remarks),
            speed=_json(path / SPEED, list, remarks),
            summary=summary,
            diagnostics=_lines(path / DIAGNOSTICS, remarks),
            marks=_json(path / MARKS, list, remarks),
            remarks=remarks,
        )

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return bool(self.summary)

    @property
    def schedule(self) -> Schedule | None:
        """What was dispatched; ``None`` if the run does not say, or says it in another version's way."""
        saved = self.setup.get("schedule")
        if not isinstance(saved, dict):
            return None
        kind = RoundSchedule if "orders" in saved else FlushSchedule if "chunks" in saved else DelaySchedule
        fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in saved.items()}
        try:
            return kind(**fields)
        except (TypeError, ValueError):
            return None


def _json(path: pathlib.Path, kind: type, remarks: list[str]) -> Any:
    """A file's content, or nothing: if it is not there, silently, and if it is not what it should be, with a remark."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        remarks.append(f"{path.name} cannot be read ({error}).")
        return kind()
    if not isinstance(value, kind):
        remarks.append(f"{path.name} is not of this version: it holds no {kind.__name__}.")
        return kind()
    return value


def _lines(path: pathlib.Path, remarks: list[str]) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; of what is cut off or damaged only a remark."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        remarks.append(f"{path.name} cannot be read ({error}).")
        return []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            found.append(record)
        else:
            where = "The last line" if number == len(lines) else f"Line {number}"
            remarks.append(f"{where} of {path.name} is cut off or damaged, and left out.")
    return found
