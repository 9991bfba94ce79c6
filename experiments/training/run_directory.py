"""The directory of a training run, which the same command goes on with; one program at a time writes in it."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from experiments.report.workdir import CONFIG, Files, Workdir, check_free, delete_listed, is_unused, listed, lock
from experiments.settings import revived
from experiments.training.config import Config

METRICS, SUMMARY, CHECKPOINTS, DIAGNOSTICS = "metrics.jsonl", "summary.json", "checkpoints", "diagnostics.jsonl"
SETUP, MARKS, SPEED, LAYOUT = "setup.json", "marks.json", "speed.json", "cut.json"
MEASURED = ("profile.json", "trace.json", "timeline.png")  # where layers were measured
FINAL = "final"  # of the checkpoints: what is left after the flush
_SAME_RESULTS = ("data_dir", "data_threads")  # settings that no result depends on


class Standing(enum.Enum):
    """How far the run is that a directory holds."""

    NEW = "nothing is there"
    BEGUN = "it can be gone on with"
    FINISHED = "its summary is written"


def standing(path: pathlib.Path, config: Config) -> Standing:
    """How far the run with this config is in ``path``.

    Raises:
      ValueError: the directory holds something else.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"workdir {path} is a file; write a directory that is new or empty")
    if is_unused(path):
        return Standing.NEW
    if not (path / CONFIG).is_file():
        raise ValueError(f"workdir {path} holds files that are no run; write a directory that is new or empty")
    differences = _differences(path, config)
    if differences:
        raise ValueError(
            f"workdir {path} holds another run: {'; '.join(differences)}; write a new --workdir, the same settings to "
            "go on with that run, or --overwrite to replace it"
        )
    return Standing.FINISHED if (path / SUMMARY).is_file() else Standing.BEGUN


def _differences(path: pathlib.Path, config: Config) -> list[str]:
    try:
        saved = json.loads((path / CONFIG).read_text())
    except (OSError, ValueError) as error:
        return [f"its {CONFIG} cannot be read ({error})"]
    ours = json.loads(json.dumps(dataclasses.asdict(config)))
    if not isinstance(saved, dict) or not set(saved) & set(ours):
        return ["that of another program"]
    defaults = json.loads(json.dumps(dataclasses.asdict(Config())))
    return [
        f"{name} is {saved.get(name, defaults[name])!r} there and {value!r} here"
        for name, value in ours.items()
        if name not in _SAME_RESULTS and saved.get(name, defaults[name]) != value
    ]


class RunDirectory(Workdir):
    """A training run's directory, claimed at once, and locked as long as it is open.

    Attributes:
      path: the directory.
      standing: of the run in it: new, or to be gone on with.
    """

    def __init__(self, path: str | pathlib.Path, config: Config, *, overwrite: bool = False):
        """Claims ``path`` for the run with this config.

        Raises:
          ValueError: it holds another run, or one that is being written; or it cannot be written.
        """
        Files.__init__(self, path)
        if overwrite:
            self.check(self.path, overwrite=True)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path)
        except OSError as error:
            raise ValueError(f"workdir {self.path} cannot be written ({error}); write another --workdir") from error
        try:
            if overwrite:
                delete_listed(self.path)
            self.standing = Standing.NEW if overwrite else standing(self.path, config)
            self._listed, self._claimed = listed(self.path), True
            if self.standing is Standing.NEW:
                self.write_json(CONFIG, dataclasses.asdict(config))
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise ValueError(f"workdir {self.path} cannot be written ({error}); write another --workdir") from error
            raise

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def abandon(self) -> None:
        """Leaves the directory as if it had never been claimed, but for the lock."""
        delete_listed(self.path)
        self._listed.clear()

    def close(self) -> None:
        """Lets others in."""
        self._lock.release()


class Unwritten(Files):
    """A training run's directory in a process that leaves all of its files but checkpoints to another."""

    standing = Standing.BEGUN

    def write(self, name: str, text: str) -> None:
        """Nothing."""

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Nothing."""


def default_path(config: Config) -> pathlib.Path:
    """``runs/DATA-MODEL-METHOD-K``, or the last of that name, if it can be gone on with, else a new one."""
    data = config.dataset.replace("/", "_").replace(":", "_")
    name = f"{data}-{config.model}-{config.method}-K{config.num_stages}"
    unused = Workdir.unused(f"runs/{name}")
    number = unused.name.removeprefix(name).removeprefix("-")
    last = unused.with_name(name if number == "2" else f"{name}-{int(number or 1) - 1}")
    with contextlib.suppress(ValueError):
        check_free(last)
        if last.is_dir() and standing(last, config) is Standing.BEGUN:
            return last
    return unused


def config_of(saved: dict[str, Any]) -> Config:
    """The config that a checkpoint or a config.json holds; settings that are newer than it have their defaults.

    Raises:
      ValueError: it has a setting that there is no longer.
    """
    return revived(Config, saved, "the run")
